"""AP of resampled images: that of pycocotools on a data set in which images really come several times."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from anydepth.evidence.matches import Matches, sample_images

Columns = dict[str, NDArray[Any]]


def _scene(images: int = 6, seed: int = 0) -> tuple[dict[str, Any], Columns]:
    """Ground truth of two categories and a crowd, and detections near and far from the objects."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    rows: list[tuple[int, int, list[float], float]] = []
    for image in range(1, images + 1):
        for _ in range(int(random.integers(0, 5))):
            box = [*random.uniform(0, 60, 2), *random.uniform(5, 40, 2)]
            category = int(random.integers(1, 3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(random.random() < 0.15),
                }
            )
            moved = [value + random.normal(0, 2) for value in box]
            rows.append((image, category, moved, float(random.random())))
        for _ in range(3):
            stray = [*random.uniform(0, 60, 2), *random.uniform(5, 40, 2)]
            rows.append((image, int(random.integers(1, 3)), stray, float(random.random())))
    truth = {
        "images": [{"id": number, "width": 100, "height": 100} for number in range(1, images + 1)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }
    return truth, _columns(rows)


def _columns(rows: list[tuple[int, int, list[float], float]]) -> Columns:
    return {
        "image_ids": np.array([row[0] for row in rows], np.int64),
        "category_ids": np.array([row[1] for row in rows], np.int64),
        "boxes_xywh": np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        "scores": np.array([row[3] for row in rows], np.float64),
    }


def _repeated(truth: dict[str, Any], found: Columns, weights: NDArray[np.float64]) -> float:
    """AP by pycocotools, each image as often as its weight says."""
    images, annotations, table = [], [], []
    for image, times in zip(truth["images"], weights, strict=True):
        for _ in range(int(times)):
            new = len(images) + 1
            images.append({**image, "id": new})
            annotations += [
                {**one, "image_id": new} for one in truth["annotations"] if one["image_id"] == image["id"]
            ]
            table += [
                [new, *found["boxes_xywh"][row], found["scores"][row], found["category_ids"][row]]
                for row in np.flatnonzero(found["image_ids"] == image["id"])
            ]
    for number, one in enumerate(annotations):
        one["id"] = number + 1
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {"info": {}, **truth, "images": images, "annotations": annotations}
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes(np.array(table)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(4))
def test_ap_of_a_sample_is_that_of_pycocotools_with_repeated_images(seed: int) -> None:
    truth, found = _scene(seed=seed)
    matches = Matches(truth, found)
    assert matches.image_ids == tuple(range(1, 7))
    weights = np.concatenate([np.ones((1, 6)), sample_images(6, 8, seed), [[3, 0, 0, 0, 2, 1]]])
    measured = matches.average_precision(weights)
    for value, own in zip(measured, weights, strict=True):
        expected = _repeated(truth, found, own)
        # pycocotools has -1 where no image holds an object.
        assert np.isnan(value) if expected < 0 else value == pytest.approx(expected, abs=1e-9)


def test_images_without_objects_and_detections_have_no_ap() -> None:
    truth, found = _scene()
    nothing = {name: values[:0] for name, values in found.items()}
    assert Matches(truth, nothing).average_precision(np.ones((1, 6)))[0] == 0.0
    empty = {**truth, "annotations": []}
    assert np.isnan(Matches(empty, found).average_precision(np.ones((1, 6)))[0])


def test_a_sample_draws_as_many_images_as_there_are() -> None:
    weights = sample_images(7, 50, seed=1)
    assert weights.shape == (50, 7)
    assert (weights.sum(1) == 7).all()
    assert np.array_equal(weights, sample_images(7, 50, seed=1))
    assert not np.array_equal(weights, sample_images(7, 50, seed=2))
    # Each image is drawn once on average.
    assert abs(sample_images(7, 5000).mean(0) - 1).max() < 0.05
