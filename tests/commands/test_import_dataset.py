"""``anydepth-data import``, from the command line to the data module."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anydepth.commands.data import main
from anydepth.data.datamodule import CocoDataModule

BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for number in range(10):
        image = picture(root / f"{number}.png")
        flag = f"<difficult>{int(number == 0)}</difficult>"
        image.with_suffix(".xml").write_text(
            f"<annotation><object><name>bee</name>{flag}{BOX}</object></annotation>"
        )
    return root


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        picture(root / "images" / split / "a.png")
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [bee]\n")
    return root


def test_voc_folder_becomes_a_data_set(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["import", str(voc), str(out), "--val-share", "0.2", "--seed", "3"]) == 0

    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=out)
    assert (len(data.index("train")), len(data.val_index)) == (8, 2)
    shown = capsys.readouterr().out
    assert f"anydepth-train data=custom data.root={out}" in shown
    assert "note: the data has no validation split: 2 training images were moved to one" in shown
    assert "note: pixels are taken to count from 1, as in the VOC challenge. Of 10 boxes, 0 start" in shown
    table = [line.split() for line in shown.splitlines()]
    assert ["images", "8", "2"] in table
    assert ["bee", "7", "2"] in table or ["bee", "8", "1"] in table


def test_yolo_folder_becomes_a_data_set_of_links(yolo: Path, tmp_path: Path) -> None:
    assert main(["import", str(yolo), str(tmp_path / "out"), "--link"]) == 0

    assert (tmp_path / "out" / "images" / "train" / "a.png").is_symlink()
    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=tmp_path / "out")
    assert data.val_index.boxes_xywh.tolist() == [[15, 10, 30, 20]]


def test_what_was_left_out_is_listed_with_its_reason(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (yolo / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0 0\n")

    main(["import", str(yolo), str(tmp_path / "out")])

    listed = f"skipped 1 boxes without a positive size: {yolo / 'labels' / 'train' / 'a.txt'}, line 2"
    assert listed in capsys.readouterr().out


def test_options_of_voc_reach_it(voc: Path, tmp_path: Path) -> None:
    main(["import", str(voc), str(tmp_path / "out"), "--zero-based", "--keep-difficult"])

    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=tmp_path / "out")
    assert data.index("train").boxes_xywh[0].tolist() == [2, 3, 7, 5]
    assert not data.index("train").crowd.any()
    assert not data.val_index.crowd.any()


@pytest.mark.parametrize("option", ["--zero-based", "--keep-difficult"])
def test_options_of_voc_are_refused_for_yolo(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["import", str(yolo), str(tmp_path / "out"), option]) == 1
    assert "are for Pascal VOC, but this is a YOLO data set" in capsys.readouterr().err


def test_error_is_one_line_and_nothing_is_written(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (yolo / "labels" / "val" / "a.txt").write_text("7 0.5 0.5 0.5 0.5\n")

    assert main(["import", str(yolo), str(tmp_path / "out")]) == 1
    path = yolo / "labels" / "val" / "a.txt"
    assert capsys.readouterr().err == (
        f"error: {path}, line 1: got class 7, expected one of [0] from {yolo / 'data.yaml'}\n"
    )
    assert not (tmp_path / "out").exists()


def test_existing_result_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")

    assert main(["import", "nowhere", str(tmp_path / "out")]) == 1
    assert "not an empty folder" in capsys.readouterr().err
