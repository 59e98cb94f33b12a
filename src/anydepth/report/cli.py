"""``anydepth-report RUN_OR_SWEEP_DIR...``: write one page that compares runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anydepth.report.comparison import Report, compare
from anydepth.report.page.page import render_page
from anydepth.report.runs import ReportError, find_runs
from anydepth.utils.files import write_text
from anydepth.utils.interrupt import readable_interrupt
from anydepth.utils.version import package_version


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Compare the runs of folders on one page, written completely or not at all.

    Args:
        folders: Run folders, or folders of runs.
        output: HTML file to write.

    Returns:
        ``output``.

    Raises:
        ReportError: A folder is missing, or no folder holds a run that can be shown.
    """
    report = _compare_runs(folders)
    write_text(output, render_page(report))
    return output


@readable_interrupt()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        folders = _skip_files(arguments.folders)
        if arguments.output.is_dir():
            raise ReportError(f"--output {arguments.output} is a folder; give a file in it, e.g. report.html")
        report = _compare_runs(folders)
        write_text(arguments.output, render_page(report))
    except (ReportError, OSError) as error:
        print(f"anydepth-report: {error}", file=sys.stderr)
        return 1
    for line in _summary_lines(report):
        print(line)
    print(f"report  {arguments.output.resolve()} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _skip_files(given: Sequence[Path]) -> list[Path]:
    """Return the folders; print the skipped files, e.g. multirun.yaml, which STUDY/* also matches."""
    files = [path for path in given if path.is_file()]
    if len(files) == len(given):
        return [*given]
    if files:
        names = ", ".join(map(str, files))
        print(f"anydepth-report: skipped files, expected folders: {names}", file=sys.stderr)
    return [path for path in given if path not in files]


def _compare_runs(folders: Sequence[Path]) -> Report:
    runs, unusable = find_runs(folders)
    return compare(runs, unusable)


def _summary_lines(report: Report) -> list[str]:
    lines = []
    for comparison in report.comparisons:
        runs = sum(len(setting.runs) for setting in comparison.settings)
        settings = len(comparison.settings)
        counts = f"{runs} run{'s' * (runs > 1)} of {settings} setting{'s' * (settings > 1)}"
        lines.append(f"{comparison.title}: {counts}")
        lines += [f"  {finding.title}: {finding.verdict}" for finding in comparison.findings]
        lines += [f"  note: {warning}" for warning in comparison.warnings]
    lines += [f"note: {note}" for note in report.notes]
    return lines + [f"left out: {run.folder}: {run.reason}" for run in report.unusable]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anydepth-report",
        description=(
            "Compare training runs on one page: depth curves, the evidence for the method's claims, "
            "configurations, training curves, and detections at every depth. The page is a single HTML file "
            "that opens offline."
        ),
        epilog=(
            "Examples: anydepth-report outputs/sweeps/ablation_losses/* --output losses.html; "
            "anydepth-report outputs/train/RUN outputs/train/ANOTHER_RUN"
        ),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {package_version()}")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP_DIR", help="a run, or a folder of runs"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), help="the file to write (default: report.html)"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
