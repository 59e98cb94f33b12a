"""COCO figures of a bundle, on networks of two matrix products whose detections are known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import CLASSES, NAMES, SIDE, outputs_of, write_bundle

from anydepth.deploy import load
from anydepth.deploy.evaluation import evaluate_bundle
from anydepth.depth import DepthError
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve, SkippedImagesWarning
from anydepth.structures import Batch, Targets

HEIGHT, WIDTH = 60, 90
# Grey levels of the images; resizing keeps them, so that the network's output is known.
GREYS = (40, 90, 200)
NO_TARGETS = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def _batches(size: int, skipped: tuple[str, ...] = ()) -> Iterator[Batch]:
    for start in range(0, len(GREYS), size):
        greys = GREYS[start : start + size]
        yield Batch(
            torch.stack([torch.full((3, SIDE, SIDE), grey, dtype=torch.uint8) for grey in greys]),
            (NO_TARGETS,) * len(greys),
            tuple(range(start, start + len(greys))),
            ((HEIGHT, WIDTH),) * len(greys),
            skipped,
        )


def _candidates(grey: int, depth: str) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = outputs_of(np.full((1, 3, 2, 2), grey / 255, np.float32), depth)
    return boxes[0] * [WIDTH, HEIGHT, WIDTH, HEIGHT], scores[0]


def _truth(images: int) -> tuple[dict[str, object], int]:
    """The best upright box of `full` in each image as its only object, and its rank within its class."""
    annotations, rank = [], 0
    for image in range(images):
        boxes, scores = _candidates(GREYS[image], "full")
        upright = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(axis=1)
        assert upright.any()
        row, label = divmod(int(np.argmax(np.where(upright[:, None], scores, -1))), CLASSES)
        rank = 1 + int((scores[:, label] > scores[row, label]).sum())
        x, y, right, bottom = boxes[row].tolist()
        annotations.append(
            {
                "id": image + 1,
                "image_id": image,
                "category_id": 10 + label,
                "bbox": [x, y, right - x, bottom - y],
                "area": (right - x) * (bottom - y),
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": image, "width": WIDTH, "height": HEIGHT} for image in range(images)],
        "categories": [{"id": 10 + label, "name": name} for label, name in enumerate(NAMES)],
        "annotations": annotations,
    }, rank


def _evaluate(folder: Path, depths: list[str], size: int = 2, engine: str = "onnxruntime") -> DepthCurve:
    evaluator = CocoEvaluator(ground_truth=_truth(len(GREYS))[0])
    return evaluate_bundle(load(folder, engine=engine, threads=1), _batches(size), evaluator, depths)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("evaluation") / "bundle")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_ap_of_one_object_is_one_over_its_rank(folder: Path, engine: str):
    truth, rank = _truth(1)
    first = Batch(*[part[:1] for part in vars(next(_batches(1))).values()])
    evaluator = CocoEvaluator(ground_truth=truth)
    detector = load(folder, engine=engine, threads=1)
    curve = evaluate_bundle(detector, [first], evaluator, ["full", "minimal"])
    # The object is found with an IoU of 1: precision is 1 / rank at every recall and threshold.
    assert curve.row("full").figures["AP"] == pytest.approx(1 / rank)
    assert curve.row("minimal").figures["AP"] < curve.row("full").figures["AP"]
    assert (curve.images, curve.input_size, curve.boxes_clipped) == (1, (SIDE, SIDE), False)


def test_figures_do_not_depend_on_the_number_of_images_of_a_pass(folder: Path, tmp_path: Path):
    expected = _evaluate(folder, ["full", "minimal"])
    assert _evaluate(folder, ["full", "minimal"], size=3) == expected
    fixed = write_bundle(tmp_path / "fixed", batch=2)
    assert _evaluate(fixed, ["full", "minimal"], size=3) == expected
    assert _evaluate(fixed, ["full", "minimal"], size=1) == expected


def test_rows_hold_the_cost_that_the_bundle_states(folder: Path):
    curve = _evaluate(folder, ["a@1", "a@1", ">=95%ap"])
    assert [row.depth for row in curve.rows] == ["a@1", "full"]
    row = curve.row("a@1")
    assert (row.refine, row.decoder_layers) == ({"a": True, "b": False}, 1)
    assert (row.gflops, row.parameters_run, curve.parameters) == (2.0, 10, 1)
    assert row.latency is None


def test_depths_and_data_that_are_not_there_are_refused(folder: Path):
    with pytest.raises(DepthError, match="it holds full, a@1, minimal"):
        _evaluate(folder, ["b"])
    with pytest.raises(EvaluationError, match="no depth"):
        _evaluate(folder, [])
    evaluator = CocoEvaluator(ground_truth=_truth(1)[0])
    with pytest.raises(EvaluationError, match="no image"):
        evaluate_bundle(load(folder, threads=1), [], evaluator, ["full"])


def test_images_that_were_skipped_are_named(folder: Path):
    evaluator = CocoEvaluator(ground_truth=_truth(len(GREYS))[0])
    with pytest.warns(SkippedImagesWarning, match=r"1 images .* gone\.jpg") as record:
        evaluate_bundle(
            load(folder, threads=1), _batches(3, skipped=("gone.jpg: missing",)), evaluator, ["full"]
        )
    # The warning points to the caller.
    assert record[0].filename == __file__
