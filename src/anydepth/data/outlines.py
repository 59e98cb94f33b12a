"""Outlines: the polygons around objects, in flat arrays."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MIN_NUMBERS = 6
"""Coordinates of a ring: three points are the fewest that enclose an area."""
_MAX_COORDINATE = 2**31
"""Pixels: image sides are below it (``coco.tables.MAX_SIDE``), so that no point of an object reaches it."""


@dataclass(frozen=True, eq=False)
class Outlines:
    """The polygons around objects, of one image or of many, in flat arrays.

    An occluded object may consist of several rings of at least three points; an object without a polygon (a
    crowd region, or a data set with boxes alone) has none.

    Attributes:
        points: [P, 2] float32, x and y in pixels.
        ring_starts: [R + 1] int64; the points of ring ``r`` are ``ring_starts[r]:ring_starts[r + 1]``.
        object_starts: [N + 1] int64; the rings of object ``n`` are ``object_starts[n]:object_starts[n + 1]``.
    """

    points: NDArray[np.float32]
    ring_starts: NDArray[np.int64]
    object_starts: NDArray[np.int64]

    @classmethod
    def empty(cls, count: int) -> "Outlines":
        """Return the outlines of ``count`` objects without a polygon."""
        return cls(np.zeros((0, 2), np.float32), np.zeros(1, np.int64), np.zeros(count + 1, dtype=np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence["Outlines"]) -> "Outlines":
        """Concatenate the objects of all parts."""
        return cls(
            np.concatenate([part.points for part in parts]),
            _concatenate_starts([part.ring_starts for part in parts]),
            _concatenate_starts([part.object_starts for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.object_starts) - 1

    @property
    def outlined(self) -> NDArray[np.bool_]:
        """Whether each object has a polygon [N]."""
        return np.diff(self.object_starts) > 0

    def take(self, objects: NDArray[np.int64]) -> "Outlines":
        """Select objects by their positions [M], in this order."""
        rings, object_starts = _gather_spans(self.object_starts, objects)
        points, ring_starts = _gather_spans(self.ring_starts, rings)
        return Outlines(self.points[points], ring_starts, object_starts)

    def transform(self, scale: tuple[float, float], shift: tuple[float, float]) -> "Outlines":
        """Multiply every point by ``scale`` and add ``shift``, both (x, y); a negative scale mirrors."""
        points = (self.points * np.array(scale) + np.array(shift)).astype(np.float32)
        return Outlines(points, self.ring_starts, self.object_starts)

    def rings(self) -> Iterator[NDArray[np.float32]]:
        """Iterate over the rings of all objects, [p, 2] each."""
        for start, end in zip(self.ring_starts[:-1], self.ring_starts[1:], strict=True):
            yield self.points[start:end]


Rings = list[NDArray[np.float32]]
"""The rings of one object, each as x, y, x, y, ..."""


def parse_rings(segmentation: object) -> Rings | None:
    """Parse the ``segmentation`` of an annotation.

    Args:
        segmentation: A list of polygons (x, y, x, y, ...). Run lengths of a mask, None and empty lists mean
            an object without a polygon.

    Returns:
        The rings; None if any of them is malformed, because half an outline would be a wrong one.
    """
    if segmentation is None or isinstance(segmentation, dict) or segmentation in ([], [[]]):
        return []
    if not isinstance(segmentation, list):
        return None
    rings: Rings = []
    for ring in segmentation:
        if not _is_ring(ring):
            return None
        rings.append(np.array(ring, dtype=np.float32))
    return rings


def _is_ring(ring: object) -> bool:
    # Without numpy: its call overhead exceeds the work on such short lists.
    if not isinstance(ring, list) or len(ring) < _MIN_NUMBERS or len(ring) % 2:
        return False
    try:
        return min(ring) > -_MAX_COORDINATE and max(ring) < _MAX_COORDINATE and math.isfinite(sum(ring))
    except TypeError:
        return False


def pack_outlines(objects: Iterable[Rings]) -> Outlines:
    """Pack the rings of many objects into flat arrays."""
    points = bytearray()
    ring_ends, object_ends = [0], [0]
    for rings in objects:
        for ring in rings:
            points += ring.data
            ring_ends.append(ring_ends[-1] + len(ring) // 2)
        object_ends.append(len(ring_ends) - 1)
    return Outlines(
        np.frombuffer(points, dtype=np.float32).reshape(-1, 2),
        np.array(ring_ends, dtype=np.int64),
        np.array(object_ends, dtype=np.int64),
    )


def _gather_spans(
    starts: NDArray[np.int64], picked: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the members of the picked spans, and the start of each span among them."""
    lengths = starts[picked + 1] - starts[picked]
    new_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    members = np.arange(new_starts[-1]) + np.repeat(starts[picked] - new_starts[:-1], lengths)
    return members, new_starts


def _concatenate_starts(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = np.concatenate([np.diff(part) for part in parts])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
