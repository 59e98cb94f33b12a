"""Texts from outside are printed as they are, whatever a console would make of them."""

import re
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from anydepth.data.convert.dataset import ForeignDataset
from anydepth.data.fetch.console import download_bar, print_summary
from anydepth.runs.sweep import Job, print_jobs
from anydepth.utils.console import print_lines

SOURCES = Path(__file__).resolve().parents[2] / "src" / "anydepth"
# A style, a tag that closes nothing, a picture, and an address.
NAMES = ("[red]cat", "[bold]", "a[/b]", ":cat:", "[link=x]y[/link]", "\\[cat]")


def _console(width: int = 200) -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, width=width, force_terminal=True, color_system=None), file


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_printed_as_they_are(name: str) -> None:
    console, file = _console(width=20)
    print_lines(f"images/{name}/{'long' * 10}.png", Path(name), console=console)
    assert file.getvalue() == f"images/{name}/{'long' * 10}.png\n{Path(name)}\n"


def test_what_a_console_cannot_encode_is_escaped() -> None:
    file = TextIOWrapper(BytesIO(), encoding="ascii")
    print_lines("caf\u00e9 \udcff.png", console=Console(file=file))
    file.flush()
    assert file.buffer.getvalue() == b"caf\\xe9 \\udcff.png\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_classes_jobs_and_files_are_no_markup(name: str) -> None:
    console, file = _console()
    dataset = ForeignDataset(splits={"train": []}, class_names=(name,))
    dataset.skipped.append(("pictures without labels", f"{name}.png"))
    dataset.remarks.append(f"read {name}")
    print_summary(dataset, console)
    assert file.getvalue().count(name) == 3
    console, file = _console()
    print_jobs([Job(name=name, state="failed", message=f"no such file {name}")], console)
    assert file.getvalue().count(name) == 3
    console, file = _console()
    with download_bar(name, console):
        pass
    assert name in file.getvalue()


def test_no_module_prints_text_on_a_console_by_itself() -> None:
    """Only what rich builds, such as tables, may be printed directly; text goes through ``print_lines``."""
    direct = {}
    for path in sorted(SOURCES.rglob("*.py")):
        if path != SOURCES / "utils" / "console.py":
            found = re.findall(r"console(?:\(\))?\.print\((?!\w*(?:table|_table)\b)", path.read_text())
            direct[path.name] = found
    assert len(direct) > 100
    assert {name: found for name, found in direct.items() if found} == {}
