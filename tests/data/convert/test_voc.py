"""Pascal VOC xmls: pixels that count from 1, difficult objects, splits, and messages with file and line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anydepth.data.convert.voc import read_voc
from anydepth.data.errors import DataError


def picture(path: Path, width: int = 60, height: int = 40, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif) if orientation is not None else image.save(path)
    return path


def one(name: str = "cat", box: tuple[object, ...] = (11, 6, 30, 20), more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object>\n<name>{name}</name>{more}\n<bndbox>{sides}</bndbox>\n</object>\n"


def xml(
    path: Path, *objects: str, size: tuple[int, int] | None = (60, 40), filename: str | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = "" if filename is None else f"<filename>{filename}</filename>\n"
    frame = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    path.write_text("<annotation>\n" + named + frame + "".join(objects) + "</annotation>\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set in the layout of the challenge with the image ``a``."""
    picture(tmp_path / "JPEGImages" / "a.jpg")
    xml(tmp_path / "Annotations" / "a.xml", one())
    return tmp_path


# -- boxes ------------------------------------------------------------------------------------------------


def test_pixels_count_from_one_and_the_last_is_inside(root: Path) -> None:
    """The development kit: (1, 1, width, height) is the whole image, in COCO (0, 0, width, height)."""
    xml(root / "Annotations" / "a.xml", one(box=(1, 1, 60, 40)), one(box=(11, 6, 30, 20)))

    (image,) = read_voc(root).splits["train"]

    assert [item.box_xyxy for item in image.objects] == [(0, 0, 60, 40), (10, 5, 30, 20)]


def test_zero_based_files_are_taken_as_they_are(root: Path) -> None:
    xml(root / "Annotations" / "a.xml", one(box=(0, 0, 60, 40)))

    assert read_voc(root, zero_based=True).splits["train"][0].objects[0].box_xyxy == (0, 0, 60, 40)


def test_pixel_zero_gives_a_remark_and_stays_in_the_image(root: Path) -> None:
    path = xml(root / "Annotations" / "a.xml", one(), one(box=(0, 5, 20, 20)))

    dataset = read_voc(root)

    assert dataset.splits["train"][0].objects[1].box_xyxy == (0, 4, 20, 20)
    (remark,) = dataset.remarks
    assert f"Of 2 boxes, 1 start at pixel 0 (e.g. {path}, line 7) and 0 at pixel 1" in remark
    assert "does not exist if they count from 1: import again with --zero-based" in remark


@pytest.mark.parametrize(
    ("database", "left", "zero_based", "expected"),
    [
        (
            "Unknown",
            1,
            False,
            ("from 1, ", "0 start at pixel 0", "1 at pixel 1", "with --zero-based if it does"),
        ),
        ("Unknown", 9, True, ("from 0 (--zero-based)", "without --zero-based if it does not")),
        ("Unknown", 0, True, ("from 0 (--zero-based)", "1 start at pixel 0", "only if they do count from 0")),
        ("The VOC2007 Database", 1, False, ("from 1, ", "VOC2007", "files of the challenge count from 1")),
        ("The VOC2012 Database", 9, True, ("count from 1: import again without --zero-based",)),
        ("", 9, False, ("<database> is missing", "does not settle it", "--zero-based if it does")),
    ],
)
def test_the_origin_and_the_evidence_for_it_are_always_named(
    root: Path, database: str, left: int, zero_based: bool, expected: tuple[str, ...]
) -> None:
    source = f"<source><database>{database}</database></source>" if database else ""
    xml(root / "Annotations" / "a.xml", source, one(box=(left, 6, 30, 20)))

    (remark,) = read_voc(root, zero_based=zero_based).remarks

    for words in expected:
        assert words in remark


def test_a_real_file_of_bccd(root: Path) -> None:
    """Objects 1, 9 and 12 of BloodImage_00171.xml of github.com/Shenggan/BCCD_Dataset (MIT)."""
    picture(root / "JPEGImages" / "a.jpg", 640, 480)
    real = [(16, 195, 119, 303), (200, 411, 288, 480), (580, 232, 640, 331)]
    flags = "<pose>Unspecified</pose><truncated>1</truncated><difficult>0</difficult>"
    xml(root / "Annotations" / "a.xml", *(one("RBC", box, flags) for box in real), size=(640, 480))

    (image,) = read_voc(root).splits["train"]

    expected = [(15, 194, 119, 303), (199, 410, 288, 480), (579, 231, 640, 331)]
    assert [item.box_xyxy for item in image.objects] == expected
    assert {item.class_name for item in image.objects} == {"RBC"}


