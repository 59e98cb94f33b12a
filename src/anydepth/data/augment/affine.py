"""Scaling and translation of boxes and polygons, and the choice of the objects that remain visible."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from anydepth.data.augment.random_arguments import check_between, draw_uniform
from anydepth.data.outlines import Outlines

Floats = NDArray[np.float32]
Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom."""

# The four limits are those of the published training code of YOLOv5 and its successors, YOLOv12 among them,
# so that AnyDepth-YOLO learns from the same boxes.
MIN_SIDE = 2.0
"""Side in pixels of the output: a smaller box shows too little of an object to be a training target."""
MIN_SHARE = 0.1
"""Share of a box that must remain: of less, what is left rarely shows the object itself."""
MIN_SHARE_OUTLINED = 0.01
"""The same for a box around the visible part of a polygon, which does show the object."""
MAX_ASPECT = 100.0
"""Ratio of the longer side to the shorter one: a thinner strip at the border is a remnant of an object."""


class AxisMap(NamedTuple):
    """An affine map without rotation and shear: ``x * scale + shift`` per axis.

    Attributes:
        scale: Scale (x, y); a negative one mirrors.
        shift: Translation (x, y) in pixels of the target.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]

    def then(self, other: "AxisMap") -> "AxisMap":
        """Compose this map with another one that is applied after it."""
        (sx, sy), (tx, ty) = self
        (ox, oy), (px, py) = other
        return AxisMap((sx * ox, sy * oy), (tx * ox + px, ty * oy + py))

    def inverse(self) -> "AxisMap":
        """Return the inverse map."""
        (sx, sy), (tx, ty) = self
        return AxisMap((1 / sx, 1 / sy), (-tx / sx, -ty / sy))

    def map_rectangle(self, rectangle: Rectangle) -> Rectangle:
        """Map a rectangle into the target."""
        (sx, sy), (tx, ty) = self
        left, top, right, bottom = rectangle
        xs, ys = sorted((left * sx + tx, right * sx + tx)), sorted((top * sy + ty, bottom * sy + ty))
        return xs[0], ys[0], xs[1], ys[1]

    def map_boxes(self, boxes_xyxy: Floats) -> Floats:
        """Map boxes [N, 4] xyxy into the target."""
        moved = boxes_xyxy * np.array(self.scale * 2) + np.array(self.shift * 2)  # [N, 4]
        # A mirroring map swaps the corners.
        low = np.minimum(moved[:, :2], moved[:, 2:])  # [N, 2]
        high = np.maximum(moved[:, :2], moved[:, 2:])  # [N, 2]
        return np.concatenate([low, high], axis=1).astype(np.float32)  # [N, 4]

    def map_outlines(self, outlines: Outlines) -> Outlines:
        """Map polygons into the target."""
        return outlines.transform(self.scale, self.shift)


class RandomAffine:
    """Random scale about the centre of the canvas, and random translation near the centre of the output.

    YOLO's random affine map without the rotation and the shear, which its recipe sets to 0.

    Args:
        scale: Maximum change of the scale: 0.5 draws from 0.5 to 1.5.
        translate: Maximum distance of the two centres per axis, in sides of the output.
    """

    def __init__(self, *, scale: float = 0.5, translate: float = 0.1) -> None:
        if not 0 <= scale < 1:
            raise ValueError(f"got scale={scale}, expected 0 to below 1; 0.5 draws from 0.5 to 1.5")
        self.scale = scale
        self.translate = check_between("translate", translate, 0, 0.5)

    def __call__(self, canvas: tuple[int, int], size: tuple[int, int], generator: torch.Generator) -> AxisMap:
        """Draw a map from a canvas to the output, both given as (height, width) in pixels."""
        factor = draw_uniform((1 - self.scale, 1 + self.scale), generator)
        middle = (0.5 - self.translate, 0.5 + self.translate)
        x, y = draw_uniform(middle, generator) * size[1], draw_uniform(middle, generator) * size[0]
        return scale_about_centre(canvas, factor, (x, y))


def scale_about_centre(canvas: tuple[int, int], factor: float, centre: tuple[float, float]) -> AxisMap:
    """Return the map that scales and moves the centre of a canvas (height, width) to ``centre`` (x, y)."""
    height, width = canvas
    return AxisMap((factor, factor), (centre[0] - factor * width / 2, centre[1] - factor * height / 2))


def clip_objects(boxes_xyxy: Floats, outlines: Outlines | None, window: Rectangle) -> Floats:
    """Clip objects to a window.

    Args:
        boxes_xyxy: [N, 4] in pixels.
        outlines: Polygons of the N boxes. A box that crosses the window becomes the tight box around the part
            of its polygon inside the window.
        window: Window in pixels.

    Returns:
        Boxes [N, 4]; objects outside the window have a side of 0.
    """
    low, high = np.array(window[:2] * 2, np.float32), np.array(window[2:] * 2, np.float32)  # [4] each
    clipped = boxes_xyxy.clip(low, high)  # [N, 4]
    if outlines is None:
        return clipped
    crossing = ((clipped != boxes_xyxy).any(axis=1) & outlines.outlined).nonzero()[0]  # [C] positions
    if len(crossing):
        clipped[crossing] = _clipped_extents(outlines.take(crossing), window).clip(low, high)
    return clipped


def select_visible_objects(before: Floats, after: Floats, outlined: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Select the objects that are still large and visible enough to be training targets.

    Args:
        before: [N, 4] boxes in pixels of the output before clipping.
        after: [N, 4] the same boxes after clipping.
        outlined: [N] whether ``after`` was computed from a polygon: then a smaller part suffices.

    Returns:
        Mask [N].
    """
    sides = after[:, 2:] - after[:, :2]  # [N, 2]
    share = _area(after) / np.maximum(_area(before), np.finfo(np.float32).tiny)  # [N]
    # 1e-6 only avoids a division by zero: MIN_SIDE drops boxes that are so thin.
    aspect = sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-6)  # [N]
    large = (sides > MIN_SIDE).all(axis=1) & (aspect < MAX_ASPECT)  # [N]
    enough = share > np.where(outlined, MIN_SHARE_OUTLINED, MIN_SHARE)  # [N]
    keep: NDArray[np.bool_] = large & enough
    return keep


