"""Entry points are those of Python, found again where a package came or went."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from anydepth.utils.entry_points import entry_points_of

GROUP = "anydepth.presets"


def _install(folder: Path, name: str) -> Path:
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}.conf\n")
    return described


def _names() -> list[str]:
    return [found.name for found in entry_points_of(GROUP)]


def test_packages_that_are_installed_into_a_running_process_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _names()
    monkeypatch.syspath_prepend(tmp_path)
    first = _install(tmp_path, "first")
    assert sorted(_names()) == sorted([*before, "first"])
    _install(tmp_path, "second")
    assert sorted(_names()) == sorted([*before, "first", "second"])
    shutil.rmtree(first)
    assert sorted(_names()) == sorted([*before, "second"])
    monkeypatch.undo()
    assert _names() == before


def test_a_folder_of_the_path_may_be_missing_and_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "later")
    before = _names()
    _install(tmp_path / "later", "first")
    assert sorted(_names()) == sorted([*before, "first"])


def test_the_working_directory_counts_where_the_path_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a console, whose path begins with an empty text."""
    _install(tmp_path / "here", "first")
    (tmp_path / "there").mkdir()
    monkeypatch.syspath_prepend("")
    for folder, there in (("here", True), ("there", False), ("here", True)):
        monkeypatch.chdir(tmp_path / folder)
        assert ("first" in _names()) is there


def test_they_are_those_of_python_for_any_group() -> None:
    for group in ("pytest11", "console_scripts", "no such group"):
        assert list(entry_points_of(group)) == list(metadata.entry_points(group=group))
