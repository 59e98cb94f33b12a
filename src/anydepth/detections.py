"""Detections of one image, as arrays or tensors, and their conversion to the forms of other tools."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import supervision

Id = int | str
"""Id of an image, a category or an annotation: a whole number of any size, or a text."""

ValuesT = TypeVar("ValuesT", bound=Any)
"""Arrays or tensors."""


@dataclass(frozen=True)
class BaseDetections(Generic[ValuesT]):
    """Detections of one image, as arrays or as tensors.

    Attributes:
        boxes_xyxy: [N, 4] float32, pixels of the original image.
        scores: [N] float32 in [0, 1].
        labels: [N] int64, contiguous classes in [0, K).
        class_names: One name per class; empty if nobody has named them.
    """

    boxes_xyxy: ValuesT
    scores: ValuesT
    labels: ValuesT
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def above(self, threshold: float) -> Self:
        """Return the detections whose score is at least ``threshold``."""
        keep = self.scores >= threshold
        return replace(
            self, boxes_xyxy=self.boxes_xyxy[keep], scores=self.scores[keep], labels=self.labels[keep]
        )

    def named(self, class_names: Sequence[str]) -> Self:
        """Return the same detections with names for their classes, one per class."""
        return replace(self, class_names=tuple(class_names))

    def to_coco(self, image_id: Id, category_ids: Sequence[Id] | None = None) -> list[dict[str, object]]:
        """Return entries of COCO's results format, in plain Python values.

        Args:
            image_id: Id of the image in the data set.
            category_ids: Category id of each class; by default 1 + the label, as ``anydepth-predict`` writes.

        Raises:
            ValueError: A label without a category id.

        Example:
            >>> box = np.array([[10, 20, 40, 60]], dtype=np.float32)
            >>> found = Detections(box, np.array([0.5], dtype=np.float32), np.array([1]), ("cat", "dog"))
            >>> found.to_coco(7)
            [{'image_id': 7, 'category_id': 2, 'bbox': [10.0, 20.0, 30.0, 40.0], 'score': 0.5}]
        """
        labels = self.labels.tolist()
        if category_ids is not None:
            _check_labels(labels, len(category_ids), "category_ids")
        return [
            coco_entry(
                image_id,
                label + 1 if category_ids is None else category_ids[label],
                (left, top, right - left, bottom - top),
                score,
            )
            for (left, top, right, bottom), score, label in zip(
                self.boxes_xyxy.tolist(), self.scores.tolist(), labels, strict=True
            )
        ]

    def to_supervision(self) -> "supervision.Detections":
        """Return the detections for the annotators, trackers and metrics of the package supervision.

        Classes are in ``class_id``, and their names in ``data["class_name"]``: the labels as text if nobody
        has named them. Tensors must be in host memory.

        Raises:
            ImportError: The package is not installed.
            ValueError: A label without a class name.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                f"to_supervision needs the package supervision, which cannot be imported ({error}); install "
                "it with `pip install supervision`"
            ) from error
        # Copies: whatever is done with them, these detections stay as they are.
        labels = np.asarray(self.labels, dtype=np.int64).copy()
        return supervision.Detections(
            xyxy=np.asarray(self.boxes_xyxy, dtype=np.float32).copy(),
            confidence=np.asarray(self.scores, dtype=np.float32).copy(),
            class_id=labels,
            data={"class_name": np.array(self._names_of(labels.tolist()), dtype=str)},
        )

    def _names_of(self, labels: list[int]) -> list[str]:
        if not self.class_names:
            return [str(label) for label in labels]
        _check_labels(labels, len(self.class_names), "class_names")
        return [self.class_names[label] for label in labels]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Detections(BaseDetections[NDArray[Any]]):
    """Detections of one image as arrays, best score first.

    :class:`anydepth.structures.Detections` holds the same as tensors.

    Attributes:
        boxes_xyxy: [N, 4] float32, pixels of the original image.
        scores: [N] float32 in [0, 1].
        labels: [N] int64, contiguous classes in [0, K).
        class_names: One name per class; empty if nobody has named them.
    """

    def clipped(self, height: int, width: int) -> "Detections":
        """Return the same detections with their boxes clipped to an image of this size in pixels."""
        limit = np.array([width, height, width, height], dtype=self.boxes_xyxy.dtype)
        return replace(self, boxes_xyxy=np.clip(self.boxes_xyxy, 0, limit))


def coco_entry(image_id: Id, category_id: Id, box_xywh: Sequence[float], score: float) -> dict[str, object]:
    """Return an entry of COCO's results format.

    The box is rounded to a thousandth of a pixel and the score to seven places, which does not affect the
    COCO metrics.

    Args:
        image_id: Id of the image.
        category_id: Id of the category.
        box_xywh: Left, top, width and height in pixels.
        score: Score in [0, 1].
    """
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(value, 3) for value in box_xywh],
        "score": round(score, 7),
    }


def _check_labels(labels: Sequence[int], count: int, name: str) -> None:
    if labels and max(labels) >= count:
        raise ValueError(
            f"got {count} {name} and a detection of class {max(labels)} (counted from 0), expected one for "
            "each class of the detector"
        )
