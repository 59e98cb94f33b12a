"""Lists and folders of splits, and names of label files, as other tools write them: read or refused."""

from pathlib import Path

import pytest
from export_files import YOLO_LINE, found, picture, text, xml, xml_object

from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError


def darknet(root: Path, *, prefix: str = "data/", valid: str = "valid", data: bool = True) -> Path:
    """Write what CVAT exports as "YOLO 1.1": paths in it start with ``data/``, a folder that is not there."""
    for split, names in (("train", "ab"), (valid, "c")):
        for name in names:
            picture(root / f"obj_{split}_data" / f"{name}.png")
            text(root / f"obj_{split}_data" / f"{name}.txt", YOLO_LINE)
        text(root / f"{split}.txt", *(f"{prefix}obj_{split}_data/{name}.png" for name in names))
    text(root / "obj.names", "bee")
    if data:
        lines = ("classes = 1", f"train = {prefix}train.txt", f"valid = {prefix}{valid}.txt")
        text(root / "obj.data", *lines, f"names = {prefix}obj.names", "backup = backup/")
    return root


SPLIT = {"train": {"a.png": 1, "b.png": 1}, "val": {"c.png": 1}}


@pytest.mark.parametrize("prefix", ["data/", "", "./"])
@pytest.mark.parametrize("data", [True, False], ids=["obj.data", "lists alone"])
def test_lists_of_darknet_are_the_splits(tmp_path: Path, prefix: str, data: bool) -> None:
    assert found(read_yolo(darknet(tmp_path, prefix=prefix, data=data))) == SPLIT


@pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
def test_lists_of_darknet_have_several_names(tmp_path: Path, valid: str) -> None:
    assert found(read_yolo(darknet(tmp_path, valid=valid, data=False))) == SPLIT


def test_the_data_file_of_darknet_can_be_given(tmp_path: Path) -> None:
    darknet(tmp_path)

    assert found(read_yolo(tmp_path / "obj.data")) == SPLIT


def test_lists_of_a_data_yaml_may_name_the_folder_of_the_export(tmp_path: Path) -> None:
    """CVAT's "Ultralytics YOLO": ``train.txt`` holds ``data/images/train/a.png``."""
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / f"{split}.png")
        text(tmp_path / "labels" / split / f"{split}.txt", YOLO_LINE)
        text(tmp_path / f"{split}.txt", f"data/images/{split}/{split}.png")
    text(tmp_path / "data.yaml", "path: .", "train: train.txt", "val: val.txt", "names: {0: bee}")

    assert found(read_yolo(tmp_path)) == {"train": {"train.png": 1}, "val": {"val.png": 1}}


def test_a_list_that_is_not_named_after_a_split_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text(tmp_path / "a.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")
    text(tmp_path / "holdout.txt", "a.png")

    with pytest.raises(DataError, match=r"holdout\.txt lists images, but .* rename it to train\.txt, val"):
        read_yolo(tmp_path)


def test_the_label_file_of_a_picture_is_no_list(tmp_path: Path) -> None:
    for name in ("a", "test"):
        picture(tmp_path / f"{name}.png")
        text(tmp_path / f"{name}.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")

    assert found(read_yolo(tmp_path)) == {"train": {"a.png": 1, "test.png": 1}}


def test_data_files_of_other_programs_are_ignored(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text(tmp_path / "a.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")
    (tmp_path / "cache.data").write_bytes(b"\xff\xfe=\x00")

    assert found(read_yolo(tmp_path)) == {"train": {"a.png": 1}}


def test_listed_images_may_not_leave_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "outside.png")
    root = darknet(tmp_path / "set")
    text(root / "train.txt", "../outside.png")

    with pytest.raises(DataError, match=r"train\.txt, line 1: leads to .*outside\.png; which is outside"):
        read_yolo(root)


