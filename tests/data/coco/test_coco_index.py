"""The packed index: kept content, repairs and refused files."""

import copy
import json
import multiprocessing
import pickle
import warnings
from io import BytesIO
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CocoFiles, MakeCoco
from pycocotools.coco import COCO

from anydepth.data.coco.categories import read_categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.errors import DataError, DataWarning

CAT = {"image_id": 100, "category_id": 3, "bbox": [5, 6, 20, 10], "area": 150.5}
DOG = {"image_id": 80, "category_id": 7, "bbox": [1, 2, 3, 4]}
CROWD = {"image_id": 100, "category_id": 7, "bbox": [0, 0, 30, 30], "iscrowd": 1}


def load(files: CocoFiles, **options: Any) -> CocoIndex:
    return CocoIndex.load(files.json_path, files.images, **options)


# -- what it keeps ----------------------------------------------------------------------------------------


def test_images_and_boxes_are_kept_in_the_order_of_the_json(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[DOG, CAT, CROWD]))
    assert index.image_ids.tolist() == [100, 90, 80]
    assert index.sizes.tolist() == [[40, 60], [50, 30], [20, 20]]
    assert [index.file_name(row) for row in range(3)] == ["0.png", "1.png", "2.png"]
    assert index.path(1).is_file()
    # Sorted by image: those of image 100 first, then none, then that of image 80.
    assert index.starts.tolist() == [0, 2, 2, 3]
    assert index.annotation_ids.tolist() == [501, 502, 500]
    assert index.boxes_xywh.tolist() == [[5, 6, 20, 10], [0, 0, 30, 30], [1, 2, 3, 4]]


def test_labels_are_contiguous_in_the_order_of_category_ids(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[DOG, CAT], categories=[(90, "zebra"), (7, "dog"), (3, "cat")]))
    assert index.category_ids == (3, 7, 90)
    assert index.class_names == ("cat", "dog", "zebra")
    assert index.labels.tolist() == [0, 1]


def test_crowd_is_not_a_training_target_but_stays_in_the_ground_truth(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[CAT, CROWD]))
    boxes, labels = index.training_boxes(0)
    assert boxes.tolist() == [[5, 6, 25, 16]]
    assert labels.tolist() == [0]
    assert [entry["iscrowd"] for entry in index.to_coco_dict()["annotations"]] == [0, 1]


def test_images_without_boxes_are_kept(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[CAT]))
    assert len(index) == 3
    boxes, labels = index.training_boxes(1)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_area_is_that_of_the_json_or_else_of_the_box(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[CAT, DOG, DOG | {"area": 0}, DOG | {"area": None}]))
    assert index.areas.tolist() == [150.5, 12, 12, 12]


def test_memory_per_annotation_is_that_of_flat_arrays(make_coco: MakeCoco) -> None:
    # Box 32, label 4, crowd 1, area 8, id 8: 53 bytes; a dictionary alone takes more than 200.
    many = load(make_coco(annotations=[CAT] * 2000))
    one = load(make_coco(annotations=[CAT], folder="val"))
    assert len(pickle.dumps(many)) - len(pickle.dumps(one)) < 60 * 2000


