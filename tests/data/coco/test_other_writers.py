"""COCO jsons as other tools write them: without sizes or ids, with other ids, and with other spellings."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from coco_files import MakeCoco
from PIL import Image

from anydepth.data.coco.index import CocoIndex
from anydepth.data.datamodule import CocoDataModule
from anydepth.data.errors import DataError, DataWarning
from documents import DOCS, write_files

CAT: dict[str, Any] = {"image_id": 100, "category_id": 3, "bbox": [5, 6, 20, 10]}
DOG: dict[str, Any] = {"image_id": 80, "category_id": 7, "bbox": [1, 2, 3, 4]}


def test_categories_of_other_ids_are_matched_by_name(make_coco: MakeCoco) -> None:
    """luxonis-ml and labelme2coco number the classes of each split in the order of their first object."""
    train = make_coco(annotations=[CAT, DOG])
    swapped = [{**CAT, "category_id": 7}, {**DOG, "category_id": 3}]
    val = make_coco(annotations=swapped, categories=((3, "dog"), (7, "cat")), folder="val")
    reports: list[str] = []
    reference = CocoIndex.load(train.json_path, train.images)

    index = CocoIndex.load(val.json_path, val.images, categories=reference.categories, report=reports.append)

    assert index.labels.tolist() == reference.labels.tolist() == [0, 1]
    assert index.categories == reference.categories
    assert [entry["category_id"] for entry in index.to_coco_dict()["annotations"]] == [3, 7]
    (report,) = reports
    assert "ids of its categories differ from those of the training split" in report
    assert "matched by name" in report


def test_some_categories_of_other_ids_are_matched_by_name(make_coco: MakeCoco) -> None:
    train = make_coco(annotations=[CAT, DOG])
    val = make_coco(annotations=[{**DOG, "category_id": 0}], categories=((0, "dog"),), folder="val")
    reference = CocoIndex.load(train.json_path, train.images)

    with pytest.warns(DataWarning, match="matched by name") as caught:
        index = CocoIndex.load(val.json_path, val.images, categories=reference.categories)

    assert index.labels.tolist() == [1]
    assert len(caught) == 1


def test_the_slow_reader_matches_by_name_too(make_coco: MakeCoco) -> None:
    train = make_coco(annotations=[CAT, DOG])
    val = make_coco(annotations=[{**DOG, "category_id": 0.0}], categories=((0, "dog"),), folder="val")
    reference = CocoIndex.load(train.json_path, train.images)

    with pytest.warns(DataWarning, match="matched by name"):
        index = CocoIndex.load(val.json_path, val.images, categories=reference.categories)

    assert index.labels.tolist() == [1]


def test_an_annotation_of_a_category_that_only_train_has_is_refused_if_ids_differ(
    make_coco: MakeCoco,
) -> None:
    train = make_coco(annotations=[CAT, DOG])
    val = make_coco(annotations=[CAT], categories=((0, "dog"),), folder="val")
    reference = CocoIndex.load(train.json_path, train.images)

    with pytest.raises(DataError, match="category_id 3 is not among the categories"):
        CocoIndex.load(val.json_path, val.images, categories=reference.categories)


@pytest.mark.parametrize("categories", [((3, "cat"), (8, "zebra")), ((0, "cat"), (1, "cat"))])
def test_names_that_are_unknown_or_double_are_refused(
    make_coco: MakeCoco, categories: tuple[tuple[int, str], ...]
) -> None:
    train = make_coco(annotations=[CAT, DOG])
    val = make_coco(categories=categories, folder="val")

    with pytest.raises(DataError, match="does not have the categories"):
        CocoIndex.load(
            val.json_path,
            val.images,
            categories=CocoIndex.load(train.json_path, train.images).categories,
        )


def test_a_data_set_whose_splits_number_classes_differently_trains(make_coco: MakeCoco) -> None:
    train = make_coco(annotations=[CAT, DOG])
    make_coco(annotations=[{**CAT, "category_id": 1}], categories=((1, "cat"),), folder="val")
    data = CocoDataModule(input_size=(32, 32), batch_size=1, num_workers=0, root=train.json_path.parents[1])

    with pytest.warns(UserWarning, match="matched by name"):
        assert data.val_index.labels.tolist() == [0]
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize("change", [{"height": None}, {"width": None, "height": None}, {}])
def test_sizes_that_are_missing_are_those_of_the_pictures(
    make_coco: MakeCoco, change: dict[str, None]
) -> None:
    files = make_coco(annotations=[CAT])
    for image in files.document["images"]:
        image |= change
        if not change:
            del image["height"], image["width"]
    files.rewrite()
    reports: list[str] = []

    index = CocoIndex.load(files.json_path, files.images, report=reports.append)

    assert index.sizes.tolist() == [[40, 60], [50, 30], [20, 20]]
    assert index.read_image(0).shape == (3, 40, 60)
    (report,) = reports
    assert "3 images have no height or width, which were taken from the pictures" in report


def test_a_size_that_is_missing_is_that_of_the_upright_picture(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT])
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotated by 90 degrees.
    Image.new("RGB", (60, 40)).save(files.images / "turned.jpg", exif=exif)
    files.document["images"][0] |= {"file_name": "turned.jpg", "height": None, "width": None}

    index = CocoIndex.load(files.rewrite().json_path, files.images, report=lambda _: None)

    assert index.sizes[0].tolist() == [60, 40]


def test_a_size_without_a_picture_to_take_it_from_is_refused(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT])
    files.document["images"][0]["height"] = None
    (files.images / "0.png").unlink()

    with pytest.raises(DataError, match=r"image id 100: 'height' is None, and there is no .*0\.png"):
        CocoIndex.load(files.rewrite().json_path, files.images)


def test_annotations_without_ids_are_numbered(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT, DOG, CAT])
    for entry in files.document["annotations"][1:]:
        del entry["id"]
    reports: list[str] = []

    index = CocoIndex.load(files.rewrite().json_path, files.images, report=reports.append)

    # Sorted by image; the first has the id 500 that it was written with.
    assert index.annotation_ids.tolist() == [500, 502, 501]
    assert "2 annotations have no id and were numbered" in reports[0]


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\a.png", "sub/a.png"),
        ("caf\u00e9/a.png", "cafe\u0301/a.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("b%20b.png", "b b.png"),
        ("A.PNG", "a.png"),
    ],
)
def test_files_are_found_in_other_spellings(make_coco: MakeCoco, written: str, there: str) -> None:
    files = make_coco(annotations=[CAT])
    (files.images / there).parent.mkdir(exist_ok=True)
    (files.images / "0.png").rename(files.images / there)
    files.document["images"][0]["file_name"] = written

    index = CocoIndex.load(files.rewrite().json_path, files.images)

    assert index.file_name(0) == there
    assert index.read_image(0).shape == (3, 40, 60)


def test_a_spelling_of_two_files_is_neither(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT])
    for name in ("caf\u00e9.png", "CAFE\u0301.png"):
        (files.images / name).write_bytes((files.images / "0.png").read_bytes())
    files.document["images"][0]["file_name"] = "cafe\u0301.png"

    with pytest.raises(DataError, match="1 of 3 images"):
        CocoIndex.load(files.rewrite().json_path, files.images)


def test_a_missing_image_is_never_the_image_of_another_entry(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT])
    files.document["images"][1]["file_name"] = "0.PNG"

    with pytest.raises(DataError, match=r"1 of 3 images .*: 0\.PNG \(image id 90\)"):
        CocoIndex.load(files.rewrite().json_path, files.images)


def test_local_files_of_label_studio_are_refused_and_the_documented_script_mends_them(
    make_coco: MakeCoco, tmp_path: Path
) -> None:
    files = make_coco(annotations=[CAT])
    (files.images / "0.png").rename(files.images / "a b.png")
    files.document["images"][0]["file_name"] = "/data/local-files/?d=train/a%20b.png"
    for image in files.document["images"][1:]:
        image["file_name"] = f"train/{image['file_name']}"
    with pytest.raises(DataError, match=r"Label Studio.* keep what follows '\?d='"):
        CocoIndex.load(files.rewrite().json_path, files.images.parent)

    write_files(DOCS / "data.md", tmp_path)
    subprocess.run([sys.executable, tmp_path / "shorten_names.py", files.json_path], check=True)

    index = CocoIndex.load(files.json_path, files.images.parent)
    assert [index.file_name(row) for row in range(3)] == ["train/a b.png", "train/1.png", "train/2.png"]