def test_parts_of_a_person_are_not_objects(root: Path) -> None:
    part = one("head", (2, 2, 3, 3)).replace("object>", "part>")
    xml(root / "Annotations" / "a.xml", one("person", more=part))

    dataset = read_voc(root)

    assert dataset.class_names == ("person",)
    assert [item.box_xyxy for item in dataset.splits["train"][0].objects] == [(10, 5, 30, 20)]


@pytest.mark.parametrize(("keep", "ignored"), [(False, True), (True, False)])
def test_difficult_objects_are_to_be_ignored_unless_kept(root: Path, keep: bool, ignored: bool) -> None:
    xml(root / "Annotations" / "a.xml", one(more="<difficult>1</difficult>"), one())

    objects = read_voc(root, keep_difficult=keep).splits["train"][0].objects

    assert [item.ignored for item in objects] == [ignored, False]


def test_boxes_without_an_area_are_left_out_and_listed(root: Path) -> None:
    path = xml(
        root / "Annotations" / "a.xml",
        one(box=(30, 6, 11, 20)),
        one(box=(70, 6, 90, 20)),
        one(box=(41, 31, 70, 50)),
    )

    dataset = read_voc(root)

    assert [item.box_xyxy for item in dataset.splits["train"][0].objects] == [(40, 30, 60, 40)]
    assert dataset.skipped == [
        ("boxes without a positive size", f"{path}, line 3"),
        ("boxes outside their image", f"{path}, line 7"),
    ]


# -- images -----------------------------------------------------------------------------------------------


def test_image_without_objects_is_kept(root: Path) -> None:
    xml(root / "Annotations" / "a.xml")

    assert [image.objects for image in read_voc(root).splits["train"]] == [()]


def test_image_without_xml_and_xml_without_image_are_left_out_and_listed(root: Path) -> None:
    without_xml = picture(root / "JPEGImages" / "b.png")
    without_image = xml(root / "Annotations" / "c.xml", one())

    dataset = read_voc(root)

    assert len(dataset.splits["train"]) == 1
    assert [where for _, where in dataset.skipped] == [str(without_xml), str(without_image)]


@pytest.mark.parametrize("name", ["x.JPG", "x.png", "x.webp", "x.JpEg", "sub/deep/x.bmp"])
def test_every_suffix_and_nested_folders_are_found(root: Path, name: str) -> None:
    picture(root / "JPEGImages" / name)
    xml(root / "Annotations" / Path(name).with_suffix(".xml"), one("dog"))

    assert read_voc(root).class_names == ("cat", "dog")


def test_two_images_of_one_name_are_listed(root: Path) -> None:
    picture(root / "JPEGImages" / "a.png")

    dataset = read_voc(root)

    assert len(dataset.splits["train"]) == 1
    assert [reason for reason, _ in dataset.skipped] == ["files with the name of another file"]


@pytest.mark.parametrize("filename", ["a.png", "A.PNG", "C:\\photos\\a.png", "a%2Epng"])
def test_of_two_images_of_one_name_the_xml_names_the_right_one(root: Path, filename: str) -> None:
    chosen = picture(root / "JPEGImages" / "a.png")
    xml(root / "Annotations" / "a.xml", one(), filename=filename)

    dataset = read_voc(root)

    assert [image.path for image in dataset.splits["train"]] == [chosen]
    assert [where for _, where in dataset.skipped] == [f"{chosen.with_suffix('.jpg')} ({chosen})"]


