"""``anydepth-data check``: exit status, summary and page."""

import shutil
from pathlib import Path

import pytest

from anydepth.commands.data import main
from anydepth.data.sample import sample_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_root(), tmp_path / "set"))


def test_a_sound_data_set_has_a_page_and_status_0(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "sample.html"

    assert main(["check", str(root), "--out", str(page), "--workers", "2"]) == 0

    shown = capsys.readouterr()
    assert "train: 56 images" in shown.out
    assert "val: 19 images" in shown.out
    assert f"0 problems, 0 doubts; page: {page}" in shown.out
    assert "No problems" in page.read_text(encoding="utf-8")


def test_a_damaged_picture_is_named_on_the_page_with_status_1(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = sorted((root / "images" / "val").iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    page = tmp_path / "page.html"

    assert main(["check", str(root), "--out", str(page)]) == 1

    text = page.read_text(encoding="utf-8")
    assert damaged.name in text
    assert "1 pictures that cannot be used" in text
    assert "problem: val: 1 pictures that cannot be used" in capsys.readouterr().out


def test_a_missing_split_is_a_problem_unless_others_are_asked_for(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "annotations" / "instances_val.json").unlink()
    out = ["--out", str(tmp_path / "page.html")]

    assert main(["check", str(root), *out]) == 1
    assert "1 splits that were not found" in capsys.readouterr().out
    assert main(["check", str(root), "--splits", "train", *out]) == 0


def test_one_json_is_checked(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json, images = root / "annotations" / "instances_val.json", root / "images" / "val"

    status = main(
        ["check", "--json", str(json), "--images", str(images), "--out", str(tmp_path / "page.html")]
    )

    assert status == 0
    assert "instances_val: 19 images" in capsys.readouterr().out


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"

    assert main(["check", str(tmp_path), "--out", str(page)]) == 1
    assert "no train split; looked for" in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either the data set's folder, or --json and --images"),
        (["x", "--json", "a.json", "--images", "b"], "give either the data set's folder"),
        (["--json", "a.json"], "--json and --images belong together"),
        (["--json", "a.json", "--images", "b", "--splits", "val"], "--json is one split"),
        (["x", "--workers", "0"], "got 0, expected a whole number from 1"),
    ],
)
def test_wrong_options_have_status_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_names_on_the_page_are_text(root: Path, tmp_path: Path) -> None:
    path = root / "annotations" / "instances_val.json"
    named = "<script>alert(1)</script>.png"
    text = path.read_text(encoding="utf-8")
    first = sorted((root / "images" / "val").iterdir())[0].name
    path.write_text(text.replace(first, named.replace("/", "_")), encoding="utf-8")
    page = tmp_path / "page.html"

    assert main(["check", str(root), "--out", str(page)]) == 1

    shown = page.read_text(encoding="utf-8")
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)" in shown
