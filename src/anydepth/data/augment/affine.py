"""Scaling and translation, and which objects are left of what they show."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from anydepth.data.augment.random_arguments import between, uniform
from anydepth.data.outlines import Outlines

Floats = NDArray[np.float32]
Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom."""

MIN_SIDE = 2.0
MIN_SHARE = 0.1
MIN_SHARE_OUTLINED = 0.01
MAX_ASPECT = 100.0


class AxisMap(NamedTuple):
    """A map of the plane that turns nothing: ``x * scale + shift`` per axis.

    Attributes:
        scale: (x, y); a negative one mirrors.
        shift: (x, y) in pixels of the target.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]

    def then(self, other: "AxisMap") -> "AxisMap":
        """This map, and the other after it."""
        (sx, sy), (tx, ty) = self
        (ox, oy), (px, py) = other
        return AxisMap((sx * ox, sy * oy), (tx * ox + px, ty * oy + py))

    def inverse(self) -> "AxisMap":
        """The way back."""
        (sx, sy), (tx, ty) = self
        return AxisMap((1 / sx, 1 / sy), (-tx / sx, -ty / sy))

    def rectangle(self, rectangle: Rectangle) -> Rectangle:
        """Where a rectangle lies in the target."""
        (sx, sy), (tx, ty) = self
        left, top, right, bottom = rectangle
        xs, ys = sorted((left * sx + tx, right * sx + tx)), sorted((top * sy + ty, bottom * sy + ty))
        return xs[0], ys[0], xs[1], ys[1]

    def boxes(self, boxes_xyxy: Floats) -> Floats:
        """Where boxes [N, 4] lie in the target."""
        moved = boxes_xyxy * np.array(self.scale * 2) + np.array(self.shift * 2)
        low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
        return np.concatenate([low, high], axis=1).astype(np.float32)

    def outlines(self, outlines: Outlines) -> Outlines:
        """Where polygons lie in the target."""
        return outlines.moved(self.scale, self.shift)


class RandomAffine:
    """Scales about the centre of the canvas and moves that to somewhere near the centre of the output.

    YOLO's random affine map without the rotation and the shear, which its recipe sets to 0.

    Args:
        scale: Largest change of the scale: 0.5 draws from 0.5 to 1.5.
        translate: Largest distance of the two centres, in sides of the output.
    """

    def __init__(self, *, scale: float = 0.5, translate: float = 0.1) -> None:
        if not 0 <= scale < 1:
            raise ValueError(f"scale={scale}: allowed are 0 to below 1; 0.5 draws from 0.5 to 1.5")
        self.scale = scale
        self.translate = between("translate", translate, 0, 0.5)

    def __call__(self, canvas: tuple[int, int], size: tuple[int, int], generator: torch.Generator) -> AxisMap:
        """The map from a canvas to the output, both given as (height, width) in pixels."""
        factor = uniform((1 - self.scale, 1 + self.scale), generator)
        middle = (0.5 - self.translate, 0.5 + self.translate)
        x, y = uniform(middle, generator) * size[1], uniform(middle, generator) * size[0]
        return scaled_about_centre(canvas, factor, (x, y))


def scaled_about_centre(canvas: tuple[int, int], factor: float, centre: tuple[float, float]) -> AxisMap:
    """The map that scales and brings the centre of a canvas (height, width) to ``centre`` (x, y)."""
    height, width = canvas
    return AxisMap((factor, factor), (centre[0] - factor * width / 2, centre[1] - factor * height / 2))


def clip_objects(boxes_xyxy: Floats, outlines: Outlines | None, window: Rectangle) -> Floats:
    """Cut boxes off at a window.

    Args:
        boxes_xyxy: [N, 4] in pixels.
        outlines: Of the N boxes. A box that crosses the window becomes the one around that part of its
            polygon which the window shows.
        window: In pixels.

    Returns:
        [N, 4]; objects outside have a side of 0.
    """
    low, high = np.array(window[:2] * 2, np.float32), np.array(window[2:] * 2, np.float32)
    clipped = boxes_xyxy.clip(low, high)
    if outlines is None:
        return clipped
    crossing = ((clipped != boxes_xyxy).any(axis=1) & outlines.outlined).nonzero()[0]
    if len(crossing):
        clipped[crossing] = _extents(outlines.take(crossing), window).clip(low, high)
    return clipped


def objects_to_keep(before: Floats, after: Floats, outlined: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which objects are still large enough to be learnt, and enough of themselves.

    Args:
        before: [N, 4] boxes in pixels of the output, not clipped by it.
        after: [N, 4] the same, clipped.
        outlined: [N] whether ``after`` was cut from a polygon: then less of the object suffices.

    Returns:
        [N].
    """
    sides = after[:, 2:] - after[:, :2]
    share = _area(after) / np.maximum(_area(before), np.finfo(np.float32).tiny)
    aspect = sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-6)
    large = (sides > MIN_SIDE).all(axis=1) & (aspect < MAX_ASPECT)
    enough = share > np.where(outlined, MIN_SHARE_OUTLINED, MIN_SHARE)
    keep: NDArray[np.bool_] = large & enough
    return keep