def test_an_xml_of_another_name_belongs_to_the_image_that_it_names(root: Path) -> None:
    named = picture(root / "JPEGImages" / "frame 7.png")
    xml(root / "Annotations" / "000007.xml", one("dog"), filename="frame 7.png")
    # Names that several files share, or that no image has, pair nothing.
    lone = picture(root / "JPEGImages" / "b.jpg")
    for label in ("000008.xml", "000009.xml"):
        xml(root / "Annotations" / label, one("bird"), filename="b.jpg")
    xml(root / "Annotations" / "000010.xml", one("bird"), filename="gone.jpg")

    dataset = read_voc(root)

    found = {
        image.path.name: [item.class_name for item in image.objects] for image in dataset.splits["train"]
    }
    assert found == {"a.jpg": ["cat"], named.name: ["dog"]}
    assert any("frame 7.png with" in remark and "000007.xml" in remark for remark in dataset.remarks)
    assert [Path(where).name for _, where in dataset.skipped] == [
        lone.name,
        "000008.xml",
        "000009.xml",
        "000010.xml",
    ]


def test_xmls_of_two_images_of_one_name_pair_in_a_fixed_order(root: Path) -> None:
    for number, suffix in enumerate(("jpg", "png", "bmp")):
        picture(root / "JPEGImages" / f"x.{suffix}")
        xml(root / "Annotations" / f"00{number}.xml", one(suffix), filename=f"x.{suffix}")

    (found,) = (image for image in read_voc(root).splits["train"] if image.path.stem == "x")

    assert (found.path.name, found.objects[0].class_name) == ("x.bmp", "bmp")


def test_where_images_without_an_xml_have_no_objects_a_filename_gives_them_none(root: Path) -> None:
    picture(root / "JPEGImages" / "b.jpg")
    xml(root / "Annotations" / "street.xml", one("dog"), filename="b.jpg")

    images = read_voc(root, empty_without_xml=True).splits["train"]

    assert {image.path.name: len(image.objects) for image in images} == {"a.jpg": 1, "b.jpg": 0}


def test_lists_may_name_xmls_that_their_filename_pairs(root: Path) -> None:
    picture(root / "JPEGImages" / "b.jpg")
    xml(root / "Annotations" / "000007.xml", one("dog"), filename="b.jpg")
    for split, name in (("train", "a"), ("val", "000007")):
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    splits = read_voc(root).splits

    found = {split: [image.path.name for image in images] for split, images in splits.items()}
    assert found == {"train": ["a.jpg"], "val": ["b.jpg"]}


def test_a_stale_filename_does_not_part_an_image_from_the_xml_of_its_name(root: Path) -> None:
    """Tools rename images and keep what the xml says."""
    picture(root / "JPEGImages" / "b.jpg")
    xml(root / "Annotations" / "b.xml", one("dog"), filename="a.jpg")
    xml(root / "Annotations" / "a.xml", one("cat"), filename="b.jpg")

    found = {image.path.name: image.objects[0].class_name for image in read_voc(root).splits["train"]}

    assert found == {"a.jpg": "cat", "b.jpg": "dog"}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [((60, 40), (40, 60)), ((40, 60), (60, 40)), ((0, 0), (60, 40)), (None, (60, 40))],
    ids=["as stored", "upright", "zero", "none"],
)
def test_turned_picture_has_the_frame_that_its_xml_says(
    root: Path, stated: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    picture(root / "JPEGImages" / "a.jpg", 60, 40, orientation=6)
    xml(root / "Annotations" / "a.xml", one(), size=stated)

    assert [image.size for image in read_voc(root).splits["train"]] == [expected]


def test_picture_of_another_size_is_left_out_and_listed(root: Path) -> None:
    path = xml(root / "Annotations" / "a.xml", one(), size=(61, 40))

    dataset = read_voc(root)

    assert dataset.splits["train"] == []
    ((reason, where),) = dataset.skipped
    assert reason == "images with another size than in their xml"
    assert f"{path}, line 2: (40, 61)" in where


def test_unreadable_picture_is_left_out_and_listed(root: Path) -> None:
    (root / "JPEGImages" / "a.jpg").write_bytes(b"no picture")

    dataset = read_voc(root)

    assert dataset.splits["train"] == []
    assert dataset.skipped[0][0] == "unreadable images"


# -- splits -----------------------------------------------------------------------------------------------


def test_lists_choose_the_splits(root: Path) -> None:
    for name in "bcd":
        picture(root / "JPEGImages" / f"{name}.jpg")
        xml(root / "Annotations" / f"{name}.xml", one(name))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(b"c  1\r\na -1\r\n")
    (lists / "val.txt").write_text("d\n\n")
    (lists / "trainval.txt").write_text("a\nc\nd\n")
    (lists / "cat_train.txt").write_text("b 1\n")

    dataset = read_voc(root)

    found = {split: [image.path.stem for image in images] for split, images in dataset.splits.items()}
    assert found == {"train": ["c", "a"], "val": ["d"]}
    assert dataset.class_names == ("c", "cat", "d")


def test_trainval_is_for_training_if_there_is_no_train(root: Path) -> None:
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\n")

    assert set(read_voc(root).splits) == {"train"}


def test_without_train_it_is_trainval_without_val(root: Path) -> None:
    for name in "bcd":
        picture(root / "JPEGImages" / f"{name}.jpg")
        xml(root / "Annotations" / f"{name}.xml", one(name))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, text in {"trainval": "a\nb\nc\n", "val": "c\n", "test": "d\n"}.items():
        (lists / f"{name}.txt").write_text(text)
    found = {split: [i.path.stem for i in images] for split, images in read_voc(root).splits.items()}
    assert found == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}


