"""Numbers 1, 2, 3, ... in place of a data set's ids, for the code that computes the COCO metrics.

To that code an id is more than a name: an annotation with id 0 counts as not found in pycocotools, ids beyond
2^53 merge in the floats that detections travel in, and hotcoco refuses negative ones. Figures must not depend
on how a tool numbers its files (Label Studio, globox and pylabel begin with 0).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsInt

import numpy as np
from numpy.typing import NDArray

from anydepth.detections import Id


@dataclass(frozen=True, eq=False)
class ResultRows:
    """Detections with the ids of the data set, as COCO's results format lists them. ``R`` detections.

    Attributes:
        image_ids: [R] image id of each detection, as Python objects.
        category_ids: [R] category id of each detection, as Python objects.
        boxes_xywh: [R, 4] float64, corner and size in pixels.
        scores: [R] float64 in [0, 1].
    """

    image_ids: NDArray[np.object_]
    category_ids: NDArray[np.object_]
    boxes_xywh: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)


def plain_id(value: SupportsInt | str) -> Id:
    """Return an id as Python's own type: numpy's and torch's integers become int."""
    return value if isinstance(value, str) else int(value)


def number_ids(entries: Iterable[Mapping[str, Any]]) -> dict[Id, int]:
    """Return the number of each id, from 1, in ascending order of the ids; texts come after numbers.

    Ids of equal detections decide which of them counts first, so their order is kept.
    """
    ids = {plain_id(entry["id"]) for entry in entries}
    ordered = sorted(ids, key=lambda one: (isinstance(one, str), one))
    return {one: number for number, one in enumerate(ordered, start=1)}


def renumber(entries: Sequence[Mapping[str, Any]], numbers: Mapping[Id, int]) -> list[dict[str, Any]]:
    """Return images or categories with their numbers as ids, in the order of the numbers."""
    numbered = ({**entry, "id": numbers[plain_id(entry["id"])]} for entry in entries)
    return sorted(numbered, key=lambda entry: int(entry["id"]))


def renumber_annotations(
    annotations: Iterable[Mapping[str, Any]],
    image_numbers: Mapping[Id, int],
    category_numbers: Mapping[Id, int],
) -> Iterator[dict[str, Any]]:
    """Yield annotations with their position, from 1, as id, and with the numbers of image and category.

    Raises:
        KeyError: An annotation names an image or a category that has no number.
    """
    for number, annotation in enumerate(annotations, start=1):
        yield {
            **annotation,
            "id": number,
            "image_id": image_numbers[plain_id(annotation["image_id"])],
            "category_id": category_numbers[plain_id(annotation["category_id"])],
        }


def ids_of(numbers: NDArray[Any], known: Mapping[Id, int]) -> NDArray[np.object_]:
    """Return the id of each number; the inverse of :func:`number_ids`."""
    ids = np.empty(len(known) + 1, dtype=object)
    for one, number in known.items():
        ids[number] = one
    found: NDArray[np.object_] = ids[numbers.astype(np.int64)]
    return found