def _area(boxes_xyxy: Floats) -> Floats:
    area: Floats = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    return area


def _extents(outlines: Outlines, window: Rectangle) -> Floats:
    """The box [N, 4] around the part of each polygon that lies in the window; zeros where none does.

    The corners of that part are ends of edges cut at the window, and corners of the window in the polygon.
    """
    ring_of_point = np.repeat(np.arange(len(outlines.ring_starts) - 1), np.diff(outlines.ring_starts))
    object_of_ring = np.repeat(np.arange(len(outlines)), np.diff(outlines.object_starts))
    start = outlines.points.astype(np.float64)
    end = start[_next(outlines.ring_starts)]
    enters, leaves = _crossings(start, end - start, window)
    seen = enters <= leaves
    steps = np.stack([enters[seen], leaves[seen]])[..., None]
    cut = start[seen] + steps * (end - start)[seen]
    low, high = np.full((len(outlines), 2), np.inf), np.full((len(outlines), 2), -np.inf)
    objects = object_of_ring[ring_of_point[seen]]
    np.minimum.at(low, objects, cut.min(axis=0))
    np.maximum.at(high, objects, cut.max(axis=0))
    for x in (window[0], window[2]):
        for y in (window[1], window[3]):
            rings = _rings_around(start, end, ring_of_point, len(object_of_ring), (x, y))
            inside = object_of_ring[rings]
            np.minimum.at(low, inside, [x, y])
            np.maximum.at(high, inside, [x, y])
    extents = np.concatenate([low, high], axis=1)
    return np.where(np.isfinite(extents), extents, 0).astype(np.float32)


def _next(ring_starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[P] the point that follows each point around its ring."""
    following = np.arange(1, ring_starts[-1] + 1)
    filled = np.diff(ring_starts) > 0
    following[ring_starts[1:][filled] - 1] = ring_starts[:-1][filled]
    return following


def _crossings(
    start: NDArray[np.float64], step: NDArray[np.float64], window: Rectangle
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where along each edge, from 0 to 1, it enters and leaves the window (Liang and Barsky, 1984)."""
    low, high = np.array(window[:2]), np.array(window[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(low - start) / step, (high - start) / step])
    within = (start >= low) & (start <= high)
    still = step == 0
    first = np.where(still, np.where(within, -np.inf, np.inf), ends.min(axis=0))
    last = np.where(still, np.where(within, np.inf, -np.inf), ends.max(axis=0))
    return first.max(axis=1).clip(min=0), last.min(axis=1).clip(max=1)


def _rings_around(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    ring_of_point: NDArray[np.int64],
    rings: int,
    point: tuple[float, float],
) -> NDArray[np.bool_]:
    """[R] whether a ring goes around a point: a ray to the right meets an odd number of its edges."""
    x, y = point
    spans = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(spans, end[:, 1] - start[:, 1], 1.0)
    meets = spans & (start[:, 0] + (y - start[:, 1]) / rise * (end[:, 0] - start[:, 0]) > x)
    odd: NDArray[np.bool_] = np.bincount(ring_of_point[meets], minlength=rings) % 2 == 1
    return odd