def _area(boxes_xyxy: Floats) -> Floats:
    area: Floats = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)  # [N]
    return area


def _clipped_extents(outlines: Outlines, window: Rectangle) -> Floats:
    """Return the box [N, 4] around the part of each polygon inside the window; zeros if there is none.

    The corners of that part are ends of edges clipped to the window, and corners of the window inside the
    polygon. P points (and as many edges) in R rings; E of the edges cross the window.
    """
    ring_of_point = np.repeat(np.arange(len(outlines.ring_starts) - 1), np.diff(outlines.ring_starts))  # [P]
    object_of_ring = np.repeat(np.arange(len(outlines)), np.diff(outlines.object_starts))  # [R]
    start = outlines.points.astype(np.float64)  # [P, 2]
    end = start[_next_points(outlines.ring_starts)]  # [P, 2]
    enters, leaves = _clip_edges(start, end - start, window)  # [P] each
    inside = enters <= leaves  # [P]
    steps = np.stack([enters[inside], leaves[inside]])[..., None]  # [2, E, 1]
    ends = start[inside] + steps * (end - start)[inside]  # [2, E, 2]
    low, high = np.full((len(outlines), 2), np.inf), np.full((len(outlines), 2), -np.inf)  # [N, 2] each
    objects = object_of_ring[ring_of_point[inside]]  # [E]
    np.minimum.at(low, objects, ends.min(axis=0))
    np.maximum.at(high, objects, ends.max(axis=0))
    for x in (window[0], window[2]):
        for y in (window[1], window[3]):
            rings = _rings_containing(start, end, ring_of_point, len(object_of_ring), (x, y))  # [R]
            objects = object_of_ring[rings]
            np.minimum.at(low, objects, [x, y])
            np.maximum.at(high, objects, [x, y])
    extents = np.concatenate([low, high], axis=1)  # [N, 4]
    return np.where(np.isfinite(extents), extents, 0).astype(np.float32)


def _next_points(ring_starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of the point that follows each point around its ring [P]."""
    following = np.arange(1, ring_starts[-1] + 1)  # [P]
    filled = np.diff(ring_starts) > 0  # [R]
    following[ring_starts[1:][filled] - 1] = ring_starts[:-1][filled]
    return following


def _clip_edges(
    start: NDArray[np.float64], step: NDArray[np.float64], window: Rectangle
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clip edges to the window (Liang and Barsky, 1984).

    Args:
        start: [P, 2] first points of the edges.
        step: [P, 2] vectors from the first to the last points.
        window: Window in pixels.

    Returns:
        Positions along each edge, from 0 to 1, at which it enters and leaves the window, [P] each; an edge
        outside leaves before it enters.
    """
    low, high = np.array(window[:2]), np.array(window[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(low - start) / step, (high - start) / step])  # [2, P, 2]
    # An edge parallel to two borders lies between them with all of its length, or not at all.
    within = (start >= low) & (start <= high)  # [P, 2]
    parallel = step == 0  # [P, 2]
    first = np.where(parallel, np.where(within, -np.inf, np.inf), ends.min(axis=0))  # [P, 2]
    last = np.where(parallel, np.where(within, np.inf, -np.inf), ends.max(axis=0))  # [P, 2]
    return first.max(axis=1).clip(min=0), last.min(axis=1).clip(max=1)


def _rings_containing(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    ring_of_point: NDArray[np.int64],
    rings: int,
    point: tuple[float, float],
) -> NDArray[np.bool_]:
    """Return which rings contain a point [R]: a ray to the right meets an odd number of their edges."""
    x, y = point
    spans = (start[:, 1] > y) != (end[:, 1] > y)  # [P]
    rise = np.where(spans, end[:, 1] - start[:, 1], 1.0)  # [P]; 1 avoids a division by zero
    meets = spans & (start[:, 0] + (y - start[:, 1]) / rise * (end[:, 0] - start[:, 0]) > x)
    odd: NDArray[np.bool_] = np.bincount(ring_of_point[meets], minlength=rings) % 2 == 1  # [R]
    return odd
