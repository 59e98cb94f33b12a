"""COCO metrics of detections, for several depths at once and over several processes.

Rows are kept per process as flat arrays, gathered once, stripped of images that a sampler repeated, evaluated
on the first process and broadcast: correct with uneven shards and with a process that has no images.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from anydepth.detections import Id
from anydepth.evaluation.coco_backends import BACKENDS, CocoBackend
from anydepth.evaluation.coco_numbers import (
    ResultRows,
    ids_of,
    number_ids,
    plain_id,
    renumber,
    renumber_annotations,
)
from anydepth.structures import Detections

MAX_DETECTIONS = 100
"""Detections of a class in an image that COCO's protocol counts (maxDets)."""

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of the 12 COCO metrics, in the order in which pycocotools prints them."""

NO_GROUND_TRUTH = -1.0
"""Value that COCO's own evaluation reports if there is no object to find, e.g. APs without small objects."""


_NO_CATEGORY = 0
"""Number of the labels that the ground truth lacks; those of categories begin with 1."""


class EvaluationError(ValueError):
    """Ground truth or detections that cannot be evaluated; the message says why and what to change."""


@dataclass(frozen=True)
class CocoResult:
    """COCO metrics of one set of detections.

    Attributes:
        figures: Metrics by the names in :data:`FIGURES`, in [0, 1]; -1 if the images hold no object to find.
        per_class: AP by category name, in the order of category ids; -1 for a category without objects.
        images: Number of images evaluated; the metrics cover these alone.
    """

    figures: Mapping[str, float]
    per_class: Mapping[str, float]
    images: int


