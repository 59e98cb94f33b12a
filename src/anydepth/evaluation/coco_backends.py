"""Two implementations of the COCO evaluation behind one interface.

``hotcoco`` is fast enough to evaluate many depths; ``pycocotools`` is COCO's own code and the reference.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import hotcoco
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Measured = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Pair of the 12 metrics and the precision [IoU thresholds, recalls, K, area ranges, detection limits]."""


class CocoBackend(Protocol):
    """Ground truth, indexed once, against which any number of sets of detections is evaluated.

    Its ids are numbers from 1, see :mod:`anydepth.evaluation.coco_numbers`.
    """

    def measure(self, table: NDArray[np.float64], image_numbers: NDArray[np.int64]) -> Measured:
        """Evaluate detections against the ground truth.

        Args:
            table: [N, 7]: image number, x, y, width, height (pixels), score, category number; N may be 0.
            image_numbers: Numbers of the images to evaluate, unique and ascending.
        """
        ...


class HotcocoBackend:
    """Backend that runs hotcoco, written in Rust.

    Args:
        ground_truth: A COCO dictionary whose ids are numbers from 1.
    """

    def __init__(self, ground_truth: Mapping[str, Any]) -> None:
        self._truth = hotcoco.COCO(dict(ground_truth))

    def measure(self, table: NDArray[np.float64], image_numbers: NDArray[np.int64]) -> Measured:
        """See :meth:`CocoBackend.measure`."""
        evaluation = hotcoco.COCOeval(self._truth, self._truth.load_res(table), "bbox")
        evaluation.params.img_ids = image_numbers.tolist()
        with _silenced_stdout():
            evaluation.run()
        return np.asarray(evaluation.stats), np.asarray((evaluation.eval or {})["precision"])


class PycocotoolsBackend:
    """Backend that runs pycocotools, with its console output silenced.

    Args:
        ground_truth: A COCO dictionary whose ids are numbers from 1.
    """

    def __init__(self, ground_truth: Mapping[str, Any]) -> None:
        self._ground_truth = dict(ground_truth)
        self._truth = _build_pycocotools_index(self._ground_truth)

    def measure(self, table: NDArray[np.float64], image_numbers: NDArray[np.int64]) -> Measured:
        """See :meth:`CocoBackend.measure`."""
        with _silenced_stdout():
            # loadRes distinguishes boxes from masks by the first row, so it fails without one.
            detections = (
                self._truth.loadRes(table)
                if len(table)
                else _build_pycocotools_index({**self._ground_truth, "annotations": []})
            )
            evaluation = COCOeval(self._truth, detections, "bbox")
            evaluation.params.imgIds = image_numbers.tolist()
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return np.asarray(evaluation.stats), np.asarray(evaluation.eval["precision"])


BACKENDS: Mapping[str, Callable[[Mapping[str, Any]], CocoBackend]] = {
    "hotcoco": HotcocoBackend,
    "pycocotools": PycocotoolsBackend,
}


def _build_pycocotools_index(ground_truth: Mapping[str, Any]) -> Any:
    index: Any = COCO()
    index.dataset = dict(ground_truth)
    with _silenced_stdout():
        index.createIndex()
    return index


@contextlib.contextmanager
def _silenced_stdout() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
