"""Counts and sizes of a split, as rows of tables."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.tables import CocoTables, clean_boxes

SMALL_SIDE, LARGE_SIDE = 32, 96
"""Sides in pixels of the squares that bound COCO's small, medium and large objects."""


@dataclass(frozen=True)
class ClassCount:
    """Usable boxes of a class, without crowd regions.

    Attributes:
        name: Name of the class.
        category_id: Its id in the training split.
        boxes: Number of boxes.
        images: Number of images that have one.
    """

    name: str
    category_id: int
    boxes: int
    images: int


@dataclass(frozen=True)
class Statistics:
    """Numbers of a split.

    Attributes:
        facts: Name and value of each count.
        classes: Counts of each class.
        image_sizes: (height, width) in pixels and number of the most frequent sizes of images.
        sides: Name and values of quantiles (smallest, 5 %, median, 95 %, largest) in pixels.
    """

    facts: tuple[tuple[str, str], ...]
    classes: tuple[ClassCount, ...]
    image_sizes: tuple[tuple[tuple[int, int], int], ...]
    sides: tuple[tuple[str, tuple[float, ...]], ...]


def measure(tables: CocoTables) -> Statistics:
    """Count the images and boxes of a split.

    Args:
        tables: Tables as written in the json.
    """
    keep, cleaned, _ = clean_boxes(tables.annotations, tables.sizes[tables.rows])
    used = np.flatnonzero(keep & ~cleaned.crowd)
    rows, labels, boxes = tables.rows[used], cleaned.labels[used], cleaned.boxes_xywh[used]
    areas = boxes[:, 2:].prod(axis=1)
    small, large = (areas < SMALL_SIDE**2).sum(), (areas >= LARGE_SIDE**2).sum()
    images = len(tables.image_ids)
    facts = (
        ("images", images),
        ("images without boxes", images - len(np.unique(rows))),
        ("boxes", len(used)),
        ("crowd regions", int((keep & cleaned.crowd).sum())),
        ("boxes that cannot be used", int((~keep).sum())),
        (f"small boxes, below {SMALL_SIDE}² pixels", int(small)),
        ("medium boxes", int(len(used) - small - large)),
        (f"large boxes, from {LARGE_SIDE}² pixels", int(large)),
    )
    sizes = Counter((int(height), int(width)) for height, width in tables.sizes)
    return Statistics(
        facts=tuple((name, f"{value:,}") for name, value in facts),
        classes=_count_classes(tables, rows, labels),
        image_sizes=tuple(sizes.most_common(5)),
        sides=(
            ("image height", _quantiles(tables.sizes[:, 0])),
            ("image width", _quantiles(tables.sizes[:, 1])),
            ("box height", _quantiles(boxes[:, 3])),
            ("box width", _quantiles(boxes[:, 2])),
        ),
    )


def _count_classes(
    tables: CocoTables, rows: NDArray[np.int64], labels: NDArray[np.int32]
) -> tuple[ClassCount, ...]:
    count = len(tables.categories.ids)
    boxes = np.bincount(labels, minlength=count)
    pairs = np.unique(np.stack([rows, labels.astype(np.int64)], axis=1), axis=0)  # [P, 2] image and label
    images = np.bincount(pairs[:, 1], minlength=count)
    columns = zip(tables.categories.names, tables.categories.ids, boxes, images, strict=True)
    return tuple(ClassCount(name, number, int(b), int(i)) for name, number, b, i in columns)


def _quantiles(values: NDArray[np.generic]) -> tuple[float, ...]:
    if len(values) == 0:
        return ()
    return tuple(np.quantile(values.astype(np.float64), [0, 0.05, 0.5, 0.95, 1]).tolist())
