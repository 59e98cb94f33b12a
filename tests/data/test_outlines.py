"""The polygons of a json: the kept ones, and their boxes."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CocoFiles, MakeCoco
from pycocotools.coco import COCO

from anydepth.data.coco.index import CocoIndex
from anydepth.data.outlines import Outlines, parse_rings
from anydepth.data.source import FileSource

TRIANGLE = [5, 6, 25, 6, 5, 16]
SQUARE = [1.5, 2, 4, 2, 4, 6, 1.5, 6]


def annotation(bbox: list[float], segmentation: object = None, **entry: Any) -> dict[str, Any]:
    return {"image_id": 100, "category_id": 3, "bbox": bbox, "segmentation": segmentation} | entry


def load(files: CocoFiles, **options: Any) -> CocoIndex:
    return CocoIndex.load(files.json_path, files.images, outlines=True, **options)


def polygons(outlines: Outlines | None) -> list[list[list[float]]]:
    """Return x, y, x, y, ... by object and ring."""
    assert outlines is not None
    rings = [
        outlines.points[start:end].ravel().tolist()
        for start, end in zip(outlines.ring_starts[:-1], outlines.ring_starts[1:], strict=True)
    ]
    bounds = zip(outlines.object_starts[:-1], outlines.object_starts[1:], strict=True)
    return [rings[start:end] for start, end in bounds]


def test_outlines_stay_with_the_boxes_that_training_sees(make_coco: MakeCoco) -> None:
    # Image 100 is 60 wide and 40 high; the json mixes the images, a crowd region and unusable boxes.
    files = make_coco(
        annotations=[
            annotation([1, 2, 3, 4], [SQUARE], image_id=80),
            annotation([5, 6, 20, 10], [TRIANGLE, SQUARE]),
            annotation([70, 5, 10, 10], [[70, 5, 80, 5, 80, 15]]),
            annotation([0, 0, 30, 30], {"counts": [1, 2], "size": [40, 60]}, iscrowd=1),
            annotation([0, 0, 30, 30], [SQUARE], iscrowd=1),
            annotation([50, 30, 20, 20], [[50, 30, 70, 30, 70, 50, 50, 50]]),
            annotation([5, 5, 0, 10], [TRIANGLE]),
            annotation([2, 2, 9, 9]),
        ]
    )
    index = load(files, report=lambda _: None)
    boxes, _ = index.training_boxes(0)
    assert boxes.tolist() == [[5, 6, 25, 16], [50, 30, 60, 40], [2, 2, 11, 11]]
    # The second leaves the image, so that its points are drawn to the border as its box is.
    clipped = [50, 30, 60, 30, 60, 40, 50, 40]
    assert polygons(index.outlines_of(0)) == [[TRIANGLE, SQUARE], [clipped], []]
    assert polygons(index.outlines_of(1)) == []
    assert polygons(index.outlines_of(2)) == [[SQUARE]]
    outlines = index.outlines_of(2)
    assert outlines is not None
    assert (outlines.points.dtype, outlines.ring_starts.dtype) == (np.float32, np.int64)


def test_outlines_are_dropped_unless_requested(make_coco: MakeCoco) -> None:
    files = make_coco(annotations=[annotation([5, 6, 20, 10], [TRIANGLE])])
    without = CocoIndex.load(files.json_path, files.images)
    assert without.outlines_of(0) is None
    assert FileSource(without).read(0).outlines is None
    assert without.nbytes < load(files).nbytes


def test_a_source_of_files_reads_outlines_with_the_image(make_coco: MakeCoco) -> None:
    index = load(make_coco(annotations=[annotation([5, 6, 20, 10], [TRIANGLE])]))
    copied = pickle.loads(pickle.dumps(FileSource(index)))
    sample = copied.read(0)
    assert polygons(sample.outlines) == [[TRIANGLE]]
    assert sample.boxes_xyxy.tolist() == [[5, 6, 25, 16]]
    assert polygons(copied.read(1).outlines) == []


def test_malformed_outlines_are_counted_once_and_their_boxes_stay(make_coco: MakeCoco) -> None:
    broken = [5, "text", [5, 6, 25, 6, 5, 16], [[1, 2, 3, 4]], [SQUARE, [1, 2, 3, 4, 5]], [["1"] * 6]]
    fine = [None, [], [[]], [TRIANGLE], {"counts": "x", "size": [4, 4]}]
    files = make_coco(annotations=[annotation([5, 6, 20, 10], outline) for outline in broken + fine])
    reports: list[str] = []
    index = load(files, report=reports.append)
    assert len(index.training_boxes(0)[0]) == 11
    assert polygons(index.outlines_of(0)) == [[]] * 9 + [[TRIANGLE], []]
    (report,) = reports
    assert "6 outlines were dropped, because their 'segmentation' is not a list of polygons" in report
    assert "annotation ids: 500, 501, 502, 503, 504 and 1 more" in report
    assert str(files.json_path) in report


def test_problems_of_boxes_and_outlines_come_in_one_report(make_coco: MakeCoco) -> None:
    reports: list[str] = []
    load(
        make_coco(annotations=[annotation([5, 5, 0, 10], 5), annotation([5, 5, 9, 9], 5)]),
        report=reports.append,
    )
    (report,) = reports
    # The outline of the box that was dropped is of no interest.
    assert "1 without a positive size" in report
    assert "1 outlines were dropped" in report


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4, 5, float("nan")], [0, 0, 0, 0, 0, 10**400], [0, 0, 0, 0, 0, -1e39]]
)
def test_a_ring_with_a_point_nowhere_is_malformed(values: list[float]) -> None:
    assert parse_rings([values]) is None


@pytest.mark.parametrize(("name", "split"), [("coco128", "train2017"), ("tinycoco", "val2017")])
def test_real_coco_outlines_are_those_that_pycocotools_reads(
    shared_data: Path, name: str, split: str
) -> None:
    path = shared_data / name / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    index = CocoIndex.load(path, shared_data / name / "images" / split, outlines=True)
    reference = COCO(str(path))
    sizes = {
        image["id"]: (image["width"], image["height"]) for image in json.loads(path.read_text())["images"]
    }
    objects = 0
    for row, image_id in enumerate(index.image_ids.tolist()):
        expected = [
            [
                np.array(ring, dtype=np.float32).reshape(-1, 2).clip(0, sizes[image_id]).ravel().tolist()
                for ring in entry["segmentation"]
            ]
            for entry in reference.loadAnns(reference.getAnnIds(imgIds=[image_id], iscrowd=False))
        ]
        assert polygons(index.outlines_of(row)) == expected
        objects += len(expected)
    assert objects > 100
