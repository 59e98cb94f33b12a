"""Detections carry class names and convert to the forms of other tools, as tensors and as arrays."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anydepth import detections, structures
from anydepth.detections import BaseDetections
from anydepth.detector import Detector
from anydepth.evaluation.coco_numbers import ResultRows
from anydepth.results.coco_results import write_results

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import supervision as sv

BOXES = np.array([[10, 20, 40.1239, 60], [-5, 0, 5, 70]], dtype=np.float32)
SCORES = np.array([0.75, 0.123456789], dtype=np.float32)
LABELS = np.array([2, 0], dtype=np.int64)
NAMES = ("ant", "bee", "cat")
Make = Callable[..., BaseDetections]


def make_tensors(*, count: int = 2, names: tuple[str, ...] = NAMES) -> structures.Detections:
    values = (torch.from_numpy(array[:count].copy()) for array in (BOXES, SCORES, LABELS))
    return structures.Detections(*values, names)


def make_arrays(*, count: int = 2, names: tuple[str, ...] = NAMES) -> detections.Detections:
    return detections.Detections(BOXES[:count], SCORES[:count], LABELS[:count], names)


@pytest.fixture(params=[make_tensors, make_arrays], ids=["tensors", "arrays"])
def make(request: pytest.FixtureRequest) -> Make:
    function: Make = request.param
    return function


def test_names_stay_with_the_detections(make: Make) -> None:
    found = make(names=()).named(["ant", "bee", "cat"])
    assert found.class_names == found.above(0.5).class_names == found.clipped(64, 32).class_names == NAMES
    assert make_tensors().cpu().class_names == NAMES
    assert make(names=()).class_names == ()


def test_arrays_are_thresholded_and_clipped_as_tensors_are() -> None:
    for threshold, count in ((0.75, 1), (0.1, 2), (0.8, 0)):
        arrays, tensors = make_arrays().above(threshold), make_tensors().above(threshold)
        assert len(arrays) == len(tensors) == count
        np.testing.assert_array_equal(arrays.boxes_xyxy, tensors.boxes_xyxy.numpy())
        np.testing.assert_array_equal(arrays.labels, tensors.labels.numpy())
    clipped = make_arrays().clipped(height=64, width=32)
    assert clipped.boxes_xyxy.dtype == np.float32
    np.testing.assert_array_equal(clipped.boxes_xyxy, [[10, 20, 32, 60], [0, 0, 5, 64]])
    np.testing.assert_array_equal(make_tensors().clipped(64, 32).boxes_xyxy.numpy(), clipped.boxes_xyxy)


def test_supervision_gets_boxes_classes_and_names(make: Make) -> None:
    found = make()
    converted = found.to_supervision()
    assert isinstance(converted, sv.Detections)
    np.testing.assert_array_equal(converted.xyxy, BOXES)
    np.testing.assert_array_equal(converted.confidence, SCORES)
    assert converted["class_name"].tolist() == ["cat", "ant"]
    # Its own filter, which reads the classes.
    assert converted[converted.class_id == 0].xyxy.tolist() == BOXES[1:].tolist()
    converted.xyxy[:] = 0
    assert found.boxes_xyxy.tolist() == BOXES.tolist()
    assert make(names=()).to_supervision()["class_name"].tolist() == ["2", "0"]


def test_no_detections_convert_to_none(make: Make) -> None:
    assert make(count=0).to_coco(1) == []
    converted = make(count=0).to_supervision()
    assert converted.is_empty()
    assert len(sv.Detections.merge([converted, make().to_supervision()])) == 2


def test_coco_entries_are_the_ones_that_results_files_hold(make: Make, tmp_path: Path) -> None:
    entries = make().to_coco("a.jpg", category_ids=[7, 8, "nine"])
    sizes_xywh = BOXES.astype(np.float64)
    sizes_xywh[:, 2:] -= sizes_xywh[:, :2]
    ids = [np.array(column, dtype=object) for column in (["a.jpg"] * 2, ["nine", 7])]
    write_results(ResultRows(*ids, sizes_xywh, SCORES.astype(np.float64)), tmp_path / "a.json")
    assert entries == json.loads((tmp_path / "a.json").read_text())
    # 40.1239 - 10 to three places, and 0.123456789 to seven.
    assert json.loads(json.dumps(entries))[0]["bbox"] == [10.0, 20.0, 30.124, 40.0]
    assert entries[1]["score"] == 0.1234568
    assert [entry["category_id"] for entry in make().to_coco(1)] == [3, 1]


def test_a_class_without_a_name_or_an_id_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"got 2 class_names and a detection of class 2 \(counted from 0\)"):
        make(names=("ant", "bee")).to_supervision()
    with pytest.raises(ValueError, match="got 1 category_ids and a detection of class 2"):
        make().to_coco(1, category_ids=[5])


def test_without_supervision_the_message_names_it(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"needs the package supervision, .* `pip install supervision`"):
        make().to_supervision()


def test_predictions_are_named_by_the_detector(build_small: Callable[..., Detector]) -> None:
    detector = build_small()
    detector.reset_classes(["left", "right"])
    (found,) = detector.predict(np.zeros((40, 60, 3), dtype=np.uint8), threshold=0)
    assert found.class_names == ("left", "right")
    assert set(found.to_supervision()["class_name"]) <= {"left", "right"}
    assert len(found) == len(found.to_coco(1)) > 0
