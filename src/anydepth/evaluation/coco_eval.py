"""The COCO figures of detections, for several depths at once and over several processes.

Rows are kept per process as flat arrays, gathered once, freed of images that a sampler handed out twice,
evaluated on the first process and sent back to all: right for uneven shards and for a process without images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from anydepth.evaluation.coco_backends import BACKENDS, CocoBackend
from anydepth.structures import Detections

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of the 12 COCO figures, in the order in which pycocotools prints them."""

NO_GROUND_TRUTH = -1.0
"""What COCO's own evaluation reports where there is no object to find, e.g. APs without small objects."""


class EvaluationError(ValueError):
    """Ground truth or detections that cannot be evaluated; the message says what came and what to change."""


@dataclass(frozen=True)
class CocoResult:
    """The figures of one set of detections.

    Attributes:
        figures: By the names of :data:`FIGURES`, in [0, 1]; -1 where the images hold no object to find.
        per_class: AP by category name, in the order of category ids; -1 for a category without objects.
        images: How many images were evaluated; the figures are about these alone.
    """

    figures: Mapping[str, float]
    per_class: Mapping[str, float]
    images: int


@dataclass
class _Rows:
    """Detections of some images in arrays: ``images`` and ``counts`` per image, the rest per detection.

    ``counts`` matters because an image without detections was looked at all the same.
    """

    images: list[NDArray[np.int64]] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)
    boxes_xyxy: list[NDArray[np.float32]] = field(default_factory=list)
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[NDArray[np.int32]] = field(default_factory=list)

    def extend(self, other: "_Rows") -> None:
        self.images += other.images
        self.counts += other.counts
        self.boxes_xyxy += other.boxes_xyxy
        self.scores += other.scores
        self.labels += other.labels


class CocoEvaluator:
    """Collects detections under any number of keys and computes the COCO figures of each.

    Example:
        >>> truth = {
        ...     "images": [{"id": 7, "width": 100, "height": 100}],
        ...     "categories": [{"id": 5, "name": "tree"}],
        ...     "annotations": [
        ...         dict(id=1, image_id=7, category_id=5, bbox=[10, 10, 40, 40], area=1600, iscrowd=0)
        ...     ],
        ... }
        >>> evaluator = CocoEvaluator(ground_truth=truth)
        >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
        >>> evaluator.add("full", [7], [Detections(box, torch.tensor([0.9]), torch.tensor([0]))])
        >>> round(evaluator.evaluate()["full"].figures["AP"], 6)
        1.0

    Args:
        ground_truth: A COCO dictionary: ``images``, ``categories``, and ``annotations`` with ``id``,
            ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``area`` and ``iscrowd``.
        category_ids: The category id of each contiguous label, as the detector was trained; left out: the
            ids of the ground truth in ascending order. Detections of other categories than those of the
            ground truth do not count.
        backend: ``hotcoco`` (fast) or ``pycocotools`` (the reference). Both give the same figures.

    Raises:
        EvaluationError: An unknown backend, or ground truth without images or categories.
    """

    def __init__(
        self,
        *,
        ground_truth: Mapping[str, Any],
        category_ids: Sequence[int] | None = None,
        backend: str = "hotcoco",
    ) -> None:
        if backend not in BACKENDS:
            raise EvaluationError(f"backend={backend!r}: allowed are {', '.join(BACKENDS)}")
        for part in ("images", "categories"):
            if not ground_truth.get(part):
                raise EvaluationError(f"the ground truth has no {part}: nothing can be evaluated")
        self.backend = backend
        self._ground_truth: dict[str, Any] = {
            # pycocotools reads `info` of every ground truth, though it uses nothing of it.
            "info": {},
            "images": list(ground_truth["images"]),
            "categories": sorted(ground_truth["categories"], key=lambda category: int(category["id"])),
            "annotations": list(ground_truth.get("annotations", ())),
        }
        known = [int(category["id"]) for category in self._ground_truth["categories"]]
        self._category_ids = np.array(known if category_ids is None else category_ids, dtype=np.int64)
        self._image_ids = {int(image["id"]) for image in self._ground_truth["images"]}
        self._rows: dict[str, _Rows] = {}
        # Built when first needed and kept: indexing the ground truth costs more than evaluating one depth.
        self._backend: CocoBackend | None = None

    def add(self, key: str, image_ids: Sequence[int], detections: Sequence[Detections]) -> None:
        """Keep the detections of some images, on this process, without any communication.

        Args:
            key: What the detections belong to, e.g. the text of a depth.
            image_ids: Ids of the ground truth. Of an image that comes twice under one key, the first counts.
            detections: One entry per image; boxes in pixels of the original image, no threshold applied.

        Raises:
            EvaluationError: An unknown image id, a label without a category, values that are not finite, or
                lists of different lengths.
        """
        if len(image_ids) != len(detections):
            raise EvaluationError(
                f"{len(image_ids)} image ids came with {len(detections)} lists of detections"
            )
        for image_id in image_ids:
            if int(image_id) not in self._image_ids:
                raise EvaluationError(f"image id {image_id} is not among the images of the ground truth")
        if not detections:
            return
        boxes_xyxy = _to_numpy([item.boxes_xyxy for item in detections])
        scores = _to_numpy([item.scores for item in detections])
        labels = _to_numpy([item.labels for item in detections])
        self._check(key, image_ids, boxes_xyxy, scores, labels)
        rows = self._rows.setdefault(key, _Rows())
        rows.images.append(np.array(image_ids, dtype=np.int64))
        rows.counts.append(np.array([len(item) for item in detections], dtype=np.int64))
        rows.boxes_xyxy.append(boxes_xyxy.astype(np.float32))
        rows.scores.append(scores.astype(np.float32))
        rows.labels.append(labels.astype(np.int32))

    def reset(self) -> None:
        """Forget all detections; the ground truth stays."""
        self._rows.clear()

    def table(self, key: str) -> NDArray[np.float64]:
        """The detections kept under a key on this process, each image once.

        Detections of classes that the ground truth does not have are not among them.

        Returns:
            [R, 7] image id; x, y, width, height in pixels; score; category id.
        """
        if key not in self._rows:
            return np.empty((0, 7))
        known = [int(category["id"]) for category in self._ground_truth["categories"]]
        _, table = _unique_table(self._rows[key], self._category_ids)
        return table[np.isin(table[:, -1], known)]

    def evaluate(self) -> dict[str, CocoResult]:
        """The figures of every key that any process holds; every process must call this and gets the same.

        The figures are about the images that were added, so that a run over a part of a data set is not
        charged with the images it never saw.

        Raises:
            EvaluationError: On every process, when the evaluation failed on the first one.
        """
        if not _is_distributed():
            return self._evaluate_all([self._rows])
        first = dist.get_rank() == 0
        gathered: list[dict[str, _Rows]] = [{} for _ in range(dist.get_world_size())]
        dist.gather_object(self._rows, gathered if first else None)
        answer: list[dict[str, CocoResult] | str] = [{}]
        if first:
            # A failure travels like a result: a process that raises alone leaves the others waiting.
            try:
                answer = [self._evaluate_all(gathered)]
            except Exception as error:
                answer = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], str):
            raise EvaluationError(f"the COCO evaluation failed on the first process: {answer[0]}")
        return answer[0]

    # -- internals ---------------------------------------------------------------------------------------

    def _check(
        self,
        key: str,
        image_ids: Sequence[int],
        boxes_xyxy: NDArray[Any],
        scores: NDArray[Any],
        labels: NDArray[Any],
    ) -> None:
        classes = len(self._category_ids)
        if labels.size and not (labels.min() >= 0 and labels.max() < classes):
            raise EvaluationError(
                f"labels {labels.min()} to {labels.max()} came for {classes} categories: the detector "
                "and the data set have different classes"
            )
        if not (np.isfinite(boxes_xyxy).all() and np.isfinite(scores).all()):
            raise EvaluationError(
                f"depth {key}, images {list(image_ids)}: a box or a score is not finite; the weights are "
                "damaged or training has diverged"
            )

    def _evaluate_all(self, shards: Sequence[Mapping[str, _Rows]]) -> dict[str, CocoResult]:
        keys = dict.fromkeys(key for shard in shards for key in shard)
        results = {}
        for key in keys:
            rows = _Rows()
            for shard in shards:
                rows.extend(shard.get(key, _Rows()))
            results[key] = self._evaluate_one(rows)
        return results

    def _evaluate_one(self, rows: _Rows) -> CocoResult:
        known = [int(category["id"]) for category in self._ground_truth["categories"]]
        image_ids, table = _unique_table(rows, self._category_ids)
        table = table[np.isin(table[:, -1], known)]
        if self._backend is None:
            self._backend = BACKENDS[self.backend](self._ground_truth)
        stats, precision = self._backend.measure(table, image_ids)
        names = _unique_names(self._ground_truth["categories"])
        figures = {name: float(value) for name, value in zip(FIGURES, stats, strict=True)}
        return CocoResult(figures, _per_class(precision, names), len(image_ids))


