"""The page of the slow tests' last results."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

TESTS = """
import pytest

@pytest.mark.parametrize("wing", ["detr", "yolo|x"])
def test_prints(wing):
    print("noise")
    print(f"measured: {wing} 3 of 4")
    print(f"measured: {wing} 3 of 4")

def test_fails():
    assert False

def test_skips():
    pytest.skip("needs a GPU")
"""


def _report(folder: Path) -> str:
    (folder / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--junitxml=report.xml",
        "-o",
        "junit_logging=system-out",
    ]
    subprocess.run([*command, "-p", "no:cacheprovider", "test_it.py"], cwd=folder, capture_output=True)
    return (folder / "report.xml").read_text()


def test_results_are_written_and_those_of_other_tests_stay(script: ModuleType, tmp_path: Path) -> None:
    found = script.read_results(_report(tmp_path), "2026-11-01", "abc", "a machine")
    assert [(row.test, row.result, row.measured) for row in found] == [
        ("`test_it.py` test_prints[detr]", "passed", "detr 3 of 4"),
        ("`test_it.py` test_prints[yolo\\|x]", "passed", "yolo\\|x 3 of 4"),
        ("`test_it.py` test_fails", "failure", ""),
        ("`test_it.py` test_skips", "skipped", "needs a GPU"),
    ]
    rows = {row.test: row for row in found}
    page = script.write_page(rows)
    assert script.read_rows(page) == rows
    other = script.Row("`test_other.py` test_a", "passed", "3", "", "2026-10-01", "def", "a machine")
    again = script.read_rows(script.write_page(rows | {other.test: other}))
    assert again == rows | {other.test: other}
    assert all(row.date == "2026-11-01" and row.commit == "abc" for row in rows.values())