def test_folders_with_xmls_beside_images_are_splits(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        picture(tmp_path / folder / "x.jpg")
        xml(tmp_path / folder / "x.xml", one(folder))

    dataset = read_voc(tmp_path)

    assert set(dataset.splits) == {"train", "val", "test"}
    assert dataset.class_names == ("test", "train", "valid")


def test_folders_of_other_names_can_be_given(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.jpg")
    xml(tmp_path / "boxes" / "a.xml", one())

    dataset = read_voc(tmp_path, images=tmp_path / "photos", annotations=tmp_path / "boxes")

    assert len(dataset.splits["train"]) == 1


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (one(box=("x", 1, 2, 3)), 5, "<xmin> is 'x', expected a number of pixels"),
        (one(box=(1, "nan", 2, 3)), 5, "<ymin> is 'nan', expected a number of pixels"),
        (one(box=(1, 2, "", 3)), 5, "the object has no <bndbox><xmax>; add it"),
        ("<object><name>cat</name></object>", 3, "the object has no <bndbox><xmin>; add it"),
        (one(name=""), 4, "the object has no <name>; add it"),
        (one(more="<difficult>maybe</difficult>"), 4, "'difficult' is 'maybe', expected 0 or 1"),
        (one() + "<object>", 7, "not an xml (mismatched tag); repair it"),
    ],
)
def test_bad_objects_name_file_and_line(root: Path, text: str, line: int, message: str) -> None:
    path = xml(root / "Annotations" / "a.xml", text)

    with pytest.raises(DataError) as raised:
        read_voc(root)
    assert str(raised.value) == f"{path}, line {line}: {message}"


def test_another_kind_of_xml_is_refused(root: Path) -> None:
    (root / "Annotations" / "a.xml").write_text("<html></html>")

    with pytest.raises(DataError, match=r"a\.xml: not a Pascal VOC xml \(its outermost element is <html>"):
        read_voc(root)


@pytest.mark.parametrize("entity", ['"lol"', 'SYSTEM "file:///etc/hostname"'], ids=["text", "file"])
def test_entities_are_refused(root: Path, entity: str) -> None:
    doctype = f"<!DOCTYPE annotation [<!ENTITY e {entity}>]>"
    (root / "Annotations" / "a.xml").write_text(f"{doctype}<annotation>{one('&e;')}</annotation>")

    with pytest.raises(DataError, match=r"a\.xml: not a Pascal VOC xml \(it declares a document type"):
        read_voc(root)


def test_listed_image_that_is_missing_names_the_list_and_its_line(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")

    with pytest.raises(DataError, match=r"1 listed names have no image or no xml: .*train\.txt, line 2: b"):
        read_voc(root)


def test_folder_without_xmls_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")

    with pytest.raises(DataError, match="no xml file found; give the folder of a Pascal VOC data set"):
        read_voc(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_voc(tmp_path / "nowhere")


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        picture(tmp_path / name / "a.jpg")

    with pytest.raises(DataError, match="are both the val split"):
        read_voc(tmp_path)
