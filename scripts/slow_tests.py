"""Run the slow tests, and with ``--record`` write their results to ``docs/slow-tests.md``.

    python scripts/slow_tests.py                          # all, as `make test-slow` does
    python scripts/slow_tests.py --record tests/hostile   # some; the results of the others are kept

All other arguments are passed to pytest. Printed lines that start with "measured: " are recorded, too.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parents[1]
RECORD = REPOSITORY / "docs" / "slow-tests.md"
MEASURED = "measured: "
COLUMNS = ("test", "result", "seconds", "measured", "date", "commit", "machine")
HEAD = """# Last results of the slow tests

`make test-slow` runs them all, `make test-slow ARGS="--record"` writes this page. Each row shows when, at
which commit and where the test ran last.

"""


@dataclass(frozen=True)
class Row:
    """One test: text of each of :data:`COLUMNS`."""

    test: str
    result: str
    seconds: str
    measured: str
    date: str
    commit: str
    machine: str


def read_results(xml: str, date: str, commit: str, machine: str) -> list[Row]:
    """Read the rows of a JUnit report of pytest."""
    rows = []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        kinds = {child.tag for child in case}
        result = next((kind for kind in ("error", "failure", "skipped") if kind in kinds), "passed")
        printed = "\n".join(child.text or "" for child in case.findall("system-out"))
        lines = dict.fromkeys(printed.splitlines())
        measured = [line.removeprefix(MEASURED) for line in lines if line.startswith(MEASURED)]
        if result == "skipped":
            measured = [child.get("message", "") for child in case.findall("skipped")]
        file = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        seconds = f"{float(case.get('time', 0)):.0f}"
        test = f"`{file}.py` {case.get('name')}"
        rows.append(Row(*map(_cell, (test, result, seconds, "; ".join(measured), date, commit, machine))))
    return rows


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def read_rows(page: str) -> dict[str, Row]:
    """Read the rows of a page that :func:`write_page` wrote, by test."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = (Row(*(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])) for line in lines)
    return {row.test: row for row in rows}


def write_page(rows: Mapping[str, Row]) -> str:
    """Return the page, sorted by test."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(astuple(rows[test]))} |" for test in sorted(rows)]
    return HEAD + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return pytest's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(REPOSITORY)}")
    arguments, for_pytest = parser.parse_known_args(argv)
    start = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", f"--junitxml={report}"]
        command += ["-o", "junit_logging=system-out", *for_pytest]
        code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
        if arguments.record and report.is_file():
            found = read_results(report.read_text(), f"{start:%Y-%m-%d}", _commit(), _machine())
            former = read_rows(RECORD.read_text()) if RECORD.is_file() else {}
            RECORD.parent.mkdir(exist_ok=True)
            RECORD.write_text(write_page(former | {row.test: row for row in found}))
    return code


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(git, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()


def _machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}"
    )


if __name__ == "__main__":
    sys.exit(main())
