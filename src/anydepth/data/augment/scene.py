"""Scenes: several pictures on a canvas that is never painted as a whole.

Only scaling and translation follow a mosaic. Each picture therefore keeps its own map to the canvas, which is
composed with the map to the output; the visible part is cropped from the source and resized in one step. That
is less work than resizing the sources, filling a canvas of four times the output and resizing it again, and
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

from anydepth.data.augment.affine import AxisMap, Floats, Rectangle, clip_objects, select_visible_objects
from anydepth.data.augment.view import View, image_size
from anydepth.data.outlines import Outlines
from anydepth.pictures.fitting import letter_box_frame


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture on a canvas.

    Attributes:
        image: [3, H, W] uint8.
        place: Map from pixels of the image to pixels of the canvas.
        window: Part of the canvas that the picture may cover.
        outline: Polygons in pixels of the canvas that limit what the picture covers; None covers the window.
    """

    image: Tensor
    place: AxisMap
    window: Rectangle
    outline: Outlines | None = None

    def paint(self, picture: Image.Image, to_picture: AxisMap) -> None:
        """Paint the visible part of the tile onto a picture, leaving other pixels unchanged.

        A pixel is covered if its centre is.

        Args:
            picture: Output picture, changed in place.
            to_picture: Map from the canvas to the picture.
        """
        left, top, right, bottom = to_picture.map_rectangle(self.window)
        left, top = max(ceil(left - 0.5), 0), max(ceil(top - 0.5), 0)
        right, bottom = min(ceil(right - 0.5), picture.width), min(ceil(bottom - 0.5), picture.height)
        if left >= right or top >= bottom:
            return
        seen = (left, top, right, bottom)
        place = self.place.then(to_picture)
        piece = resample(self.image, place.inverse().map_rectangle(seen), (bottom - top, right - left))
        if place.scale[0] < 0:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = None if self.outline is None else _draw_mask(to_picture.map_outlines(self.outline), seen)
        picture.paste(piece, (left, top), mask)


@dataclass(frozen=True, eq=False)
class Scene:
    """Pictures on a canvas, with the objects that they show.

    Attributes:
        size: (height, width) of the canvas in pixels.
        tiles: From the lowest to the topmost.
        boxes_xyxy: [N, 4] float32 in pixels of the canvas, inside it.
        labels: [N] int64.
        outlines: Polygons of the N boxes in pixels of the canvas, which they may leave.
        tile_of: [N] int64, index of the tile that shows each object.
    """

    size: tuple[int, int]
    tiles: tuple[Tile, ...]
    boxes_xyxy: Floats
    labels: NDArray[np.int64]
    outlines: Outlines
    tile_of: NDArray[np.int64]

    @property
    def window(self) -> Rectangle:
        """Rectangle of the whole canvas."""
        return 0.0, 0.0, float(self.size[1]), float(self.size[0])

    def render(self, to_output: AxisMap, size: tuple[int, int], fill: int) -> View:
        """Render the scene as a view.

        Args:
            to_output: Map from the canvas to the output.
            size: (height, width) of the output in pixels.
            fill: Grey level outside the pictures.
        """
        picture = Image.new("RGB", (size[1], size[0]), (fill, fill, fill))
        for tile in self.tiles:
            tile.paint(picture, to_output)
        boxes = to_output.map_boxes(self.boxes_xyxy)  # [N, 4]
        outlines = to_output.map_outlines(self.outlines)
        visible = to_output.map_rectangle(self.window)
        seen = (max(visible[0], 0), max(visible[1], 0), min(visible[2], size[1]), min(visible[3], size[0]))
        clipped = clip_objects(boxes, outlines, seen)  # [N, 4]
        keep = select_visible_objects(boxes, clipped, outlines.outlined)  # [N]
        return View.of(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1),  # [3, height, width]
            torch.from_numpy(clipped[keep]),
            torch.from_numpy(self.labels[keep]),
        )