def _to_numpy(tensors: Sequence[Tensor]) -> NDArray[Any]:
    array: NDArray[Any] = torch.cat([tensor.detach() for tensor in tensors]).cpu().numpy()
    return array


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _unique_table(
    rows: _Rows, category_ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids of the images seen, and the rows that :meth:`CocoBackend.measure` takes, each image once."""
    occurrences = np.concatenate(rows.images)
    image_ids, first = np.unique(occurrences, return_index=True)
    keep = np.zeros(len(occurrences), dtype=bool)
    keep[first] = True
    counts = np.concatenate(rows.counts)
    keep_row = np.repeat(keep, counts)
    boxes = np.concatenate(rows.boxes_xyxy).reshape(-1, 4).astype(np.float64)
    table = np.column_stack(
        [
            np.repeat(occurrences, counts),
            boxes[:, :2],
            boxes[:, 2:] - boxes[:, :2],
            np.concatenate(rows.scores),
            category_ids[np.concatenate(rows.labels)],
        ]
    )
    return image_ids, table[keep_row]


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Category names; two categories of one name are told apart by their ids."""
    uses = Counter(str(category["name"]) for category in categories)
    return [
        name if uses[name] == 1 else f"{name} ({category['id']})"
        for category in categories
        for name in [str(category["name"])]
    ]


def _per_class(precision: NDArray[np.float64], names: Sequence[str]) -> dict[str, float]:
    """AP by class from precision [IoU thresholds, recalls, K, area ranges, detection limits]."""
    result: dict[str, float] = {}
    for index, name in enumerate(names):
        values = precision[:, :, index, 0, -1]
        values = values[values > NO_GROUND_TRUTH]
        result[name] = float(values.mean()) if values.size else NO_GROUND_TRUTH
    return result
