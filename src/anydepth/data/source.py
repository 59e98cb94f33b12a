"""Sources of annotated images: files beside a json, or shards of a stream."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anydepth.data.coco.index import CocoIndex
from anydepth.data.outlines import Outlines


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image as it is stored, with its training boxes.

    Attributes:
        image: [3, H, W] uint8 RGB.
        boxes_xyxy: [N, 4] float32 in pixels of the image, without crowd regions.
        labels: [N] int64, contiguous classes.
        image_id: The data set's id of the image.
        outlines: Polygons of the N boxes; None if the source keeps none.
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
        """First row of each shard and, last, the number of rows [S + 1]; None if each row has its own file.

        The order of an epoch keeps rows of one shard together, so that only a few shards are in use at a
        time.
        """
        ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> AnnotatedImage:
        """Return the image of a row.

        Raises:
            BadImageError: It cannot be read; the message names the file and the image id.
            DataError: The source itself is damaged or missing.
        """
        ...


class FileSource:
    """The image files of a packed json.

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
        return AnnotatedImage(
            image=self.index.read_image(row),
            boxes_xyxy=boxes,
            labels=labels,
            image_id=int(self.index.image_ids[row]),
            outlines=self.index.outlines_of(row),
        )