@dataclass
class _Rows:
    """Detections as flat arrays: ``images`` (numbers) and ``counts`` per image, the others per detection.

    ``counts`` keeps images without detections, which were evaluated all the same.
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
    """Collects detections under any number of keys and computes the COCO metrics of each.

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
            Ids are whole numbers of any size and sign, or texts: figures do not depend on them.
        category_ids: Category id of each contiguous label, as the detector was trained; defaults to the
            ids of the ground truth in ascending order. Detections of categories that the ground truth lacks,
            and of None, are ignored.
        backend: ``hotcoco`` (fast) or ``pycocotools`` (the reference). Both give the same metrics.

    Attributes:
        has_objects: Whether there is an object to find; crowd regions are none. Metrics are -1 without one.

    Raises:
        EvaluationError: An unknown backend, or ground truth without images or categories, or with an id of
            either twice.
    """

    def __init__(
        self,
        *,
        ground_truth: Mapping[str, Any],
        category_ids: Sequence[Id | None] | None = None,
        backend: str = "hotcoco",
    ) -> None:
        if backend not in BACKENDS:
            raise EvaluationError(f"got backend={backend!r}, expected one of {', '.join(BACKENDS)}")
        for part in ("images", "categories"):
            if not ground_truth.get(part):
                raise EvaluationError(
                    f"got ground truth without {part}; give a COCO dictionary with at least one entry"
                )
        self.backend = backend
        self._image_numbers = _number(ground_truth["images"], "image")
        self._category_numbers = _number(ground_truth["categories"], "category")
        ordered = sorted(
            ground_truth["categories"], key=lambda entry: self._category_numbers[plain_id(entry["id"])]
        )
        self._category_names = _unique_names(ordered)
        # Kept as given until the first evaluation, which one process alone may need.
        self._ground_truth: Mapping[str, Any] | None = ground_truth
        wanted = list(self._category_numbers) if category_ids is None else category_ids
        self._label_numbers = np.array(
            [
                _NO_CATEGORY if one is None else self._category_numbers.get(one, _NO_CATEGORY)
                for one in wanted
            ],
            dtype=np.int64,
        )
        self.has_objects = any(not entry.get("iscrowd") for entry in ground_truth.get("annotations", ()))
        _warn_of_crowds(ground_truth.get("annotations", ()))
        self._rows: dict[str, _Rows] = {}
        # Built lazily and kept: indexing the ground truth costs more than evaluating one depth.
        self._backend: CocoBackend | None = None

    def add(self, key: str, image_ids: Sequence[Id], detections: Sequence[Detections]) -> None:
        """Store the detections of some images on this process, without any communication.

        Args:
            key: Name of the set of detections, e.g. the text of a depth.
            image_ids: Image ids of the ground truth. If one comes twice under a key, the first counts.
            detections: One entry per image; boxes in pixels of the original image, no threshold applied.

        Raises:
            EvaluationError: An unknown image id, a label without a category, values that are not finite, or
                lists of different lengths.
        """
        if len(image_ids) != len(detections):
            raise EvaluationError(
                f"got {len(image_ids)} image ids and {len(detections)} lists of detections, expected as many"
            )
        plain = [plain_id(image_id) for image_id in image_ids]
        for image_id in plain:
            if image_id not in self._image_numbers:
                raise EvaluationError(f"got image id {image_id}, expected an image of the ground truth")
        if not detections:
            return
        boxes_xyxy = _to_numpy([item.boxes_xyxy for item in detections])
        scores = _to_numpy([item.scores for item in detections])
        labels = _to_numpy([item.labels for item in detections])
        self._check(key, plain, boxes_xyxy, scores, labels)
        rows = self._rows.setdefault(key, _Rows())
        rows.images.append(np.array([self._image_numbers[one] for one in plain], dtype=np.int64))
        rows.counts.append(np.array([len(item) for item in detections], dtype=np.int64))
        rows.boxes_xyxy.append(boxes_xyxy.astype(np.float32))
        rows.scores.append(scores.astype(np.float32))
        rows.labels.append(labels.astype(np.int32))

    def reset(self) -> None:
        """Remove all detections; keep the ground truth."""
        self._rows.clear()

    def result_rows(self, key: str) -> ResultRows:
        """Return the detections stored under a key on this process with the data set's ids, each image once.

        Detections of classes that the ground truth lacks are left out.
        """
        table = np.empty((0, 7))
        if key in self._rows:
            table = self._table(self._rows[key])[1]
        return ResultRows(
            image_ids=ids_of(table[:, 0], self._image_numbers),
            category_ids=ids_of(table[:, 6], self._category_numbers),
            boxes_xywh=table[:, 1:5],
            scores=table[:, 5],
        )

    def evaluate(self) -> dict[str, CocoResult]:
        """Return the metrics of every key of any process; every process must call this and gets the same.

        Only images that were added are evaluated, so that a run over part of a data set is not penalised
        for images it never saw.

        Raises:
            EvaluationError: On every process, if the evaluation failed on the first one.
        """
        if not _is_distributed():
            return self._evaluate_all([self._rows])
        first = dist.get_rank() == 0
        gathered: list[dict[str, _Rows]] = [{} for _ in range(dist.get_world_size())]
        dist.gather_object(self._rows, gathered if first else None)
        outcome: list[dict[str, CocoResult] | str] = [{}]
        if first:
            # A failure is broadcast like a result: if the first process raised alone, the others would hang.
            try:
                outcome = [self._evaluate_all(gathered)]
            except Exception as error:
                outcome = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], str):
            raise EvaluationError(f"the COCO evaluation failed on the first process: {outcome[0]}")
        return outcome[0]

    # -- internals ---------------------------------------------------------------------------------------

    def _check(
        self,
        key: str,
        image_ids: Sequence[Id],
        boxes_xyxy: NDArray[Any],
        scores: NDArray[Any],
        labels: NDArray[Any],
    ) -> None:
        classes = len(self._label_numbers)
        if labels.size and not (labels.min() >= 0 and labels.max() < classes):
            raise EvaluationError(
                f"got labels {labels.min()} to {labels.max()}, expected 0 to {classes - 1} for "
                f"{classes} categories; evaluate on a data set with the classes of the detector"
            )
        if not (np.isfinite(boxes_xyxy).all() and np.isfinite(scores).all()):
            raise EvaluationError(
                f"depth {key}, images {list(image_ids)}: got a box or score that is not finite; the weights "
                "are damaged or training has diverged, so use an earlier checkpoint"
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
        image_numbers, table = self._table(rows)
        if self._backend is None:
            assert self._ground_truth is not None
            self._backend = BACKENDS[self.backend](self._numbered(self._ground_truth))
            self._ground_truth = None  # hundreds of megabytes on large data sets
        stats, precision = self._backend.measure(table, image_numbers)
        figures = {name: float(value) for name, value in zip(FIGURES, stats, strict=True)}
        return CocoResult(figures, _ap_per_class(precision, self._category_names), len(image_numbers))

    def _table(self, rows: _Rows) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the numbers of the images, and the rows that :meth:`CocoBackend.measure` takes."""
        image_numbers, table = _deduplicated_table(rows, self._label_numbers)
        return image_numbers, table[table[:, -1] != _NO_CATEGORY]

    def _numbered(self, ground_truth: Mapping[str, Any]) -> dict[str, Any]:
        numbers = self._image_numbers, self._category_numbers
        try:
            annotations = list(renumber_annotations(ground_truth.get("annotations", ()), *numbers))
        except KeyError as error:
            raise EvaluationError(
                f"an annotation of the ground truth names {error}, expected ids of its images and categories"
            ) from error
        return {
            # pycocotools reads `info` of every ground truth, although it makes no use of it.
            "info": {},
            "images": renumber(ground_truth["images"], self._image_numbers),
            "categories": renumber(ground_truth["categories"], self._category_numbers),
            "annotations": annotations,
        }


