"""Data sets of other formats written as COCO: completely or not at all, and read back by the data module."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anydepth.data.convert.dataset import (
    ForeignDataset,
    ForeignImage,
    ForeignObject,
    split_off_val,
    write_coco,
)
from anydepth.data.convert.folders import pictures_below
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.errors import DataError


@pytest.fixture
def dataset(tmp_path: Path) -> ForeignDataset:
    """Three training images, one of them without objects and one in a subfolder, and a validation image."""
    images = {}
    for name in ("a.png", "sub/a.png", "empty.png", "v.png"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        images[name] = path
    cat = ForeignObject("cat", (1, 2, 11, 22), "x")
    crowd = ForeignObject("dog", (0, 0, 30, 30), "x", ignored=True)
    outlined = ForeignObject("dog", (10, 10, 20, 20), "x", polygon=(10, 10, 20, 10, 10, 20))
    return ForeignDataset(
        ("dog", "cat"),
        {
            "train": [
                ForeignImage(images["a.png"], (40, 60), (cat, crowd)),
                ForeignImage(images["sub/a.png"], (40, 60), (outlined,)),
                ForeignImage(images["empty.png"], (40, 60), ()),
            ],
            "val": [ForeignImage(images["v.png"], (40, 60), (cat,))],
        },
    )


def json_of(out: Path, split: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
    return document


def test_data_module_reads_what_was_written(dataset: ForeignDataset, tmp_path: Path) -> None:
    write_coco(dataset, tmp_path / "out")

    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=tmp_path / "out")
    assert data.class_names == ("dog", "cat")
    index = data.index("train")
    assert [index.file_name(row) for row in range(3)] == ["a.png", "sub/a.png", "empty.png"]
    boxes, labels = index.training_boxes(0)
    assert (boxes.tolist(), labels.tolist()) == ([[1, 2, 11, 22]], [1])
    assert index.crowd.tolist() == [False, True, False]
    assert len(index.training_boxes(2)[1]) == 0
    assert index.repairs.first_ids == ()
    assert len(list(data.val_dataloader())) == 1


def test_area_is_that_of_the_outline_if_there_is_one(dataset: ForeignDataset, tmp_path: Path) -> None:
    write_coco(dataset, tmp_path / "out")

    annotations = json_of(tmp_path / "out", "train")["annotations"]
    assert [entry["area"] for entry in annotations] == [200, 900, 50]
    assert annotations[2]["segmentation"] == [[10, 10, 20, 10, 10, 20]]


def test_images_keep_their_bytes(dataset: ForeignDataset, tmp_path: Path) -> None:
    write_coco(dataset, tmp_path / "out")

    for image, name in zip(dataset.splits["train"], ("a.png", "sub/a.png", "empty.png"), strict=True):
        assert (tmp_path / "out" / "images" / "train" / name).read_bytes() == image.path.read_bytes()


def test_images_are_hard_links_where_possible_and_symbolic_ones_on_demand(
    dataset: ForeignDataset, tmp_path: Path
) -> None:
    write_coco(dataset, tmp_path / "hard")
    write_coco(dataset, tmp_path / "soft", link="symbolic")

    source = dataset.splits["val"][0].path
    assert (tmp_path / "hard" / "images" / "val" / "v.png").samefile(source)
    assert not (tmp_path / "hard" / "images" / "val" / "v.png").is_symlink()
    assert (tmp_path / "soft" / "images" / "val" / "v.png").readlink() == source.resolve()


def test_images_are_copied_where_links_are_impossible(
    dataset: ForeignDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_coco(dataset, tmp_path / "out")

    copy = tmp_path / "out" / "images" / "val" / "v.png"
    assert not copy.samefile(dataset.splits["val"][0].path)
    assert copy.read_bytes() == dataset.splits["val"][0].path.read_bytes()


def test_failure_in_the_middle_leaves_nothing(dataset: ForeignDataset, tmp_path: Path) -> None:
    dataset.splits["val"][0].path.unlink()

    with pytest.raises(DataError, match="out: cannot be written"):
        write_coco(dataset, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("filled", [True, False], ids=["filled", "empty"])
def test_only_an_empty_folder_is_replaced(dataset: ForeignDataset, tmp_path: Path, filled: bool) -> None:
    (tmp_path / "out").mkdir()
    if filled:
        (tmp_path / "out" / "mine").write_text("kept")
        with pytest.raises(DataError, match="out: not an empty folder; give a new folder"):
            write_coco(dataset, tmp_path / "out")
        assert (tmp_path / "out" / "mine").read_text() == "kept"
    else:
        write_coco(dataset, tmp_path / "out")
        assert (tmp_path / "out" / "images").is_dir()


def test_a_data_set_without_training_boxes_is_refused(dataset: ForeignDataset, tmp_path: Path) -> None:
    images = dataset.splits["train"]
    dataset.splits["train"] = [images[2]]

    with pytest.raises(DataError, match="no training image holds a box to learn from"):
        write_coco(dataset, tmp_path / "out")


# -- a validation split -----------------------------------------------------------------------------------


def many(count: int) -> ForeignDataset:
    images = [ForeignImage(Path(f"{number}.png"), (1, 1), ()) for number in range(count)]
    return ForeignDataset(("cat",), {"train": images})


def stems(images: list[ForeignImage]) -> list[int]:
    return [int(image.path.stem) for image in images]


@pytest.mark.parametrize(("count", "share", "val"), [(100, 0.1, 10), (2, 0.1, 1), (3, 0.99, 2), (7, 0.3, 2)])
def test_share_of_the_training_images_becomes_validation(count: int, share: float, val: int) -> None:
    dataset = many(count)

    split_off_val(dataset, share, seed=0)

    assert len(dataset.splits["val"]) == val
    assert sorted(stems(dataset.splits["train"]) + stems(dataset.splits["val"])) == list(range(count))
    assert "the data has no validation split" in dataset.remarks[0]


def test_choice_is_that_of_the_seed() -> None:
    chosen = []
    for seed in (0, 0, 1):
        dataset = many(50)
        split_off_val(dataset, 0.2, seed)
        chosen.append(stems(dataset.splits["val"]))

    assert chosen[0] == chosen[1] != chosen[2]


def test_a_validation_split_that_is_there_stays(dataset: ForeignDataset) -> None:
    before = {split: list(images) for split, images in dataset.splits.items()}

    split_off_val(dataset, 0.5, seed=0)

    assert dataset.splits == before


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="got 1 training images, expected at least 2"):
        split_off_val(many(1), 0.1, seed=0)


def test_hidden_files_are_not_pictures(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    for name in ("._a.jpg", ".cache/b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"")

    assert pictures_below(tmp_path) == [tmp_path / "c.jpg"]
