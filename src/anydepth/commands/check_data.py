"""``anydepth-data check``: read every picture and annotation before training does, and write a page."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anydepth.data.check.dataset import CheckedDataset, check_dataset
from anydepth.data.coco.layout import SPLIT_NAMES, Split, find_split
from anydepth.data.errors import DataError
from anydepth.report.page.data_check import render_data_check
from anydepth.utils.console import print_lines
from anydepth.utils.files import write_text


def run(options: argparse.Namespace) -> int:
    """Check a data set, write its page, and print a summary.

    Args:
        options: See :func:`anydepth.commands.data_options.parse_check`.

    Returns:
        The exit status: 0, or 1 if there are problems or it was interrupted.

    Raises:
        DataError: There is no data set, or the page cannot be written.
    """
    splits, missing = _find_splits(options)
    bars = Console(stderr=True, highlight=False)
    try:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TimeRemainingColumn(),
            console=bars,
        ) as progress:
            checked = check_dataset(
                splits, missing=missing, workers=options.workers, progress=_bars_of(progress)
            )
    except KeyboardInterrupt:
        bars.print("\ninterrupted; no page was written")
        return 1
    title = str(options.root or options.json)
    _write_page(options.out, render_data_check(checked, title))
    _print_summary(checked, options.out)
    return 1 if checked.problems else 0


def _find_splits(options: argparse.Namespace) -> tuple[Mapping[str, Split], list[str]]:
    """Return the splits by name, and messages about those that training needs and that are not there."""
    if options.json is not None:
        return {options.json.stem: Split(options.json, options.images)}, []
    if options.splits is not None:
        return {name: find_split(options.root, name) for name in options.splits}, []
    splits: dict[str, Split] = {}
    missing: dict[str, str] = {}
    for name in SPLIT_NAMES:
        try:
            splits[name] = find_split(options.root, name)
        except DataError as error:
            missing[name] = str(error)
    if not splits:
        raise DataError(missing["train"])
    missing.pop("test", None)  # Neither training nor validation needs it.
    return splits, list(missing.values())


def _bars_of(progress: Progress) -> Callable[[str, int], Callable[[], None]]:
    def add_bar(name: str, total: int) -> Callable[[], None]:
        task = progress.add_task(name, total=total)
        return lambda: progress.advance(task)

    return add_bar


def _write_page(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); give another file with --out") from error


def _print_summary(checked: CheckedDataset, path: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for split in checked.splits:
        if split.statistics is not None:
            facts = ", ".join(f"{value} {name}" for name, value in split.statistics.facts[:3])
            print_lines(f"{split.name}: {facts}", console=console)
    named = [("", finding) for finding in checked.findings]
    named += [(f"{split.name}: ", finding) for split in checked.splits for finding in split.findings]
    for prefix, finding in named:
        first = finding.examples[0] + (" ..." if finding.count > 1 else "")
        print_lines(
            f"{finding.severity}: {prefix}{finding.count:,} {finding.title}: {first}", console=console
        )
    print_lines(f"{checked.problems:,} problems, {checked.doubts:,} doubts; page: {path}", console=console)
