"""Checks of a data set: what is wrong with one picture or box is found, and costs no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CocoFiles, MakeCoco
from PIL import Image

from anydepth.data.check.dataset import CheckedDataset, check_dataset
from anydepth.data.coco.layout import Split


def box(x: float, y: float, w: float, h: float, image_id: int = 100, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 3, "bbox": [x, y, w, h], **more}


FINE = box(5, 6, 20, 10)


def check(*files: CocoFiles, workers: int = 2) -> CheckedDataset:
    splits = {part.images.name: Split(part.json_path, part.images) for part in files}
    return check_dataset(splits, workers=workers, progress=lambda name, total: lambda: None)


def titles(checked: CheckedDataset, severity: str) -> dict[str, int]:
    return {found.title: found.count for found in checked.all_findings if found.severity == severity}


def test_counts_sizes_and_classes(make_coco: MakeCoco) -> None:
    files = make_coco(
        annotations=[
            FINE,
            box(0, 0, 40, 30),
            box(1, 1, 10, 10, image_id=80, category_id=7),
            FINE | {"iscrowd": 1},
        ]
    )

    checked = check(files)

    (split,) = checked.splits
    assert split.statistics is not None
    facts = dict(split.statistics.facts)
    assert (facts["images"], facts["images without boxes"], facts["boxes"], facts["crowd regions"]) == (
        "3",
        "1",
        "3",
        "1",
    )
    # 20 x 10 and 10 x 10 are below 32 x 32; 40 x 30 = 1200 is between 32² = 1024 and 96².
    assert (facts["small boxes, below 32² pixels"], facts["medium boxes"]) == ("2", "1")
    classes = [(count.name, count.boxes, count.images) for count in split.statistics.classes]
    assert classes == [("cat", 2, 1), ("dog", 1, 1)]
    sides = dict(split.statistics.sides)
    assert (sides["image height"][0], sides["image height"][2], sides["image height"][4]) == (20, 40, 50)
    assert checked.problems == 0


# Each change of a picture file, and what the check says about it.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable image"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a readable image"),
    "other size": (lambda path: Image.new("RGB", (7, 9)).save(path), r"(9, 7) pixels (height, width)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_every_damaged_picture_is_found(
    make_coco: MakeCoco, damage: Callable[[Path], object], message: str
) -> None:
    """Truncated files have a header that is fine: the pixels must be read."""
    files = make_coco(sizes=[(40, 60)] * 5, annotations=[FINE])
    damage(files.images / "1.png")
    damage(files.images / "3.png")

    checked = check(files)

    (finding,) = [found for found in checked.all_findings if found.severity == "problem"]
    assert (finding.title, finding.count) == ("pictures that cannot be used", 2)
    assert all(message in example for example in finding.examples)
    assert "image id 90" in finding.examples[0]


def test_doubtful_boxes_are_sorted_by_kind(make_coco: MakeCoco) -> None:
    files = make_coco(
        annotations=[
            FINE,
            FINE,  # twice
            FINE | {"category_id": 7},  # once more, as another class
            box(5, 5, 1, 20),  # a pixel wide
            box(0, 0, 60, 40),  # the whole image
            box(0, 0, 60, 1.1),  # a line, also below two pixels
            box(50, 30, 20, 20),  # leaves the image of 60 x 40
            box(70, 50, 5, 5),  # outside
            box(5, 5, 0, 5),  # empty
            box(5, float("nan"), 5, 5),
        ]
    )

    assert titles(check(files), "doubt") == {
        "boxes with NaN or infinity, which are dropped": 1,
        "boxes without a positive size, which are dropped": 1,
        "boxes outside their image, which are dropped": 1,
        "boxes that leave their image by more than a pixel, which are clipped": 1,
        "boxes with a side below 2 pixels": 2,
        "boxes that cover at least 99% of their image": 1,
        "boxes more than 50 times as long as wide": 1,
        "boxes that an image has twice, with one class": 1,
        "boxes that an image has twice, with different classes": 1,
    }


def test_doubtful_boxes_name_image_annotation_class_and_box(make_coco: MakeCoco) -> None:
    (finding,) = [
        found
        for found in check(make_coco(annotations=[FINE, box(5, 5, 1, 20)])).all_findings
        if "below 2 pixels" in found.title
    ]

    assert finding.examples == ("0.png: annotation 501, cat: [5, 5, 1, 20]",)


def test_equal_pixels_are_found_in_other_files_and_splits(make_coco: MakeCoco) -> None:
    train = make_coco(sizes=[(20, 20)] * 3, annotations=[FINE])
    val = make_coco(sizes=[(20, 20)] * 2, annotations=[FINE], folder="val")
    with Image.open(train.images / "0.png") as picture:
        picture.save(train.images / "2.png", compress_level=0)  # Other bytes, the same pixels.
        picture.save(val.images / "1.png", compress_level=1)

    checked = check(train, val)

    (shared,) = checked.findings
    assert shared.title == "pictures that are in several splits"
    assert shared.examples == ("train: 0.png = train: 2.png = val: 1.png",)


def test_pictures_and_classes_that_are_not_used_are_named(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[FINE])
    Image.new("RGB", (5, 5)).save(files.images / "stranger.png")

    found = {finding.title: finding.examples for finding in check(files).all_findings}

    assert found == {
        "pictures that no json names": (str(files.images / "stranger.png"),),
        "classes without a box": ("dog",),
    }


def test_a_json_that_cannot_be_read_costs_no_other_split(make_coco: MakeCoco) -> None:
    train, val = make_coco(annotations=[FINE]), make_coco(annotations=[FINE], folder="val")
    val.json_path.write_text('{"images": [')

    checked = check(train, val)

    assert checked.splits[0].statistics is not None
    assert titles(checked, "problem") == {"json that cannot be read": 1}
    assert "truncated or damaged" in checked.splits[1].findings[0].examples[0]


def test_a_training_split_without_boxes_is_a_problem(make_coco: MakeCoco) -> None:
    assert titles(check(make_coco(annotations=[FINE | {"iscrowd": 1}])), "problem") == {
        "training splits without a box to learn from": 1
    }


@pytest.mark.parametrize("annotations", [[], [FINE | {"iscrowd": 1}]], ids=["none", "crowd alone"])
def test_a_validation_split_without_boxes_is_a_problem(
    make_coco: MakeCoco, annotations: list[dict[str, object]]
) -> None:
    train, val = make_coco(annotations=[FINE]), make_coco(annotations=annotations, folder="val")
    assert titles(check(train, val), "problem") == {"splits without a box, on which no AP can be measured": 1}


@pytest.mark.filterwarnings("ignore:pictures of 16")
def test_pictures_of_different_bits_are_a_doubt(make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dark picture of 16 bits among others is taken for one of 12, and comes out 16 times as bright."""
    files = make_coco(sizes=[(40, 60)] * 4, annotations=[FINE])
    for name, largest in (("0", 60_000), ("1", 3_000), ("2", 50_000)):
        values = np.linspace(0, largest, 40 * 60).astype(np.uint16).reshape(40, 60)
        Image.fromarray(values).save(files.images / f"{name}.png")

    (found,) = (item for item in check(files).all_findings if item.title.startswith("16-bit pictures"))

    assert found.severity == "doubt"
    assert "ANYDEPTH_IMAGE_BITS" in found.title
    assert list(found.examples) == [
        f"1 taken to use 12 bits, e.g. {files.images / '1.png'}",
        f"2 taken to use 16 bits, e.g. {files.images / '0.png'}",
    ]
    monkeypatch.setenv("ANYDEPTH_IMAGE_BITS", "16")
    assert not any(item.title.startswith("16-bit") for item in check(files).all_findings)


def test_the_number_of_threads_changes_nothing(make_coco: MakeCoco) -> None:
    files = make_coco(sizes=[(40, 60)] * 20, annotations=[FINE])
    (files.images / "7.png").write_bytes(b"")

    assert check(files, workers=1) == check(files, workers=4)