def test_ground_truth_has_original_or_contiguous_category_ids(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[DOG, CAT]))
    original, contiguous = index.to_coco_dict(), index.to_coco_dict(contiguous_ids=True)
    assert [entry["category_id"] for entry in original["annotations"]] == [3, 7]
    assert [entry["category_id"] for entry in contiguous["annotations"]] == [0, 1]
    assert contiguous["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    assert original["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    json.dumps(original)


@pytest.mark.parametrize(
    ("name", "split"),
    [("coco128", "train2017"), ("coco128", "val2017"), ("tinycoco", "train2017"), ("tinycoco", "val2017")],
)
def test_real_coco_files_give_the_ground_truth_that_pycocotools_reads(
    shared_data: Path, name: str, split: str
) -> None:
    path = shared_data / name / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    index = CocoIndex.load(path, shared_data / name / "images" / split)
    found = index.to_coco_dict()
    reference = COCO(str(path))
    assert len(index.category_ids) == 80
    assert {entry["id"] for entry in found["images"]} == set(reference.imgs)
    assert len(found["annotations"]) == len(reference.anns)
    for entry in found["annotations"]:
        expected = reference.anns[entry["id"]]
        assert {key: expected[key] for key in entry} == entry
    assert not index.repairs


# -- categories and labels --------------------------------------------------------------------------------


def test_training_categories_define_the_labels_of_other_splits(make_coco: MakeCoco) -> None:
    train = load(make_coco(annotations=[CAT]))
    # The val json lacks the cat, so that on its own the dog would be label 0.
    val = make_coco(annotations=[DOG], categories=[(7, "dog")], folder="val")
    assert load(val, categories=train.categories).labels.tolist() == [1]


@pytest.mark.parametrize("category", [(8, "horse"), (7, "horse")])
def test_a_val_category_that_train_does_not_have_is_named(
    make_coco: MakeCoco, category: tuple[int, str]
) -> None:
    train = load(make_coco(annotations=[CAT]))
    val = make_coco(categories=[(3, "cat"), category], folder="val")
    with pytest.raises(DataError, match=rf"instances_val.*{category[0]} 'horse'.*add them there") as raised:
        load(val, categories=train.categories)
    assert "'cat'" not in str(raised.value)


def test_categories_are_found_without_parsing_the_rest(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT])
    whole = files.json_path.read_text(encoding="utf-8")
    files.json_path.write_text(whole.replace('"annotations": [', '"annotations": [broken'), encoding="utf-8")
    assert read_categories(files.json_path).ids == (3, 7)


