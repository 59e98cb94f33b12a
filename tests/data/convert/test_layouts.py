"""Data sets in folders of other names or one level down, and the causes that errors name."""

from pathlib import Path

import pytest
from export_files import YOLO_LINE, found, picture, text, xml, xml_object

from anydepth.commands.data import main
from anydepth.data.convert.dataset import split_off_val, write_coco
from anydepth.data.convert.voc import read_voc
from anydepth.data.convert.yolo import read_yolo
from anydepth.data.errors import DataError


@pytest.mark.parametrize(
    ("images", "xmls"),
    [
        ("images", "annots"),  # many on the web
        ("data", "labels"),  # fiftyone
        ("photos", "boxes/all"),
        ("photos/day", "boxes/day"),
    ],
)
def test_images_and_xmls_are_paired_by_name_anywhere(tmp_path: Path, images: str, xmls: str) -> None:
    for name in "ab":
        picture(tmp_path / images / f"{name}.png")
        xml(tmp_path / xmls / f"{name}.xml", xml_object())

    dataset = read_voc(tmp_path)

    assert found(dataset) == {"train": {"a.png": 1, "b.png": 1}}
    assert dataset.skipped == []
    assert any(
        "2 images were paired with an xml of their name in another folder" in r for r in dataset.remarks
    )


def test_equal_names_in_several_folders_are_told_apart_by_these(tmp_path: Path) -> None:
    for number, folder in enumerate(("day", "night"), start=1):
        picture(tmp_path / "photos" / folder / "a.png")
        xml(tmp_path / "annots" / folder / "a.xml", *[xml_object()] * number)

    (images,) = read_voc(tmp_path).splits.values()

    assert {image.path.parent.name: len(image.objects) for image in images} == {"day": 1, "night": 2}


def test_an_xml_that_may_belong_to_two_images_belongs_to_none(tmp_path: Path) -> None:
    for folder in ("day", "night"):
        picture(tmp_path / "photos" / folder / "a.png")
    xml(tmp_path / "annots" / "a.xml", xml_object())

    dataset = read_voc(tmp_path)

    assert found(dataset) == {"train": {}}
    assert len(dataset.skipped) == 3


