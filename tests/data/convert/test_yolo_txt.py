"""YOLO text files: boxes, polygons, images without objects, layouts, and messages with file and line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anydepth.data.convert.dataset import ForeignImage
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError


def picture(path: Path, width: int = 100, height: int = 50, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path, exif=exif)
    return path


def label(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set with the image ``a`` in train, and a data.yaml."""
    picture(tmp_path / "images" / "train" / "a.jpg")
    label(tmp_path / "labels" / "train" / "a.txt", "1 0.5 0.5 0.2 0.4")
    (tmp_path / "data.yaml").write_text("train: images/train\nnc: 2\nnames: [cat, dog]\n")
    return tmp_path


def train_of(source: Path) -> list[ForeignImage]:
    return read_yolo(source).splits["train"]


# -- boxes ------------------------------------------------------------------------------------------------


def test_box_is_centre_and_size_in_shares_of_the_image(root: Path) -> None:
    ((item,),) = (image.objects for image in train_of(root))

    assert item.class_name == "dog"
    assert item.box_xyxy == pytest.approx((40, 15, 60, 35))
    assert item.polygon is None


def test_line_endings_blank_lines_and_a_byte_order_mark_do_no_harm(root: Path) -> None:
    text = b"\xef\xbb\xbf0 .5 .5 .2 .4\r\n\r\n  1\t0.5 0.5 1e-1 0.4  \r\n"
    (root / "labels" / "train" / "a.txt").write_bytes(text)

    assert [item.class_name for item in train_of(root)[0].objects] == ["cat", "dog"]


def test_polygon_becomes_the_box_around_it_and_is_kept(root: Path) -> None:
    label(root / "labels" / "train" / "a.txt", "0 0.1 0.2 0.5 0.8 0.3 1.02")

    (item,) = train_of(root)[0].objects

    assert item.box_xyxy == pytest.approx((10, 10, 50, 50))
    assert item.polygon == pytest.approx((10, 10, 50, 40, 30, 50))


def test_four_corners_become_the_upright_box_around_them(root: Path) -> None:
    label(root / "labels" / "train" / "a.txt", "0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5")

    assert train_of(root)[0].objects[0].box_xyxy == pytest.approx((10, 5, 90, 45))


