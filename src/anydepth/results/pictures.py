"""Pictures of detections: one image, one image at several depths side by side, and a grid of such rows."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anydepth.detections import BaseDetections
from anydepth.structures import Detections
from anydepth.utils.files import atomic_path

MIN_SIDE = 720
"""Pixels to which the longer side of smaller images is enlarged, so that labels stay legible."""

CROWDED = 15
"""Number of boxes from which labels are written only if they fit their box, lest they hide objects."""

_BACKGROUND = (24, 26, 30)
_FOREGROUND = (236, 236, 236)
# Successive multiples of it, modulo 1, are well spread hues for any number of classes.
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class Panel:
    """Picture in a row: boxes on an image, under a title.

    Attributes:
        title: Title, e.g. ``full, 12.3 GFLOPs``.
        boxes: Boxes to draw, in pixels of the image; ground truth has scores of 1.
        show_scores: Whether to write scores; False for ground truth.
    """

    title: str
    boxes: Detections
    show_scores: bool = True


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class, which is the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((0.09 + label * _GOLDEN_RATIO) % 1, 0.72, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Tensor,
    boxes: BaseDetections[Any],
    class_names: Sequence[str],
    *,
    show_scores: bool = True,
    min_side: int = 1,
) -> Image.Image:
    """Draw boxes with class names and scores on an image, in the size of the image.

    Args:
        image: [3, H, W] uint8 RGB.
        boxes: Boxes in pixels of the image. Ground truth of a single class has no labels.
        class_names: Class names, one per label.
        show_scores: Whether to write scores, in percent.
        min_side: Length in pixels to which the longer side of smaller images is enlarged first.

    Raises:
        ValueError: The image has another shape or type.
    """
    picture, scale = _enlarge(_to_pil(image), min_side)
    draw = ImageDraw.Draw(picture)
    longest = max(picture.size)
    line = max(1, round(longest / 400))
    font = ImageFont.load_default(max(10, round(longest / 60)))
    order = sorted(range(len(boxes)), key=boxes.scores.tolist().__getitem__)
    corners = [[float(value) * scale for value in boxes.boxes_xyxy[index].tolist()] for index in order]
    colours = [class_colour(int(boxes.labels[index])) for index in order]
    for box, colour in zip(corners, colours, strict=True):
        draw.rectangle(_order_corners(box), outline=colour, width=line)
    # Labels are drawn last, in ascending order of score, so that neither lines nor weak detections hide them.
    for index, box, colour in zip(order, corners, colours, strict=True):
        name = class_names[int(boxes.labels[index])] if len(class_names) > 1 or show_scores else ""
        score = f"{100 * float(boxes.scores[index]):.0f} %" if show_scores else ""
        room = box[2] - box[0] if len(order) >= CROWDED else None
        _write_label(draw, box, [f"{name} {score}".strip(), score or name], colour, font, room)
    return picture


def side_by_side(image: Tensor, panels: Sequence[Panel], class_names: Sequence[str]) -> Image.Image:
    """Draw the same image once per panel, with a title above each; small images are enlarged to be readable.

    Args:
        image: [3, H, W] uint8 RGB.
        panels: Panels from left to right, e.g. ground truth, full, minimal.
        class_names: Class names, one per label.

    Raises:
        ValueError: There is no panel, or the image has another shape or type.
    """
    if not panels:
        raise ValueError("got no panels, expected at least one panel")
    pictures = [
        draw_detections(image, panel.boxes, class_names, show_scores=panel.show_scores, min_side=MIN_SIDE)
        for panel in panels
    ]
    return _join_horizontally(
        [_add_title(picture, panel.title) for picture, panel in zip(pictures, panels, strict=True)]
    )


def grid(rows: Sequence[Image.Image], width: int = 1800) -> Image.Image:
    """Stack pictures vertically, each scaled to ``width`` pixels.

    Raises:
        ValueError: There is no picture.
    """
    if not rows:
        raise ValueError("got no rows, expected at least one picture")
    scaled = [row.resize((width, max(1, round(row.height * width / row.width)))) for row in rows]
    sheet = Image.new("RGB", (width, sum(row.height for row in scaled)), _BACKGROUND)
    top = 0
    for row in scaled:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture in the format of the suffix, complete or not at all."""
    with atomic_path(path) as partial:
        picture.save(partial, quality=92)


def _to_pil(image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
        raise ValueError(
            f"got image of shape {tuple(image.shape)} and type {image.dtype}, expected [3, H, W] uint8 RGB"
        )
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))


def _enlarge(picture: Image.Image, min_side: int) -> tuple[Image.Image, float]:
    scale = max(1.0, min_side / max(picture.size))
    if scale == 1:
        return picture, 1.0
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC), scale


def _order_corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Return a box that PIL accepts, as a detector may return corners in the wrong order."""
    left, top, right, bottom = box
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _write_label(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    texts: Sequence[str],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    room: float | None,
) -> None:
    """Write the first of ``texts`` that fits into ``room`` pixels above the box, or nothing if none fits."""
    for text in texts:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 4, bottom - top + 4
        if text and (room is None or width <= room):
            break
    else:
        return
    x = min(max(box[0], 0), draw.im.size[0] - width)
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)


def _add_title(picture: Image.Image, title: str) -> Image.Image:
    size = max(13, round(max(picture.size) / 36))
    framed = Image.new("RGB", (picture.width, picture.height + 2 * size), _BACKGROUND)
    framed.paste(picture, (0, 2 * size))
    ImageDraw.Draw(framed).text(
        (size // 2, size), title, fill=_FOREGROUND, font=ImageFont.load_default(size), anchor="lm"
    )
    return framed


def _join_horizontally(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), _BACKGROUND)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row
