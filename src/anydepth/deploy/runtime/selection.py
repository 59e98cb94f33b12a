"""Selection of detections among candidates with numpy, as the families do it with torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anydepth.selection import NmsConfig, Selection, TopScores

Floats = NDArray[np.float32]


class Selected(NamedTuple):
    """Detections of one image, best score first.

    Attributes:
        boxes_xyxy: [N, 4] float32, in the units of the candidates.
        scores: [N] float32.
        labels: [N] int64.
    """

    boxes_xyxy: Floats
    scores: Floats
    labels: NDArray[np.int64]


def select(boxes_xyxy: Floats, scores: Floats, selection: Selection, threshold: float) -> Selected:
    """Select the detections of one image.

    Args:
        boxes_xyxy: [N, 4] candidates.
        scores: [N, K] in [0, 1].
        selection: Way in which the detector selects.
        threshold: Detections with a lower score are left out. Leaving them out first changes nothing, because
            neither suppression nor a maximum number lets a lower score replace a higher one.
    """
    if isinstance(selection, TopScores):
        return _top_scores(boxes_xyxy, scores, selection, threshold)
    return _suppress(boxes_xyxy, scores, selection, threshold)


def _top_scores(boxes: Floats, scores: Floats, selection: TopScores, threshold: float) -> Selected:
    places = np.flatnonzero(scores >= np.float32(threshold))
    order = _best_first(scores.reshape(-1)[places], selection.detections)
    places = places[order]
    candidates, labels = np.divmod(places, scores.shape[1])
    return Selected(boxes[candidates], scores.reshape(-1)[places], labels.astype(np.int64))


def _suppress(boxes: Floats, scores: Floats, nms: NmsConfig, threshold: float) -> Selected:
    eligible = (scores > np.float32(nms.score)) & (scores >= np.float32(threshold))
    candidates, labels = np.nonzero(eligible)
    best = scores[candidates, labels]
    order = _best_first(best, nms.candidates)
    own, best, labels = boxes[candidates[order]], best[order], labels[order].astype(np.int64)
    kept = nms_indices(own, labels, nms.iou, nms.detections)
    return Selected(own[kept], best[kept], labels[kept])


def _best_first(scores: Floats, count: int) -> NDArray[np.int64]:
    """Return the positions of the ``count`` best scores, best first; ties in their order."""
    if len(scores) > count:
        # All that may be among them, by a partition in linear time.
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= limit)
    else:
        places = np.arange(len(scores))
    order: NDArray[np.int64] = places[np.argsort(-scores[places], kind="stable")[:count]]
    return order


def nms_indices(boxes_xyxy: Floats, labels: NDArray[np.int64], iou: float, most: int) -> Sequence[int]:
    """Return the positions of the boxes that class-wise non-maximum suppression keeps, best first.

    Args:
        boxes_xyxy: [N, 4], best score first.
        labels: [N].
        iou: IoU above which a box is suppressed by a better one of its class.
        most: Maximum number to keep; the search ends there, as the rest cannot change what was kept.
    """
    left, top, right, bottom = boxes_xyxy.T
    areas = (right - left) * (bottom - top)
    remaining = np.arange(len(boxes_xyxy))
    kept: list[int] = []
    while len(remaining) and len(kept) < most:
        first, rest = remaining[0], remaining[1:]
        kept.append(int(first))
        width = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])
        height = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])
        overlap = width.clip(0) * height.clip(0)
        with np.errstate(invalid="ignore"):  # Two boxes without an area: 0 / 0, which exceeds nothing.
            shares = overlap / (areas[first] + areas[rest] - overlap)
        # In float64, as torchvision's kernel compares: the float32 nearest to 0.7 is another number.
        suppressed = (labels[rest] == labels[first]) & (shares > np.float64(iou))
        remaining = rest[~suppressed]
    return kept