def _number(entries: Sequence[Mapping[str, Any]], kind: str) -> dict[Id, int]:
    numbers = number_ids(entries)
    if len(numbers) != len(entries):
        raise EvaluationError(
            f"got {len(entries)} entries with {len(numbers)} {kind} ids in the ground truth, expected unique "
            "ids; renumber them"
        )
    return numbers


def _to_numpy(tensors: Sequence[Tensor]) -> NDArray[Any]:
    array: NDArray[Any] = torch.cat([tensor.detach() for tensor in tensors]).cpu().numpy()
    return array


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _deduplicated_table(
    rows: _Rows, label_numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the numbers of the images, and their detections as a table, each image once.

    Args:
        rows: Detections, which may hold an image several times.
        label_numbers: [K] category number of each label.
    """
    occurrences = np.concatenate(rows.images)
    image_numbers, first = np.unique(occurrences, return_index=True)
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
            label_numbers[np.concatenate(rows.labels)],
        ]
    )
    return image_numbers, table[keep_row]


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the category names; categories that share a name get their id appended."""
    uses = Counter(str(category["name"]) for category in categories)
    return [
        name if uses[name] == 1 else f"{name} ({category['id']})"
        for category in categories
        for name in [str(category["name"])]
    ]


def _ap_per_class(precision: NDArray[np.float64], names: Sequence[str]) -> dict[str, float]:
    """Return AP by class from precision [IoU thresholds, recalls, K, area ranges, detection limits]."""
    result: dict[str, float] = {}
    for index, name in enumerate(names):
        values = precision[:, :, index, 0, -1]  # [IoU thresholds, recalls], all areas, most detections
        values = values[values > NO_GROUND_TRUTH]
        result[name] = float(values.mean()) if values.size else NO_GROUND_TRUTH
    return result


def _warn_of_crowds(annotations: Iterable[Mapping[str, Any]]) -> None:
    """Warn if COCO's protocol cannot find every object: it takes the best 100 of each class in an image."""
    crowds = Counter(
        (box.get("image_id"), box.get("category_id")) for box in annotations if not box.get("iscrowd", 0)
    )
    (image, category), most = max(crowds.items(), key=itemgetter(1), default=((None, None), 0))
    if most > MAX_DETECTIONS:
        warnings.warn(
            f"image {image} has {most} boxes of category {category}, and AP counts at most the best "
            f"{MAX_DETECTIONS} detections of a class in an image, as COCO does: even a perfect detector "
            "stays below 100 here. Cut such images into tiles for figures of all their objects",
            stacklevel=3,
        )
