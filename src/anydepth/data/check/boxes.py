"""Boxes that training drops or changes, and boxes that are probably mistakes."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anydepth.data.check.findings import Finding
from anydepth.data.coco.tables import CocoTables, clean_boxes

MIN_SIDE_PX = 2.0
"""Objects of a pixel are usually a click that slipped."""
WHOLE_IMAGE = 0.99
"""Share of the image above which a box says nothing about the place of its object."""
MAX_ASPECT = 50.0
"""Longer side over the shorter one, above which a box is a line: few objects of any data set are."""


def check_boxes(tables: CocoTables) -> list[Finding]:
    """Return the doubtful boxes of a split by kind, and those that cannot be used.

    Args:
        tables: Tables as written in the json.
    """
    written = tables.annotations
    sizes = tables.sizes[tables.rows]  # [A, 2] height, width
    keep, cleaned, _ = clean_boxes(written, sizes)
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(written.boxes_xywh), axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sides = cleaned.boxes_xywh[:, 2:]
        empty = finite & (written.boxes_xywh[:, 2:] <= 0).any(axis=1)
        clipped = keep & (cleaned.boxes_xywh != written.boxes_xywh).any(axis=1)
        share = sides.prod(axis=1) / sizes.astype(np.float64).prod(axis=1)
        aspect = sides.max(axis=1) / sides.min(axis=1)
    object_box = keep & ~written.crowd
    same, contradicting = _repeated(tables, object_box)
    kinds = (
        ("boxes with NaN or infinity, which are dropped", ~finite),
        ("boxes without a positive size, which are dropped", empty),
        ("boxes outside their image, which are dropped", finite & ~empty & ~keep),
        ("boxes that leave their image by more than a pixel, which are clipped", clipped),
        (f"boxes with a side below {MIN_SIDE_PX:g} pixels", object_box & (sides.min(axis=1) < MIN_SIDE_PX)),
        (f"boxes that cover at least {WHOLE_IMAGE:.0%} of their image", object_box & (share >= WHOLE_IMAGE)),
        (f"boxes more than {MAX_ASPECT:g} times as long as wide", object_box & (aspect > MAX_ASPECT)),
        ("boxes that an image has twice, with one class", same),
        ("boxes that an image has twice, with different classes", contradicting),
    )
    findings: list[Finding] = []
    for title, mask in kinds:
        findings += Finding.of(title, "doubt", _describe(tables, mask))
    return findings


def _describe(tables: CocoTables, mask: NDArray[np.bool_]) -> Iterator[str]:
    for position in np.flatnonzero(mask).tolist():
        box = ", ".join(f"{side:g}" for side in tables.annotations.boxes_xywh[position])
        yield (
            f"{tables.names[tables.rows[position]]}: annotation {tables.annotations.ids[position]}, "
            f"{tables.categories.names[tables.annotations.labels[position]]}: [{box}]"
        )


def _repeated(tables: CocoTables, usable: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the masks [A] of boxes equal to an earlier one of their image, of its class and of another."""
    same, contradicting = np.zeros_like(usable), np.zeros_like(usable)
    labels_at: dict[tuple[float, ...], set[int]] = defaultdict(set)
    for position in np.flatnonzero(usable).tolist():
        key = (int(tables.rows[position]), *tables.annotations.boxes_xywh[position].tolist())
        label = int(tables.annotations.labels[position])
        same[position] = label in labels_at[key]
        contradicting[position] = bool(labels_at[key]) and not same[position]
        labels_at[key].add(label)
    return same, contradicting
