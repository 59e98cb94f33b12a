"""Where images with their boxes come from: files beside a json, or shards of a stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anydepth.data.coco import CocoIndex


@dataclass(frozen=True, eq=False)
class Outlines:
    """The polygons around objects, of one image or of many, in flat arrays.

    An object may consist of several rings of at least three points, because something stands in front of it;
    an object without a polygon (a crowd region, or a data set with boxes alone) has none.

    Attributes:
        points: [P, 2] float32, x and y in pixels.
        ring_starts: [R + 1] int64; the points of ring ``r`` are ``ring_starts[r]:ring_starts[r + 1]``.
        object_starts: [N + 1] int64; the rings of object ``n`` are ``object_starts[n]:object_starts[n + 1]``.
    """

    points: NDArray[np.float32]
    ring_starts: NDArray[np.int64]
    object_starts: NDArray[np.int64]

    @classmethod
    def none_of(cls, count: int) -> "Outlines":
        """``count`` objects without a polygon."""
        return cls(np.zeros((0, 2), np.float32), np.zeros(1, np.int64), np.zeros(count + 1, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Outlines"]) -> "Outlines":
        """The objects of all parts, one part after the other."""
        return cls(
            np.concatenate([part.points for part in parts]),
            _joined_starts([part.ring_starts for part in parts]),
            _joined_starts([part.object_starts for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.object_starts) - 1

    @property
    def outlined(self) -> NDArray[np.bool_]:
        """[N] whether an object has a polygon."""
        return np.diff(self.object_starts) > 0

    def take(self, objects: NDArray[np.int64]) -> "Outlines":
        """Only these objects, in this order; ``objects`` is [M] positions."""
        rings, object_starts = _spans(self.object_starts, objects)
        points, ring_starts = _spans(self.ring_starts, rings)
        return Outlines(self.points[points], ring_starts, object_starts)

    def moved(self, scale: tuple[float, float], shift: tuple[float, float]) -> "Outlines":
        """Every point times ``scale`` plus ``shift``, both (x, y); a negative scale mirrors."""
        points = (self.points * np.array(scale) + np.array(shift)).astype(np.float32)
        return Outlines(points, self.ring_starts, self.object_starts)

    def rings(self) -> Iterator[NDArray[np.float32]]:
        """The rings of all objects, [p, 2] each."""
        for start, end in zip(self.ring_starts[:-1], self.ring_starts[1:], strict=True):
            yield self.points[start:end]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image as it is stored, with the boxes that a detector learns from.

    Attributes:
        image: [3, H, W] uint8 RGB.
        boxes_xyxy: [N, 4] float32 in pixels of the image, without crowd regions.
        labels: [N] int64, contiguous classes.
        image_id: The data set's id.
        outlines: Of the N boxes; None where the source keeps none.
    """

    image: Tensor
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_id: int
    outlines: Outlines | None = None


class SampleSource(Protocol):
    """Images by row, 0 to ``len - 1``; sent to worker processes, so it must not be large when pickled."""

    @property
    def shard_starts(self) -> NDArray[np.int64] | None:
        """[S + 1] first row of each shard and the number of rows; None where rows lie in files of their own.

        Rows of one shard are read together: the order of an epoch keeps them near each other.
        """
        ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> AnnotatedImage:
        """The image of a row.

        Raises:
            DataError: It cannot be read; the message names the file and the image id.
        """
        ...


class FileSource:
    """The images of a packed json, in files.

    Args:
        index: The packed json.
    """

    shard_starts: NDArray[np.int64] | None = None

    def __init__(self, index: CocoIndex) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def read(self, row: int) -> AnnotatedImage:
        """See :meth:`SampleSource.read`."""
        boxes, labels = self.index.training_boxes(row)
        return AnnotatedImage(self.index.read_image(row), boxes, labels, int(self.index.image_ids[row]))


def _spans(
    starts: NDArray[np.int64], picked: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The members of the picked spans, and where each span starts among them."""
    lengths = starts[picked + 1] - starts[picked]
    new_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    members = np.arange(new_starts[-1]) + np.repeat(starts[picked] - new_starts[:-1], lengths)
    return members, new_starts


def _joined_starts(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = np.concatenate([np.diff(part) for part in parts])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
