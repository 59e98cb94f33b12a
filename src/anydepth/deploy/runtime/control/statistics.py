"""Statistics of the detections of a frame: what a router sees of a network that returns nothing else."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anydepth.detections import BaseDetections

LOWEST_SCORE: Final = 0.05
"""Detections with a lower score are not looked at."""
MOST: Final = 100
"""Detections of a frame that are looked at, the best ones."""

_LEVELS: Final = (0.1, 0.3, 0.5, 0.7)
NAMES: Final = (
    *(f"log_count_{level}" for level in _LEVELS),
    "score_best",
    "score_mean",
    "score_deviation",
    "score_of_the_fifth",
    "log_doubt",
    "log_size_deviation",
    "smallest_to_mean",
    "overlap",
)
"""Names of the statistics, in their order."""


def detection_statistics(detections: BaseDetections[Any]) -> NDArray[np.float32]:
    """Return statistics of a frame: how many objects, how sure, how unequal in size, how crowded.

    None depends on the size of the image, so that a router also suits another resolution.

    Args:
        detections: Detections of at least :data:`LOWEST_SCORE`, best first; arrays, or tensors of any device.

    Returns:
        [12] float32, see :data:`NAMES`; zeros without detections.

    Example:
        >>> from anydepth.detections import Detections
        >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 20]], np.float32)
        >>> found = Detections(boxes, np.array([0.8, 0.4], np.float32), np.array([0, 0]))
        >>> dict(zip(NAMES, detection_statistics(found).round(2).tolist()))["overlap"]
        0.5
    """
    scores = _array(detections.scores)[:MOST]
    boxes = _array(detections.boxes_xyxy)[:MOST]
    eligible = scores >= LOWEST_SCORE
    scores, boxes = scores[eligible], boxes[eligible]
    if not len(scores):
        return np.zeros(len(NAMES), np.float32)
    sizes = np.sqrt(np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1.0))
    values = [
        *(np.log1p((scores >= level).sum()) for level in _LEVELS),
        scores.max(),
        scores.mean(),
        scores.std(),
        scores[4] if len(scores) > 4 else 0.0,
        # The expected number of wrong decisions, if scores are probabilities.
        np.log1p(np.minimum(scores, 1 - scores).sum()),
        np.log(sizes).std(),
        sizes.min() / sizes.mean(),
        _mean_best_overlap(boxes),
    ]
    return np.asarray(values, np.float32)


def _mean_best_overlap(boxes: NDArray[np.float64]) -> float:
    """Return the mean over the boxes of the largest IoU with another one."""
    if len(boxes) < 2:
        return 0.0
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)  # [N, N]
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1)
    overlap = shared / np.maximum(areas[:, None] + areas[None] - shared, 1e-9)
    np.fill_diagonal(overlap, 0.0)
    return float(overlap.max(1).mean())


def _array(values: Any) -> NDArray[np.float64]:
    """Return an array of an array, or of a tensor in whatever memory."""
    on_host = values.cpu() if hasattr(values, "cpu") else values
    return np.asarray(on_host, np.float64)
