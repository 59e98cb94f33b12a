"""Exports that are complete, but leave out or add something that the formats do not prescribe."""

from pathlib import Path

import pytest
from export_files import YOLO_LINE, found, picture, text, xml, xml_object

from anydepth.commands.data import main
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError


@pytest.fixture
def datumaro(tmp_path: Path) -> Path:
    """A VOC export of datumaro: lists name ``b``, which has no objects and therefore no xml."""
    for name in "abc":
        picture(tmp_path / "JPEGImages" / f"{name}.png")
    for name in "ac":
        xml(tmp_path / "Annotations" / f"{name}.xml", xml_object())
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "a", "b")
    text(tmp_path / "ImageSets" / "Main" / "val.txt", "c")
    return tmp_path


def test_listed_images_without_an_xml_may_have_no_objects(datumaro: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: b; restore them, or, .* import with --empty-without-xml"):
        read_voc(datumaro)

    dataset = read_voc(datumaro, empty_without_xml=True)

    assert found(dataset) == {"train": {"a.png": 1, "b.png": 0}, "val": {"c.png": 1}}


def test_the_command_passes_the_option_on(datumaro: Path, tmp_path: Path) -> None:
    assert main(["import", str(datumaro), str(tmp_path / "out"), "--empty-without-xml"]) == 0
    assert (tmp_path / "out" / "images" / "train" / "b.png").is_file()


def test_images_without_an_xml_may_have_no_objects_without_lists(datumaro: Path) -> None:
    for path in (datumaro / "ImageSets" / "Main").iterdir():
        path.unlink()

    assert found(read_voc(datumaro, empty_without_xml=True)) == {
        "train": {"a.png": 1, "b.png": 0, "c.png": 1}
    }
    (skipped,) = read_voc(datumaro).skipped
    assert "--empty-without-xml" in skipped[0]


@pytest.mark.parametrize(
    "line", ["a.png", "a.xml", "JPEGImages/a.png", "JPEGImages/a.png Annotations/a.xml", "./JPEGImages/a.png"]
)
def test_entries_of_lists_may_have_suffixes_and_folders(datumaro: Path, line: str) -> None:
    text(datumaro / "ImageSets" / "Main" / "train.txt", line)

    assert found(read_voc(datumaro)) == {"train": {"a.png": 1}, "val": {"c.png": 1}}


def test_a_name_that_ends_like_the_column_of_a_class_is_found(datumaro: Path) -> None:
    (datumaro / "JPEGImages" / "a.png").rename(datumaro / "JPEGImages" / "a 1.png")
    (datumaro / "Annotations" / "a.xml").rename(datumaro / "Annotations" / "a 1.xml")
    text(datumaro / "ImageSets" / "Main" / "train.txt", "a 1")

    assert found(read_voc(datumaro))["train"] == {"a 1.png": 1}


@pytest.mark.parametrize("empty", ["test", "valid"])
def test_an_empty_folder_is_no_split(tmp_path: Path, empty: str) -> None:
    for root in (tmp_path / "voc", tmp_path / "yolo"):
        picture(root / "train" / "a.png")
        (root / empty).mkdir(parents=True)
    xml(tmp_path / "voc" / "train" / "a.xml", xml_object())
    text(tmp_path / "yolo" / "train" / "a.txt", YOLO_LINE)
    text(tmp_path / "yolo" / "classes.txt", "bee")

    for dataset in (read_voc(tmp_path / "voc"), read_yolo(tmp_path / "yolo")):
        assert found(dataset) == {"train": {"a.png": 1}}
        assert [reason for reason, _ in dataset.skipped] == ["splits without images"]


# -- YOLO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{}/classes.txt", "{}/labels/classes.txt", "labels/{}/classes.txt"])
def test_names_of_classes_may_lie_in_the_splits(tmp_path: Path, place: str) -> None:
    for split in ("train", "val"):
        image = "images/{}/a.png" if place.startswith("labels") else "{}/images/a.png"
        path = picture(tmp_path / image.format(split))
        text(Path(str(path).replace("images", "labels")).with_suffix(".txt"), YOLO_LINE)
        text(tmp_path / place.format(split), "bee", "wasp")

    dataset = read_yolo(tmp_path)

    assert dataset.class_names == ("bee", "wasp")
    assert found(dataset) == {"train": {"a.png": 1}, "val": {"a.png": 1}}


def test_different_names_in_the_splits_are_refused(tmp_path: Path) -> None:
    for split, names in (("train", ("bee", "wasp")), ("val", ("wasp", "bee"))):
        picture(tmp_path / split / "a.png")
        text(tmp_path / split / "a.txt", YOLO_LINE)
        text(tmp_path / split / "classes.txt", *names)

    with pytest.raises(DataError, match=r"train/classes\.txt and .*val/classes\.txt name different classes"):
        read_yolo(tmp_path)


def test_an_empty_line_among_the_names_of_classes_is_refused(tmp_path: Path) -> None:
    """Without it, all later classes would get the number of their neighbour."""
    picture(tmp_path / "a.png")
    text(tmp_path / "a.txt", "2 0.5 0.5 0.2 0.4")
    text(tmp_path / "classes.txt", "bee", "", "wasp", "")

    with pytest.raises(DataError, match=r"classes\.txt, line 2: is empty; give one class name per line"):
        read_yolo(tmp_path)


def test_a_test_split_of_roboflow_that_is_not_there_is_named(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "images" / "a.png")
        text(tmp_path / split / "labels" / "a.txt", YOLO_LINE)
    paths = ("train: ../train/images", "val: ../valid/images", "test: ../test/images")
    text(tmp_path / "data.yaml", *paths, "nc: 1", "names: ['bee']")

    dataset = read_yolo(tmp_path)

    assert found(dataset) == {"train": {"a.png": 1}, "val": {"a.png": 1}}
    assert dataset.skipped == [("splits that are listed, but not there", "test: ../test/images")]


def test_a_validation_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "images" / "a.png")
    text(tmp_path / "train" / "labels" / "a.txt", YOLO_LINE)
    text(tmp_path / "data.yaml", "train: train/images", "val: valid/images", "names: [bee]")

    with pytest.raises(DataError, match="'val' is valid/images, but there is no"):
        read_yolo(tmp_path)


@pytest.mark.parametrize("line", [r"images\sub\cafe.png", "images/sub/cafe\u0301.png"])
def test_lists_may_be_written_by_other_systems(tmp_path: Path, line: str) -> None:
    name = "caf\u00e9" if "\u0301" in line else "cafe"
    picture(tmp_path / "images" / "sub" / f"{name}.png")
    text(tmp_path / "labels" / "sub" / f"{name}.txt", YOLO_LINE)
    text(tmp_path / "train.txt", line)
    text(tmp_path / "classes.txt", "bee")

    assert found(read_yolo(tmp_path)) == {"train": {f"{name}.png": 1}}
