"""A canvas of several pictures that is never painted as a whole.

All that follows a mosaic is scaling and translation. So each picture keeps its own map to the canvas; it is
composed with the one to the output, and what the output shows is cut from the source and resized in one step:
less work than resizing the sources, filling a canvas of four times the output and resizing that again, and
pixels are interpolated once instead of twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from anydepth.data.augment.affine import AxisMap, Floats, Rectangle, clip_objects, objects_to_keep
from anydepth.data.augment.view import View, image_size
from anydepth.data.outlines import Outlines
from anydepth.images import letter_box_frame


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture on a canvas.

    Attributes:
        image: [3, H, W] uint8.
        place: From pixels of the image to those of the canvas.
        window: The part of the canvas that it may cover.
        outline: Covers only what lies in these polygons, in pixels of the canvas; None covers the window.
    """

    image: Tensor
    place: AxisMap
    window: Rectangle
    outline: Outlines | None = None

    def paint(self, picture: Image.Image, to_picture: AxisMap) -> None:
        """Paint what the picture shows of it, given the map from the canvas; the rest keeps its colour.

        A pixel is covered if its centre is.
        """
        left, top, right, bottom = to_picture.rectangle(self.window)
        left, top = max(ceil(left - 0.5), 0), max(ceil(top - 0.5), 0)
        right, bottom = min(ceil(right - 0.5), picture.width), min(ceil(bottom - 0.5), picture.height)
        if left >= right or top >= bottom:
            return
        seen = (left, top, right, bottom)
        place = self.place.then(to_picture)
        piece = resampled(self.image, place.inverse().rectangle(seen), (bottom - top, right - left))
        if place.scale[0] < 0:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = None if self.outline is None else _mask(to_picture.outlines(self.outline), seen)
        picture.paste(piece, (left, top), mask)


@dataclass(frozen=True, eq=False)
class Scene:
    """Pictures on a canvas, with the objects that they show.

    Attributes:
        size: (height, width) of the canvas in pixels.
        tiles: From the lowest to the topmost.
        boxes_xyxy: [N, 4] float32 in pixels of the canvas, inside it.
        labels: [N] int64.
        outlines: Of the N boxes, in pixels of the canvas, which they may leave.
        tile_of: [N] int64, which of the tiles shows an object.
    """

    size: tuple[int, int]
    tiles: tuple[Tile, ...]
    boxes_xyxy: Floats
    labels: NDArray[np.int64]
    outlines: Outlines
    tile_of: NDArray[np.int64]

    @property
    def window(self) -> Rectangle:
        """All of the canvas."""
        return 0.0, 0.0, float(self.size[1]), float(self.size[0])

    def seen_through(self, to_output: AxisMap, size: tuple[int, int], fill: int) -> View:
        """The output that a map from the canvas leads to.

        Args:
            to_output: The map.
            size: (height, width) of the output in pixels.
            fill: Grey level where no picture is.
        """
        picture = Image.new("RGB", (size[1], size[0]), (fill, fill, fill))
        for tile in self.tiles:
            tile.paint(picture, to_output)
        boxes, outlines = to_output.boxes(self.boxes_xyxy), to_output.outlines(self.outlines)
        visible = to_output.rectangle(self.window)
        seen = (max(visible[0], 0), max(visible[1], 0), min(visible[2], size[1]), min(visible[3], size[0]))
        clipped = clip_objects(boxes, outlines, seen)
        keep = objects_to_keep(boxes, clipped, outlines.outlined)
        return View.of(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1),
            torch.from_numpy(clipped[keep]),
            torch.from_numpy(self.labels[keep]),
        )


def scene_of(size: tuple[int, int], views: Sequence[View], places: Sequence[AxisMap]) -> Scene:
    """Views on a canvas, each at its place; objects and pictures are cut off where the canvas ends.

    Args:
        size: (height, width) of the canvas in pixels.
        views: The pictures; the corners of no two overlap.
        places: From pixels of each picture to those of the canvas.
    """
    canvas = (0.0, 0.0, float(size[1]), float(size[0]))
    tiles, boxes, outlines = [], [], []
    for view, place in zip(views, places, strict=True):
        height, width = image_size(view.image)
        left, top, right, bottom = place.rectangle((0, 0, width, height))
        window = (max(left, 0.0), max(top, 0.0), min(right, canvas[2]), min(bottom, canvas[3]))
        tiles.append(Tile(view.image.as_subclass(Tensor), place, window))
        known = Outlines.none_of(len(view.labels)) if view.outlines is None else view.outlines
        outlines.append(place.outlines(known))
        on_canvas = place.boxes(view.boxes_xyxy.as_subclass(Tensor).numpy())
        boxes.append(clip_objects(on_canvas, outlines[-1], window))
    every = np.concatenate(boxes)
    there = np.flatnonzero((every[:, 2:] > every[:, :2]).all(axis=1))
    labels = np.concatenate([view.labels.numpy() for view in views])
    tile_of = np.repeat(np.arange(len(views)), [len(view.labels) for view in views])
    return Scene(
        size,
        tuple(tiles),
        every[there],
        labels[there],
        Outlines.joined(outlines).take(there),
        tile_of[there],
    )


def letter_boxed(view: View, size: tuple[int, int]) -> Scene:
    """One view in the middle of a canvas of ``size`` (height, width), as large as fits with its aspect."""
    original = image_size(view.image)
    box = letter_box_frame(original, size)
    return scene_of(size, [view], [placed(original, box.resized, (box.left, box.top))])


def placed(original: tuple[int, int], resized: tuple[int, int], corner: tuple[float, float]) -> AxisMap:
    """The map that resizes an image between two (height, width) and puts it at ``corner`` (x, y)."""
    return AxisMap((resized[1] / original[1], resized[0] / original[0]), corner)


def resampled(image: Tensor, part: Rectangle, size: tuple[int, int]) -> Image.Image:
    """A part of an image in another size; bilinear with antialiasing.

    Pillow's kernel is used because it begins between pixels. Torchvision's begins at whole ones, so that what
    is shown would lie up to half a pixel of the source beside its boxes; it would take half the time.

    Args:
        image: [3, H, W] uint8.
        part: In pixels of the image, not only whole ones; what is beside the image is left out.
        size: (height, width) in pixels.
    """
    height, width = image_size(image)
    left, top, right, bottom = max(part[0], 0), max(part[1], 0), min(part[2], width), min(part[3], height)
    # The filter reaches as far beyond the part as one pixel of the result is wide, but at least one pixel.
    reach_x, reach_y = ceil(max((right - left) / size[1], 1)) + 1, ceil(max((bottom - top) / size[0], 1)) + 1
    x, y = max(floor(left) - reach_x, 0), max(floor(top) - reach_y, 0)
    cut = image[:, y : ceil(bottom) + reach_y, x : ceil(right) + reach_x].permute(1, 2, 0)
    source = Image.fromarray(cut.numpy())
    box = (left - x, top - y, min(right - x, source.width), min(bottom - y, source.height))
    return source.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)


def _mask(outline: Outlines, seen: tuple[int, int, int, int]) -> Image.Image:
    """White where pixels of a part of the output lie in the polygons."""
    left, top, right, bottom = seen
    mask = Image.new("1", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    for ring in outline.rings():
        # Pillow numbers pixels by their centres.
        draw.polygon([(x - left - 0.5, y - top - 0.5) for x, y in ring.tolist()], fill=1)
    return mask
