"""Packing a COCO json into the arrays of its index: read, check, clean, sort by image, share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.categories import Categories
from anydepth.data.coco.memory import SharedArrays
from anydepth.data.coco.tables import (
    Annotations,
    BoxRepairs,
    CocoTables,
    clean_boxes,
    locate_images,
    pack_names,
)
from anydepth.data.coco.tolerant import tolerant_tables
from anydepth.data.coco.typed import UnusualJsonError, typed_tables
from anydepth.data.errors import DataError
from anydepth.data.outlines import Outlines, Rings, pack_outlines
from anydepth.utils.messages import join_few

MAX_CATEGORIES = 2**15 - 1
"""Labels are stored as int16."""


@dataclass(frozen=True, eq=False)
class PackedIndex:
    """The parts of a :class:`anydepth.data.coco.index.CocoIndex`.

    Attributes:
        categories: Categories that define the labels.
        repairs: Counts of the boxes that were clipped or dropped.
        memory: Arrays of the index, ``names`` and ``name_starts``, and those of ``Outlines`` if kept.
    """

    categories: Categories
    repairs: BoxRepairs
    memory: SharedArrays


def pack(
    path: Path,
    root: Path,
    *,
    categories: Categories | None,
    for_training: bool,
    outlines: bool,
    annotated: bool,
    report: Callable[[str], None],
) -> PackedIndex:
    """Read and pack a json; see :meth:`anydepth.data.coco.index.CocoIndex.load`.

    Raises:
        DataError: The json is malformed, or an image is missing on disk.
    """
    tables = read_tables(path, categories, outlines=outlines, annotated=annotated, image_root=root)
    count = len(tables.categories.ids)
    if count > MAX_CATEGORIES:
        raise DataError(f"{path}: got {count} categories, expected at most {MAX_CATEGORIES}; merge some")
    tables = replace(tables, names=locate_images(path, root, tables.image_ids, tables.names))
    keep, columns, repairs = clean_boxes(tables.annotations, tables.sizes[tables.rows])
    kept = np.flatnonzero(keep)
    order = kept[np.argsort(tables.rows[kept], kind="stable")]
    columns = columns.take(order)
    if for_training and columns.crowd.all():
        raise DataError(
            f"{path}: no image holds a box to learn from (crowd regions do not count); check that this "
            "is the json of the training split"
        )
    arrays = _arrays(tables, columns, order)
    problems = [*tables.remarks, *([str(repairs)] if repairs else [])]
    if tables.rings is not None:
        polygons, malformed = _outlines(tables.rings, columns, order)
        arrays |= vars(polygons)
        problems += [_describe_malformed(malformed)] if malformed else []
    if problems:
        report(f"{path}: {'; '.join(problems)}")
    return PackedIndex(tables.categories, repairs, SharedArrays.of(arrays))


def read_tables(
    path: Path,
    categories: Categories | None,
    *,
    outlines: bool,
    annotated: bool = True,
    image_root: Path | None = None,
) -> CocoTables:
    """Read the tables of a json as written, with the tolerant reader as the fallback of the typed one.

    Raises:
        DataError: The json is malformed.
    """
    try:
        return typed_tables(path, categories, outlines=outlines)
    except UnusualJsonError:
        return tolerant_tables(
            path, categories, outlines=outlines, annotated=annotated, image_root=image_root
        )


def _arrays(tables: CocoTables, columns: Annotations, order: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    names, name_starts = pack_names(tables.names)
    rows = np.arange(len(tables.image_ids) + 1)
    return {
        "image_ids": tables.image_ids,
        "sizes": tables.sizes,
        "boxes_xywh": columns.boxes_xywh,
        "labels": columns.labels.astype(np.int16),
        "crowd": columns.crowd,
        "areas": columns.areas,
        "annotation_ids": columns.ids,
        "starts": np.searchsorted(tables.rows[order], rows).astype(np.int32),
        "names": names,
        "name_starts": name_starts.astype(np.int32),
    }


def _outlines(
    rings: Callable[[int], Rings | None], columns: Annotations, order: NDArray[np.int64]
) -> tuple[Outlines, list[int]]:
    """Return the outlines of sorted annotations, and the ids of those whose outline is malformed."""
    malformed: list[int] = []

    def usable_rings(position: int, crowd: bool, annotation_id: int) -> Rings:
        # A crowd region is never a training target, so that its outline is of no use.
        found = [] if crowd else rings(position)
        if found is None:
            malformed.append(annotation_id)
        return found or []

    rows = zip(order.tolist(), columns.crowd.tolist(), columns.ids.tolist(), strict=True)
    return pack_outlines(usable_rings(*row) for row in rows), malformed


def _describe_malformed(malformed: list[int]) -> str:
    return (
        f"{len(malformed)} outlines were dropped, because their 'segmentation' is not a list of polygons "
        f"[x, y, x, y, ...] with at least 3 points; their boxes are used (annotation ids: "
        f"{join_few(malformed)})"
    )