@pytest.mark.parametrize("names", [("train2017", "val2017"), ("Training", "Validation")])
def test_folders_of_splits_have_several_names(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        picture(tmp_path / "images" / name / "a.png")
        text(tmp_path / "labels" / name / "a.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")

    assert found(read_yolo(tmp_path)) == {"train": {"a.png": 1}, "val": {"a.png": 1}}


def test_a_folder_beside_the_splits_is_named(tmp_path: Path) -> None:
    for name in ("train", "val", "night"):
        picture(tmp_path / "images" / name / "a.png")
        text(tmp_path / "labels" / name / "a.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")

    dataset = read_yolo(tmp_path)

    assert set(dataset.splits) == {"train", "val"}
    reason = "folders with images that are not named after a split (train, val or test)"
    assert dataset.skipped == [(reason, str(tmp_path / "images" / "night"))]


# -- Pascal VOC -------------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in "abc":
        picture(tmp_path / "JPEGImages" / f"{name}.png")
        xml(tmp_path / "Annotations" / f"{name}.xml", xml_object())
    return tmp_path


@pytest.mark.parametrize("folder", ["ImageSets/Main", "ImageSets", "."])
@pytest.mark.parametrize("names", [("Train", "Validation"), ("train", "valid"), ("train_list", "val_list")])
def test_lists_of_voc_have_several_names(voc: Path, folder: str, names: tuple[str, str]) -> None:
    text(voc / folder / f"{names[0]}.txt", "a", "b")
    text(voc / folder / f"{names[1]}.txt", "c")

    assert found(read_voc(voc)) == SPLIT


def test_one_list_of_another_name_is_for_training(voc: Path) -> None:
    """CVAT and datumaro write ``default.txt`` for images without a subset."""
    text(voc / "ImageSets" / "Main" / "default.txt", "a", "c")

    assert found(read_voc(voc)) == {"train": {"a.png": 1, "c.png": 1}}


@pytest.mark.parametrize("names", [("day", "night"), ("cat_train", "cat_val")])
def test_lists_without_a_split_are_refused(voc: Path, names: tuple[str, str]) -> None:
    text(voc / "ImageSets" / "Main" / f"{names[0]}.txt", "a", "b")
    text(voc / "ImageSets" / "Main" / f"{names[1]}.txt", "c")

    with pytest.raises(DataError, match=r"Main: .*\.txt, .*\.txt are not named after a split; rename"):
        read_voc(voc)


def test_lists_beside_those_of_the_splits_are_named(voc: Path) -> None:
    lists = voc / "ImageSets" / "Main"
    text(lists / "train.txt", "a")
    text(lists / "default.txt", "b")
    text(lists / "cat_train.txt", "a 1")

    dataset = read_voc(voc)

    assert found(dataset) == {"train": {"a.png": 1}}
    assert dataset.skipped == [
        ("lists that are not named after a split (train, val or test)", str(lists / "default.txt")),
        ("images that are in no list of a split", str(voc / "JPEGImages" / "b.png")),
        ("images that are in no list of a split", str(voc / "JPEGImages" / "c.png")),
    ]


@pytest.mark.parametrize("inside", ["images/{}", "{}/images"])
def test_folders_of_splits_inside_the_images_are_found(tmp_path: Path, inside: str) -> None:
    for split in ("train", "val"):
        picture(tmp_path / inside.format(split) / f"{split}.png")
        xml(
            tmp_path / inside.format(split).replace("images", "annotations") / f"{split}.xml",
            xml_object(),
        )

    assert found(read_voc(tmp_path)) == {"train": {"train.png": 1}, "val": {"val.png": 1}}


def test_folders_beside_that_of_the_test_split_are_for_training(tmp_path: Path) -> None:
    for folder in ("cats", "dogs", "test"):
        picture(tmp_path / "images" / folder / f"{folder}.png")
        xml(tmp_path / "Annotations" / folder / f"{folder}.xml", xml_object())

    assert found(read_voc(tmp_path)) == {"train": {"cats.png": 1, "dogs.png": 1}, "test": {"test.png": 1}}


# -- names of label files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("b b", "b%20b"),  # Label Studio, local storage
        ("caf\u00e9", "cafe\u0301"),  # composed and, as macOS writes them, decomposed
        ("cafe\u0301", "caf%C3%A9"),
        ("B", "b"),
    ],
)
def test_label_files_of_another_spelling_are_found(tmp_path: Path, image: str, label: str) -> None:
    for root in (tmp_path / "yolo", tmp_path / "voc"):
        picture(root / "images" / f"{image}.png")
    text(tmp_path / "yolo" / "classes.txt", "bee")
    text(tmp_path / "yolo" / "labels" / f"{label}.txt", YOLO_LINE)
    xml(tmp_path / "voc" / "Annotations" / f"{label}.xml", xml_object())

    for dataset in (read_yolo(tmp_path / "yolo"), read_voc(tmp_path / "voc")):
        assert found(dataset) == {"train": {f"{image}.png": 1}}
        assert dataset.skipped == []


def test_a_label_file_of_the_exact_name_belongs_to_nobody_else(tmp_path: Path) -> None:
    for name in ("b b", "b%20b"):
        picture(tmp_path / "images" / f"{name}.png")
    text(tmp_path / "labels" / "b%20b.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")

    assert found(read_yolo(tmp_path)) == {"train": {"b b.png": 0, "b%20b.png": 1}}


def test_images_and_label_files_without_each_other_get_a_remark(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
    text(tmp_path / "labels" / "a.txt", YOLO_LINE)
    text(tmp_path / "labels" / "b_old.txt", YOLO_LINE)
    text(tmp_path / "classes.txt", "bee")

    dataset = read_yolo(tmp_path)

    assert found(dataset) == {"train": {"a.png": 1, "b.png": 0}}
    (remark,) = dataset.remarks
    assert "1 images have no label file and count as images without objects" in remark
    assert "b.png" in remark
    assert "b_old.txt" in remark
