"""Tables of a COCO json as columns, checked against the disk and cleaned."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.categories import Categories
from anydepth.data.coco.json_rows import exists, is_file
from anydepth.data.errors import DataError
from anydepth.data.outlines import Rings
from anydepth.data.spelling import SpelledNames
from anydepth.utils.messages import join_few

MAX_SIDE = 2**31 - 1
"""Pixels of an image side: sizes are stored as int32."""
ROUNDING_PX = 1.0
"""Boxes that leave their image by no more than this are not changed: many files have rounded corners, and the
published results of official data sets are computed with them. Training clamps every box to the image
anyway."""


@dataclass(frozen=True)
class BoxRepairs:
    """Counts of the boxes of a json that could not be used as written.

    Attributes:
        clipped: Boxes that left the image by more than a pixel and were clipped to it.
        outside: Boxes outside the image, dropped.
        empty: Boxes of negative or zero width or height, dropped.
        not_finite: Boxes with NaN or infinity, dropped.
        first_ids: Annotation ids of the first few.
    """

    clipped: int
    outside: int
    empty: int
    not_finite: int
    first_ids: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.clipped or self.outside or self.empty or self.not_finite)

    def __str__(self) -> str:
        return (
            f"{self.clipped} boxes leave their image and were clipped; dropped were {self.outside} outside "
            f"it, {self.empty} without a positive size and {self.not_finite} with NaN or infinity "
            f"(first annotation ids: {', '.join(map(str, self.first_ids))})"
        )


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations as columns of equal length; see ``CocoIndex``.

    Attributes:
        ids: [A] annotation ids.
        boxes_xywh: [A, 4] in pixels.
        labels: [A] contiguous classes.
        crowd: [A] whether each is a crowd region.
        areas: [A] square pixels, NaN if the json has no usable area.
    """

    ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64]) -> "Annotations":
        """Select rows, in this order."""
        return Annotations(
            self.ids[rows], self.boxes_xywh[rows], self.labels[rows], self.crowd[rows], self.areas[rows]
        )


@dataclass(frozen=True, eq=False)
class CocoTables:
    """Tables of a json, in its order. ``I`` images, ``A`` annotations.

    Attributes:
        categories: Categories that define the labels.
        image_ids: [I], unique.
        sizes: [I, 2] (height, width) in pixels.
        names: File name of each image.
        rows: [A] row of each annotation's image.
        annotations: Annotations as written.
        rings: Function that returns the outline of an annotation by its position in the json, or None if it
            is malformed. None if outlines were not requested.
        remarks: What was taken from elsewhere, for the report.
    """

    categories: Categories
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    names: list[str]
    rows: NDArray[np.int64]
    annotations: Annotations
    rings: Callable[[int], Rings | None] | None
    remarks: tuple[str, ...] = ()


def clean_boxes(
    annotations: Annotations, sizes: NDArray[np.int32]
) -> tuple[NDArray[np.bool_], Annotations, BoxRepairs]:
    """Clip boxes that leave their image, and find those that cannot be used.

    Args:
        annotations: ``A`` annotations as written.
        sizes: [A, 2] (height, width) of each annotation's image.

    Returns:
        The mask of usable annotations [A], all annotations with clipped boxes and areas, and the counts.
    """
    boxes = annotations.boxes_xywh
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1).astype(np.float64)
    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        inside = np.clip(corners, 0, limits)
        empty = finite & (boxes[:, 2:] <= 0).any(axis=1)
        outside = finite & ~empty & (inside[:, 2:] <= inside[:, :2]).any(axis=1)
        keep = finite & ~empty & ~outside
        clip = keep & (np.abs(inside - corners) > ROUNDING_PX).any(axis=1)
    clipped = np.concatenate([inside[:, :2], inside[:, 2:] - inside[:, :2]], axis=1)
    boxes = np.where(clip[:, None], clipped, boxes)
    with np.errstate(invalid="ignore", over="ignore"):  # of boxes that are dropped
        box_areas = boxes[:, 2] * boxes[:, 3]
    areas = np.where(np.isnan(annotations.areas), box_areas, annotations.areas)
    areas = np.where(clip, np.minimum(areas, box_areas), areas)
    touched = annotations.ids[~keep | clip]
    repairs = BoxRepairs(
        int(clip.sum()),
        int(outside.sum()),
        int(empty.sum()),
        int((~finite).sum()),
        tuple(touched[:5].tolist()),
    )
    return keep, Annotations(annotations.ids, boxes, annotations.labels, annotations.crowd, areas), repairs


def select_training_boxes(
    boxes_xywh: NDArray[np.float64], labels: NDArray[np.signedinteger[Any]], crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Select the training boxes of one image.

    Args:
        boxes_xywh: [A, 4] corner and size in pixels.
        labels: [A] contiguous classes.
        crowd: [A] whether each annotation is a crowd region, which is left out.

    Returns:
        Boxes [N, 4] xyxy in pixels and labels [N].
    """
    boxes = boxes_xywh[~crowd]  # [N, 4]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)  # [N, 4]
    return corners.astype(np.float32), labels[~crowd].astype(np.int64)


def locate_images(
    json_path: Path, root: Path, image_ids: NDArray[np.int64], names: Sequence[str]
) -> list[str]:
    """Check that every image exists, and return the names as they are spelled on the disk.

    Folders are listed, because one query per file takes minutes on a network drive.

    Raises:
        DataError: Images are missing; the message counts them and names the first few.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder, but {json_path} names images in it; check the data settings"
        )
    places = [os.path.split(name) for name in names]
    present = {folder: _names_in(root / folder) for folder in {folder for folder, _ in places}}
    # A file system that ignores case may list another spelling, so that absence is checked again.
    there = [
        base in present[folder] or is_file(root / name)
        for name, (folder, base) in zip(names, places, strict=True)
    ]
    taken = {name for name, is_there in zip(names, there, strict=True) if is_there}
    located, missing = list(names), []
    spelled = SpelledNames(root)
    for row in np.flatnonzero(~np.array(there, dtype=np.bool_)).tolist():
        found = spelled.find(names[row])
        if found is None or found in taken:  # A file belongs to one entry.
            missing.append(f"{names[row]} (image id {image_ids[row]})")
        else:
            located[row] = found
            taken.add(found)
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of {len(names)} images of {json_path} are missing: {join_few(missing)}. "
            "Restore them, or take them out of the json"
        )
    return located


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if exists(folder) and folder.is_dir() else set()


def pack_names(names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pack texts into one array of UTF-8 bytes; return it with the start of each text and, last, the end."""
    encoded = [name.encode("utf-8") for name in names]
    starts = np.concatenate([[0], np.cumsum([len(name) for name in encoded])]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), starts
