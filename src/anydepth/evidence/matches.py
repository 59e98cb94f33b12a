"""AP of resampled images: matches are found once, and counted again with the weights of each sample."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Weights = NDArray[np.float64]

_CHUNK: Final = 64  # samples at a time, so that memory stays at some hundred megabytes


@dataclass(frozen=True)
class _Category:
    """Detections of a category in the order of their scores, best first, and where its objects are.

    Attributes:
        image: [D] position of the image of each detection.
        hit: [T, D] whether it is matched, for each overlap.
        counted: [T, D] whether it counts; those matched to regions of a crowd do not.
        objects: [N] objects of each image.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.float64]


class Matches:
    """Detections of one depth on a split, matched with its objects as COCO's protocol does.

    Args:
        ground_truth: COCO dictionary of the split with numbers as ids.
        detections: Columns ``image_ids``, ``category_ids``, ``boxes_xywh`` and ``scores``.

    Attributes:
        image_ids: Ids of the N images, ascending.
    """

    def __init__(self, ground_truth: Mapping[str, Any], detections: Mapping[str, NDArray[Any]]) -> None:
        evaluation = _evaluate(ground_truth, detections)
        params = evaluation.params
        self.image_ids: tuple[int, ...] = tuple(int(one) for one in params.imgIds)
        self._recalls: NDArray[np.float64] = np.asarray(params.recThrs)
        places = {image: place for place, image in enumerate(self.image_ids)}
        # Of the first area range, all sizes; images follow each other within a category.
        count = len(self.image_ids)
        per_category = len(params.areaRng) * count
        self._categories = [
            _join(evaluation.evalImgs[start : start + count], places, len(params.iouThrs))
            for start in range(0, len(params.catIds) * per_category, per_category)
        ]

    def average_precision(self, weights: Weights) -> NDArray[np.float64]:
        """Return AP [S] in [0, 1] of samples of the images.

        Args:
            weights: [S, N], how often each image is in each sample, in the order of :attr:`image_ids`.

        Returns:
            Mean over overlaps and over the categories that have objects in the sample; NaN without any.
        """
        parts = [
            np.stack([self._of_category(one, weights[start : start + _CHUNK]) for one in self._categories])
            for start in range(0, len(weights), _CHUNK)
        ]
        with np.errstate(invalid="ignore"):
            found = np.concatenate(parts, axis=1)
            known = np.isfinite(found)
            total: NDArray[np.float64] = np.where(known, found, 0.0).sum(0) / known.sum(0)
        return total

    def _of_category(self, one: _Category, weights: Weights) -> NDArray[np.float64]:
        """Return AP [S] of a category; NaN where it has no object."""
        objects = weights @ one.objects
        copies = weights[:, one.image]  # [S, D]
        sums = np.zeros(len(weights))
        for hit, counted in zip(one.hit, one.counted, strict=True):
            true = np.cumsum(copies * (hit & counted), axis=1)
            false = np.cumsum(copies * (~hit & counted), axis=1)
            sums += self._interpolated(true, false, objects)
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = np.where(objects > 0, sums / len(one.hit), np.nan)
        return found

    def _interpolated(
        self, true: NDArray[np.float64], false: NDArray[np.float64], objects: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the mean precision [S] at COCO's recalls, where that of a recall is the best above it."""
        if not true.shape[1]:
            return np.zeros(len(true))
        found = np.zeros(len(true))
        for row, count in enumerate(objects):
            if not count:
                continue
            recall = true[row] / count
            precision = true[row] / np.maximum(true[row] + false[row], np.spacing(1))
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            places = np.searchsorted(recall, self._recalls, side="left")
            found[row] = np.append(envelope, 0.0)[places].mean()
        return found


def _evaluate(ground_truth: Mapping[str, Any], detections: Mapping[str, NDArray[Any]]) -> Any:
    table = np.column_stack(
        [
            detections["image_ids"],
            detections["boxes_xywh"],
            detections["scores"],
            detections["category_ids"],
        ]
    ).astype(np.float64)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(ground_truth)
        found = truth.loadRes(table) if len(table) else _index({**ground_truth, "annotations": []})
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
    return evaluation


def _index(ground_truth: Mapping[str, Any]) -> Any:
    found: Any = COCO()
    found.dataset = {"info": {}, **ground_truth}
    found.createIndex()
    return found


def _join(images: list[dict[str, Any] | None], places: Mapping[int, int], overlaps: int) -> _Category:
    """Join what pycocotools found of a category in each image; None is an image without any of it."""
    objects = np.zeros(len(places))
    scores, image, hit, ignored = [], [], [np.zeros((overlaps, 0), bool)], [np.zeros((overlaps, 0), bool)]
    for one in images:
        if one is None:
            continue
        place = places[one["image_id"]]
        objects[place] = np.sum(np.asarray(one["gtIgnore"]) == 0)
        scores.append(np.asarray(one["dtScores"], np.float64))
        image.append(np.full(len(one["dtScores"]), place))
        hit.append(np.asarray(one["dtMatches"]) > 0)
        ignored.append(np.asarray(one["dtIgnore"], bool))
    every = np.concatenate(scores) if scores else np.zeros(0)
    # As pycocotools sorts, so that equal scores keep the order of the images.
    order = np.argsort(-every, kind="mergesort")
    return _Category(
        np.concatenate(image)[order].astype(np.int64) if image else np.zeros(0, np.int64),
        np.concatenate(hit, axis=1)[:, order],
        ~np.concatenate(ignored, axis=1)[:, order],
        objects,
    )


def sample_images(images: int, samples: int, seed: int = 0) -> Weights:
    """Return how often each of N images is in each of S bootstrap samples [S, N]; each has N images."""
    random = np.random.default_rng(seed)
    drawn = random.integers(images, size=(samples, images))
    weights = np.zeros((samples, images))
    np.add.at(weights, (np.arange(samples)[:, None], drawn), 1.0)
    return weights