def test_keypoints_are_left_out(root: Path) -> None:
    (root / "data.yaml").write_text("train: images/train\nnames: [cat]\nkpt_shape: [2, 3]\n")
    label(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1")

    (item,) = train_of(root)[0].objects

    assert item.box_xyxy == pytest.approx((40, 15, 60, 35))
    assert item.polygon is None


def test_box_over_the_border_is_clipped(root: Path) -> None:
    label(root / "labels" / "train" / "a.txt", "0 0.0 0.5 0.2 1.2")

    assert train_of(root)[0].objects[0].box_xyxy == pytest.approx((0, 0, 10, 50))


@pytest.mark.parametrize("line", ["0 0.5 0.5 0 0.1", "0 0.5 0.5 -0.1 0.1", "0 0.5 0.5 0.5 0.5 0.5 0.5"])
def test_box_without_an_area_is_left_out_and_listed(root: Path, line: str) -> None:
    path = label(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.1 0.1", line)

    dataset = read_yolo(root)

    assert len(dataset.splits["train"][0].objects) == 1
    assert dataset.skipped == [("boxes without a positive size", f"{path}, line 2")]


# -- images -----------------------------------------------------------------------------------------------


def test_images_without_objects_are_kept(root: Path) -> None:
    picture(root / "images" / "train" / "empty.jpg")
    picture(root / "images" / "train" / "missing.jpg")
    label(root / "labels" / "train" / "empty.txt")

    assert {image.path.stem: len(image.objects) for image in train_of(root)} == {
        "a": 1,
        "empty": 0,
        "missing": 0,
    }


@pytest.mark.parametrize("name", ["x.JPG", "x.png", "x.webp", "deep/images/x.tiff", "x.y.jpeg"])
def test_every_suffix_and_nested_folders_are_found(root: Path, name: str) -> None:
    picture(root / "images" / "train" / name)
    place = name.replace("images/", "labels/")  # The folder nearest to the file is the one that changes.
    top = "images" if place != name else "labels"
    label((root / top / "train" / place).with_suffix(".txt"), "0 0.5 0.5 0.2 0.4")

    assert [len(image.objects) for image in train_of(root)] == [1, 1]


def test_shares_are_of_the_upright_picture(root: Path) -> None:
    picture(root / "images" / "train" / "a.jpg", 100, 50, orientation=6)

    (image,) = train_of(root)

    assert image.size == (100, 50)
    assert image.objects[0].box_xyxy == pytest.approx((20, 30, 30, 70))


def test_broken_picture_and_lonely_label_are_left_out_and_listed(root: Path) -> None:
    (root / "images" / "train" / "broken.jpg").write_bytes(b"no picture")
    orphan = label(root / "labels" / "train" / "orphan.txt", "0 0.5 0.5 0.2 0.4")

    dataset = read_yolo(root)

    assert len(dataset.splits["train"]) == 1
    assert [reason for reason, _ in dataset.skipped] == ["unreadable images", "label files without an image"]
    assert dataset.skipped[1][1] == str(orphan)


# -- layouts ----------------------------------------------------------------------------------------------


def test_the_yaml_file_itself_can_be_given(root: Path) -> None:
    assert len(train_of(root / "data.yaml")) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[no, 1, dog]", ("no", "1", "dog")),
        ("{0: cat, 1: dog}", ("cat", "dog")),
        ("{10: ten, 1: one, 2: two}", ("one", "two", "ten")),
    ],
)
def test_names_keep_their_order_and_spelling(root: Path, names: str, expected: tuple[str, ...]) -> None:
    (root / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")

    assert read_yolo(root).class_names == expected


def test_paths_are_found_from_base_from_file_and_as_exports_write_them(root: Path) -> None:
    picture(root / "v" / "images" / "b.jpg")
    label(root / "v" / "labels" / "b.txt", "0 0.5 0.5 0.2 0.4")
    (root / "list.txt").write_text("./v/images/b.jpg\r\n\n")
    (root / "data.yaml").write_text(
        "path: ../nowhere\ntrain: [images/train, v/images]\nval: ../v/images\ntest: list.txt\nnames: [a, b]\n"
    )

    dataset = read_yolo(root)

    assert {split: len(images) for split, images in dataset.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }


@pytest.mark.parametrize("inside", ["images/{}/x.jpg", "{}/images/x.jpg", "{}/x.jpg"])
def test_folders_are_splits_if_there_is_only_a_list_of_names(tmp_path: Path, inside: str) -> None:
    for split in ("train", "valid"):
        image = picture(tmp_path / inside.format(split))
        label(Path(str(image).replace("images", "labels")).with_suffix(".txt"), "0 0.5 0.5 0.2 0.4")
    (tmp_path / "classes.txt").write_text("bee\n")

    dataset = read_yolo(tmp_path)

    assert {split: len(images[0].objects) for split, images in dataset.splits.items()} == {
        "train": 1,
        "val": 1,
    }


def test_one_folder_of_images_and_labels_is_for_training(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    label(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.4")
    (tmp_path / "classes.txt").write_text("bee\n")

    dataset = read_yolo(tmp_path)

    assert len(dataset.splits["train"][0].objects) == 1
    assert dataset.skipped == []


def test_test_split_without_labels_is_left_out_and_listed(root: Path) -> None:
    picture(root / "images" / "test" / "t.jpg")
    (root / "data.yaml").write_text("train: images/train\ntest: images/test\nnames: [a, b]\n")

    dataset = read_yolo(root)

    assert set(dataset.splits) == {"train"}
    assert dataset.skipped == [("splits without any label file", "test")]


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.4", r"got class 2, expected one of \[0, 1\] from .*data\.yaml"),
        ("-1 0.5 0.5 0.2 0.4", r"got class -1, expected one of \[0, 1\]"),
        ("cat 0.5 0.5 0.2 0.4", r"'cat 0\.5 .*'; expected a class id and numbers"),
        ("0.5 0.5 0.5 0.2 0.4", "expected a class id and numbers"),
        ("0 0.5 x 0.2 0.4", "expected a class id and numbers"),
        ("0 0.5 nan 0.2 0.4", "expected a class id and numbers"),
        ("0,0.5,0.5,0.2,0.4", "expected a class id and numbers"),
        ("0", "0 numbers after the class, expected 4"),
        ("0 0.5 0.5 0.2", "3 numbers after the class, expected 4"),
        (
            "0 0.5 0.5 0.2 0.4 0.9",
            "5 numbers after the class, .* the score of a detection, remove it",
        ),
        ("0 320 240 50 60", "relative to the image's width and height, from 0 to 1, not pixels"),
    ],
)
def test_bad_lines_name_file_and_line(root: Path, line: str, message: str) -> None:
    label(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.2 0.4", "", line)

    with pytest.raises(DataError, match=rf"a\.txt, line 3: .*{message}"):
        read_yolo(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: 3\n", "'names' is 3, expected a list of names"),
        ("train: images/train\nnames: {a: cat}\n", "expected a list of names or one name per class id"),
        ("train: images/train\nnames: [cat, cat]\n", "give at least one, each only once"),
        ("train: images/train\nnames: []\n", "give at least one"),
        ("train: images/train\nnames: [cat]\nnc: 3\n", "'nc' is 3, but 'names' has 1"),
        ("train: nowhere\nnames: [cat, dog]\n", "'train' is nowhere, but there is no .*nowhere"),
        ("train: [images/train\nnames: [cat]\n", "not a YAML file"),
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: 3\n", "'kpt_shape' is 3"),
    ],
)
def test_bad_yaml_is_named(root: Path, text: str, message: str) -> None:
    (root / "data.yaml").write_text(text)

    with pytest.raises(DataError, match=rf"data\.yaml: .*{message}"):
        read_yolo(root / "data.yaml")


def test_labels_in_the_wrong_place_are_not_empty_images(root: Path) -> None:
    (root / "labels").rename(root / "annotations")

    with pytest.raises(DataError, match=r"no image of train has a label file; .*labels/train/a\.txt"):
        read_yolo(root)


def test_names_must_come_from_somewhere(root: Path) -> None:
    (root / "data.yaml").unlink()

    with pytest.raises(DataError, match=r"neither a data\.yaml with 'names' nor classes\.txt"):
        read_yolo(root)


def test_listed_image_that_is_missing_names_the_list_and_its_line(root: Path) -> None:
    (root / "list.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")

    with pytest.raises(DataError, match=r"list\.txt, line 2: no such image .*b\.jpg"):
        read_yolo(root)


def test_binary_label_file_is_named(root: Path) -> None:
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe0\x00")

    with pytest.raises(DataError, match=r"a\.txt: cannot be read .*give a text file in UTF-8"):
        read_yolo(root)