def test_a_voc_set_one_level_down_keeps_its_splits(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for name in "ab":
        picture(root / "JPEGImages" / f"{name}.png")
        xml(root / "Annotations" / f"{name}.xml", xml_object())
    text(root / "ImageSets" / "Main" / "train.txt", "a")
    text(root / "ImageSets" / "Main" / "val.txt", "b")
    text(tmp_path / "readme.txt", "a set")

    dataset = read_voc(tmp_path)

    assert found(dataset) == {"train": {"a.png": 1}, "val": {"b.png": 1}}
    assert f"the data set was found in {root}" in dataset.remarks


def test_a_folder_with_files_of_its_own_is_the_data_set(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "old" / "Annotations"):
        picture(folder / "a.png")
        xml(folder / "a.xml", xml_object())

    (images,) = read_voc(tmp_path).splits.values()

    assert tmp_path / "a.png" in [image.path for image in images]


def test_two_voc_sets_one_level_down_are_refused(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        picture(tmp_path / year / "JPEGImages" / "a.png")
        xml(tmp_path / year / "Annotations" / "a.xml", xml_object())

    with pytest.raises(DataError, match=r"holds several data sets \(.*VOC2007, .*VOC2012\); give one"):
        read_voc(tmp_path)


@pytest.mark.parametrize("file", ["data.yaml", "classes.txt", "obj.names"])
def test_a_yolo_set_one_level_down_is_found(tmp_path: Path, file: str) -> None:
    root = tmp_path / "bees" / "export"
    picture(root / "images" / "train" / "a.png")
    text(root / "labels" / "train" / "a.txt", YOLO_LINE)
    text(root / file, "train: images/train\nnames: [bee]" if file == "data.yaml" else "bee")

    dataset = read_yolo(tmp_path)

    assert found(dataset) == {"train": {"a.png": 1}}
    assert dataset.remarks == [f"the data set was found in {root}"]


def test_the_folder_that_holds_one_folder_is_looked_into(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / "bees" / split / f"{split}.png")
        xml(tmp_path / "bees" / split / f"{split}.xml", xml_object())

    assert found(read_voc(tmp_path)) == {"train": {"train.png": 1}, "val": {"valid.png": 1}}


# -- errors name the cause --------------------------------------------------------------------------------


def test_what_was_skipped_is_named_when_no_image_is_left(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    xml(tmp_path / "annots" / "b.xml", xml_object())

    with pytest.raises(DataError) as raised:
        split_off_val(read_voc(tmp_path), 0.1, seed=0)

    message = str(raised.value)
    assert "got 0 training images" in message
    assert "skipped 1 images without an xml (if they have no objects, import with --empty-" in message
    assert str(tmp_path / "images" / "a.png") in message
    assert f"skipped 1 xmls without an image: {tmp_path / 'annots' / 'b.xml'}" in message


def test_boxes_dropped_for_their_size_are_named_when_no_box_is_left(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "set" / f"{name}.png")
        xml(tmp_path / "set" / f"{name}.xml", xml_object(box=(30, 6, 11, 20)))
    dataset = read_voc(tmp_path / "set")

    with pytest.raises(
        DataError, match=r"(?s)no training image .*skipped 2 boxes without a positive size: .*a\.xml"
    ):
        write_coco(dataset, tmp_path / "out")


def test_cvats_own_xml_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    image = '<image id="0" name="a.png" width="60" height="40"></image>'
    text(
        tmp_path / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>',
        f"<annotations>\n<version>1.1</version>\n{image}</annotations>",
    )

    with pytest.raises(DataError, match=r"annotations\.xml: CVAT's own format.*\"PASCAL VOC 1\.1\""):
        read_voc(tmp_path)


LABEL_STUDIO = r"Label Studio's json is not read: export it as COCO, YOLO or Pascal VOC"


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ('{"info": {}, "images": [], "categories": []}', r"a COCO json needs no import: .*data\.train_json"),
        (
            '{"version": "5.5.0", "flags": {}, "shapes": [], "imagePath": "a.png"}',
            r"LabelMe's format is not read",
        ),
        ('[{"id": 1, "annotations": [{"result": []}], "data": {"image": "/data/a.png"}}]', LABEL_STUDIO),
        (
            '[{"image": "/data/a.png", "id": 1, "label": [{"x": 1, "rectanglelabels": ["bee"]}]}]',
            LABEL_STUDIO,
        ),
        ('{"a.png12": {"filename": "a.png", "size": 12, "regions": []}}', r"VIA's format is not read"),
        ('[{"image": "a.png", "annotations": [{"label": "bee", "coordinates": {"x": 1}}]}]', r"Create ML's"),
        ("{}", r"to name the class ids$"),
        ("no json", r"to name the class ids$"),
    ],
    ids=["coco", "labelme", "label studio", "label studio, short", "via", "create ml", "empty", "damaged"],
)
def test_a_json_that_is_not_imported_is_named_for_what_it_is(
    tmp_path: Path, content: str, advice: str
) -> None:
    picture(tmp_path / "data" / "a.png")
    text(tmp_path / "labels.json", content)

    with pytest.raises(DataError, match=advice):
        read_yolo(tmp_path)


@pytest.mark.parametrize(("images", "labels"), [("Images", "Labels"), ("IMAGES", "labels")])
def test_folders_are_found_in_any_case(tmp_path: Path, images: str, labels: str) -> None:
    for split in ("Train", "Val"):
        picture(tmp_path / images / split / f"{split}.png")
        text(tmp_path / labels / split / f"{split}.txt", YOLO_LINE)
        picture(tmp_path / "voc" / split / "jpegimages" / f"{split}.png")
        xml(tmp_path / "voc" / split / "annotations" / f"{split}.xml", xml_object())
    text(tmp_path / "classes.txt", "bee")

    expected = {"train": {"Train.png": 1}, "val": {"Val.png": 1}}
    assert found(read_yolo(tmp_path)) == expected
    assert found(read_voc(tmp_path / "voc")) == expected


def test_class_names_of_roboflows_export_for_darknet_are_found(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "a.png")
        text(tmp_path / split / "a.txt", YOLO_LINE)
        text(tmp_path / split / "_darknet.labels", "bee")

    dataset = read_yolo(tmp_path)

    assert found(dataset) == {"train": {"a.png": 1}, "val": {"a.png": 1}}
    assert dataset.class_names == ("bee",)


# -- --images and --annotations ---------------------------------------------------------------------------


def test_relative_folders_are_those_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        picture(tmp_path / "bees" / "photos" / f"{name}.png")
        xml(tmp_path / "bees" / "boxes" / f"{name}.xml", xml_object())
    monkeypatch.chdir(tmp_path)

    assert main(["import", "bees", "out", "--images", "photos", "--annotations", "boxes"]) == 0
    # Relative to the working directory, as it was before.
    assert main(["import", "bees", "out2", "--images", "bees/photos", "--annotations", "bees/boxes"]) == 0
    assert main(["import", "bees", "out3", "--images", "pics", "--annotations", "boxes"]) == 1
    assert "--images=pics: neither bees/pics nor pics is a folder" in capsys.readouterr().err


def test_a_relative_folder_that_is_in_both_places_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for root in (tmp_path, tmp_path / "bees"):
        picture(root / "photos" / "a.png")
        xml(root / "boxes" / "a.xml", xml_object())
    monkeypatch.chdir(tmp_path)

    assert main(["import", "bees", "out", "--images", "photos", "--annotations", "boxes"]) == 1
    assert "give the absolute path of one" in capsys.readouterr().err