@pytest.mark.parametrize("first", [True, False])
def test_categories_longer_than_a_piece_of_the_file_are_found(
    make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    files = make_coco(annotations=[CAT], categories=[(3, "cät"), (7, "dög ]}")])
    document = files.document
    order = ["categories", "images", "annotations"] if first else ["images", "annotations", "categories"]
    text = json.dumps({key: document[key] for key in order}, ensure_ascii=False)
    files.json_path.write_text(text.replace('"images"', '"images" broken'), encoding="utf-8")
    # Every length cuts the table at another place, once in the middle of a letter of two bytes.
    for length in (1, 30, 31, 32, 33, 10_000):
        monkeypatch.setattr("anydepth.data.coco.categories._FIRST_BYTES", length)
        assert read_categories(files.json_path).names == ("cät", "dög ]}")


def test_categories_are_read_if_their_key_occurs_twice(make_coco: MakeCoco) -> None:
    files = make_coco()
    files.document["info"] = {"categories": [1, 2]}
    assert read_categories(files.rewrite().json_path).names == ("cat", "dog")


# -- what it repairs --------------------------------------------------------------------------------------


def test_unusable_boxes_are_clipped_or_dropped_and_reported_once(make_coco: MakeCoco) -> None:
    boxes = [
        [50, 30, 20, 20],  # image 100 is 60 wide and 40 high: clipped to 10 x 10
        [-5, -6, 10, 10],  # clipped to 5 x 4 at the corner
        [70, 5, 10, 10],  # outside
        [5, 5, 0, 10],  # no width
        [5, 5, 10, -2],  # negative height
        [5, float("nan"), 10, 10],
        [5, 5, float("inf"), 10],
        [10, 10, 10, 10],  # fine
    ]
    files = make_coco(annotations=[CAT | {"bbox": box, "area": 77.0} for box in boxes])
    reports: list[str] = []
    index = load(files, report=reports.append)
    assert index.boxes_xywh.tolist() == [[50, 30, 10, 10], [0, 0, 5, 4], [10, 10, 10, 10]]
    # The json's area, where the clipped box is not smaller.
    assert index.areas.tolist() == [77, 20, 77]
    repairs = index.repairs
    assert (repairs.clipped, repairs.outside, repairs.empty, repairs.not_finite) == (2, 1, 2, 2)
    assert repairs.first_ids == (500, 501, 502, 503, 504)
    assert len(reports) == 1
    assert "instances_train.json: 2 boxes leave their image" in reports[0]
    with pytest.warns(DataWarning, match="2 boxes leave their image") as caught:
        load(files)
    assert len(caught) == 1


def test_a_rounded_border_is_neither_changed_nor_reported(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT | {"bbox": [40.5, 20, 20.01, 20.9]}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = load(files)
    assert index.boxes_xywh.tolist() == [[40.5, 20, 20.01, 20.9]]


# -- what it refuses --------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[tuple[str | int, ...], object, str]] = {
    "no images key": (("images",), None, "'images' is missing"),
    "no annotations key": (("annotations",), None, "'annotations' is missing"),
    "no categories key": (("categories",), None, "'categories' is missing"),
    "images no list": (("images",), {"1": 2}, "'images' is a dict, expected a list"),
    "no images": (("images",), [], "'images' is empty"),
    "no categories": (("categories",), [], "'categories' is empty"),
    "image no object": (("images", 0), 5, r"images\[0\] is a int, expected an object"),
    "image without id": (
        ("images", 0, "id"),
        None,
        "image number 0: 'id' is missing, expected a whole number",
    ),
    "image id a text": (("images", 0, "id"), "7", "image id '7': 'id' is '7', expected a whole number"),
    "image id too large": (("images", 0, "id"), 2**70, "expected a whole number from"),
    "image id twice": (("images", 0, "id"), 90, "image ids must be unique.*: 90; renumber"),
    "width zero": (("images", 0, "width"), 0, "image id 100: 'width' is 0, expected a whole number from 1"),
    "file name missing": (("images", 0, "file_name"), None, "image id 100: 'file_name' is missing"),
    "file name climbs": (("images", 0, "file_name"), "../0.png", "image id 100: .*leaves the image folder"),
    "file name climbs later": (("images", 0, "file_name"), "a/../../0.png", "leaves the image folder"),
    "file name absolute": (("images", 0, "file_name"), "/etc/hosts", "leaves the image folder"),
    "file name with drive": (("images", 0, "file_name"), "C:\\0.png", "leaves the image folder"),
    "file name climbs on Windows": (("images", 0, "file_name"), "..\\0.png", "leaves the image folder"),
    "annotation id twice": (("annotations", 0, "id"), 501, "annotation ids must be unique.*: 501; renumber"),
    "unknown image": (
        ("annotations", 0, "image_id"),
        5,
        "annotation id 500: image_id 5 is not among the images",
    ),
    "unknown category": (
        ("annotations", 0, "category_id"),
        5,
        "annotation id 500: category_id 5 is not among",
    ),
    "bbox missing": (
        ("annotations", 0, "bbox"),
        None,
        "annotation id 500: 'bbox' is missing, expected a list of 4",
    ),
    "bbox too short": (
        ("annotations", 0, "bbox"),
        [1, 2, 3],
        r"'bbox' is \[1, 2, 3\], expected a list of 4 numbers",
    ),
    "bbox of texts": (("annotations", 0, "bbox"), ["1", 2, 3, 4], "expected a list of 4 numbers"),
    "crowd of 2": (("annotations", 0, "iscrowd"), 2, "'iscrowd' is 2, expected 0 or 1"),
    "area a text": (("annotations", 0, "area"), "big", "'area' is 'big', expected a number"),
    "category without name": (("categories", 0, "name"), None, "category id 3: 'name' is missing"),
    "category id twice": (("categories", 0, "id"), 7, "category ids must be unique.*: 7"),
}


@pytest.mark.parametrize(("place", "value", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_wrong_json_is_refused_with_file_id_and_remedy(
    make_coco: MakeCoco, place: tuple[str | int, ...], value: object, message: str
) -> None:
    files = make_coco(annotations=[CAT, DOG])
    broken = copy.deepcopy(files.document)
    target: Any = broken
    for key in place[:-1]:
        target = target[key]
    if value is None:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    with pytest.raises(DataError, match=message) as raised:
        load(CocoFiles(files.json_path, files.images, broken).rewrite())
    assert str(files.json_path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "not a json file .* truncated or damaged"),
        (b"[]", "got a list, expected a COCO json: an object"),
        (b"\xff\xfe\x00", "cannot be read .* give a json file in UTF-8"),
    ],
)
def test_a_file_that_is_not_a_coco_json_is_refused_with_its_name(
    make_coco: MakeCoco, content: bytes, message: str
) -> None:
    files = make_coco()
    files.json_path.write_bytes(content)
    with pytest.raises(DataError, match=rf"instances_train\.json: {message}"):
        load(files)


def test_a_missing_json_or_image_folder_is_named(make_coco: MakeCoco, tmp_path: Path) -> None:
    files = make_coco(annotations=[CAT])
    with pytest.raises(DataError, match=r"gone\.json: no such file; check the location"):
        CocoIndex.load(tmp_path / "gone.json", files.images)
    with pytest.raises(DataError, match=r"nowhere: no such folder, but .*instances_train\.json names images"):
        CocoIndex.load(files.json_path, tmp_path / "nowhere")


def test_missing_images_are_counted_and_the_first_few_named(make_coco: MakeCoco) -> None:
    files = make_coco(sizes=[(8, 8)] * 9, annotations=[])
    for number in range(1, 9):
        (files.images / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"8 of 9 images .* are missing: 1\.png \(image id 90\)") as raised:
        load(files)
    assert "and 3 more. Restore them, or take them out of the json" in str(raised.value)


def test_images_in_subfolders_are_found(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[CAT])
    (files.images / "a").mkdir()
    (files.images / "0.png").rename(files.images / "a" / "0.png")
    files.document["images"][0]["file_name"] = "a/0.png"
    assert load(files.rewrite()).path(0).is_file()
    files.document["images"][0]["file_name"] = "b/0.png"
    with pytest.raises(DataError, match="1 of 3 images"):
        load(files.rewrite())


def test_training_without_training_boxes_is_refused(make_coco: MakeCoco) -> None:
    empty = make_coco(annotations=[])
    with pytest.raises(DataError, match="no image holds a box to learn from"):
        load(empty, for_training=True)
    assert len(load(empty).boxes_xywh) == 0
    with pytest.raises(DataError, match="crowd regions do not count"):
        load(make_coco(annotations=[CROWD], folder="val"), for_training=True)


def test_labels_of_an_index_survive_a_trip_to_a_worker_process(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[CAT, DOG]))
    copied = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(copied.boxes_xywh, index.boxes_xywh)
    assert copied.file_name(2) == index.file_name(2)


def describe(index: CocoIndex, sender: Connection) -> None:
    sender.send((index.to_coco_dict(), index.training_boxes(0)[0].tolist()))


@pytest.mark.slow
def test_a_spawned_worker_receives_the_index_without_its_arrays(
    make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = load(make_coco(annotations=[CAT, DOG] * 2000))
    written: list[int] = []

    def dump(process: object, file: BytesIO) -> None:
        ForkingPickler(file).dump(process)
        written.append(file.tell())

    monkeypatch.setattr(reduction, "dump", dump)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=describe, args=(index, sender))
    worker.start()
    truth, boxes = receiver.recv()
    worker.join()
    assert truth == index.to_coco_dict()
    assert boxes == index.training_boxes(0)[0].tolist()
    assert len(written) == 2, "what prepares the process, and the process"
    assert max(written) < index.nbytes / 20


def test_more_categories_than_labels_can_count_are_refused(make_coco: MakeCoco) -> None:
    files = make_coco(categories=[(number, str(number)) for number in range(2**15)])
    with pytest.raises(DataError, match="got 32768 categories, expected at most 32767"):
        CocoIndex.load(files.json_path, files.images)