def compose_scene(size: tuple[int, int], views: Sequence[View], places: Sequence[AxisMap]) -> Scene:
    """Compose views on a canvas; objects and pictures are clipped to it.

    Args:
        size: (height, width) of the canvas in pixels.
        views: Views of the pictures, which must not overlap on the canvas.
        places: Map from pixels of each picture to pixels of the canvas.
    """
    canvas = (0.0, 0.0, float(size[1]), float(size[0]))
    tiles, boxes, outlines = [], [], []
    for view, place in zip(views, places, strict=True):
        height, width = image_size(view.image)
        left, top, right, bottom = place.map_rectangle((0, 0, width, height))
        window = (max(left, 0.0), max(top, 0.0), min(right, canvas[2]), min(bottom, canvas[3]))
        tiles.append(Tile(view.image.as_subclass(Tensor), place, window))
        known = Outlines.empty(len(view.labels)) if view.outlines is None else view.outlines
        outlines.append(place.map_outlines(known))
        on_canvas = place.map_boxes(view.boxes_xyxy.as_subclass(Tensor).numpy())  # [n, 4]
        boxes.append(clip_objects(on_canvas, outlines[-1], window))
    clipped = np.concatenate(boxes)  # [M, 4], the boxes of all views
    kept = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(axis=1))  # [N] positions, N <= M
    labels = np.concatenate([view.labels.numpy() for view in views])  # [M]
    tile_of = np.repeat(np.arange(len(views)), [len(view.labels) for view in views])  # [M]
    return Scene(
        size,
        tuple(tiles),
        clipped[kept],
        labels[kept],
        Outlines.concatenate(outlines).take(kept),
        tile_of[kept],
    )


def letter_box_scene(view: View, size: tuple[int, int]) -> Scene:
    """Centre one view on a canvas of ``size`` (height, width), as large as its aspect ratio allows."""
    original = image_size(view.image)
    box = letter_box_frame(original, size)
    return compose_scene(size, [view], [placement_map(original, box.resized, (box.left, box.top))])


def placement_map(
    original: tuple[int, int], resized: tuple[int, int], corner: tuple[float, float]
) -> AxisMap:
    """Return the map that resizes an image to another (height, width) and places it at ``corner`` (x, y)."""
    return AxisMap((resized[1] / original[1], resized[0] / original[0]), corner)


def resample(image: Tensor, part: Rectangle, size: tuple[int, int]) -> Image.Image:
    """Crop a part of an image and resize it, bilinear with antialiasing.

    Pillow's kernel accepts fractional crops. Torchvision's crops at whole pixels and takes half the time, but
    its content would lie up to half a pixel of the source beside the boxes.

    Args:
        image: [3, H, W] uint8.
        part: Part in pixels of the image, possibly fractional; it is clipped to the image.
        size: (height, width) in pixels of the result.
    """
    height, width = image_size(image)
    left, top, right, bottom = max(part[0], 0), max(part[1], 0), min(part[2], width), min(part[3], height)
    # The filter reaches beyond the part by the width of one pixel of the result, or one pixel of the image if
    # that is wider; one more covers the rounding.
    reach_x, reach_y = ceil(max((right - left) / size[1], 1)) + 1, ceil(max((bottom - top) / size[0], 1)) + 1
    x, y = max(floor(left) - reach_x, 0), max(floor(top) - reach_y, 0)
    crop = image[:, y : ceil(bottom) + reach_y, x : ceil(right) + reach_x].permute(1, 2, 0)  # [h, w, 3]
    source = Image.fromarray(crop.numpy())
    box = (left - x, top - y, min(right - x, source.width), min(bottom - y, source.height))
    return source.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)


def _draw_mask(outline: Outlines, seen: tuple[int, int, int, int]) -> Image.Image:
    """Draw the mask of a part of the output, white inside the polygons."""
    left, top, right, bottom = seen
    mask = Image.new("1", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    for ring in outline.rings():
        # Pillow's coordinates are those of pixel centres, ours those of pixel corners.
        draw.polygon([(x - left - 0.5, y - top - 0.5) for x, y in ring.tolist()], fill=1)
    return mask
