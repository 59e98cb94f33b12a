"""Fitting pictures to the input size of a network, and the values that the network takes.

The functions of :mod:`anydepth.images` do the same with tensors, bit for bit.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from anydepth.pictures.reading import Pixels
from anydepth.pictures.resizing import resize_picture

Fit = Literal["stretch", "letter_box"]
"""How an image is fitted to the input size: each side on its own (``stretch``), or with its aspect ratio and
grey borders (``letter_box``)."""

BORDER_GREY: Final = 114
"""Grey level of the borders that letter-boxing adds; the value is YOLO's."""


class LetterBox(NamedTuple):
    """Position of an image in a frame that it fills along one side, centred along the other.

    Attributes:
        scale: Pixels of the frame per pixel of the image, before the sides are rounded.
        left: Columns of the frame left of the image.
        top: Rows of the frame above the image.
        resized: (height, width) of the image in pixels of the frame.
    """

    scale: float
    left: int
    top: int
    resized: tuple[int, int]

    @property
    def region(self) -> tuple[slice, slice]:
        """The rows and the columns of the frame that the image fills."""
        height, width = self.resized
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Placement(NamedTuple):
    """Position of an image in the network input, in pixels of the image.

    Attributes:
        canvas: (height, width) of the network input.
        offset: (top, left) corner of the image in it.
    """

    canvas: tuple[float, float]
    offset: tuple[float, float]


def check_fit(fit: str) -> None:
    """Check the name of a way to fit images.

    Raises:
        ValueError: It is unknown.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"got fit={fit!r}, expected {' or '.join(get_args(Fit))}")


def fit_picture(picture: Pixels, size: tuple[int, int], fit: Fit) -> Pixels:
    """Fit a picture to the input size of the network.

    Args:
        picture: [H, W, 3] RGB.
        size: (height, width) in pixels.
        fit: See :data:`Fit`.

    Returns:
        [height, width, 3], equal to what :func:`anydepth.images.fit_image` makes of the same picture.
    """
    if fit == "stretch":
        return resize_picture(picture, size)
    box = letter_box_frame((picture.shape[0], picture.shape[1]), size)
    frame = np.full((*size, 3), BORDER_GREY, dtype=np.uint8)
    frame[box.region] = resize_picture(picture, box.resized)
    return frame


def to_input(pictures: Sequence[Pixels]) -> NDArray[np.float32]:
    """Return the network input of pictures of one size.

    Args:
        pictures: [H, W, 3] each, at least one.

    Returns:
        [B, 3, H, W] in [0, 1], equal to :func:`anydepth.images.to_unit_range` of the same pictures.
    """
    batch = np.empty((len(pictures), 3, *pictures[0].shape[:2]), dtype=np.float32)
    for row, picture in zip(batch, pictures, strict=True):
        np.divide(picture.transpose(2, 0, 1), 255, out=row, dtype=np.float32)
    return batch


def place_image(original_size: tuple[int, int], size: tuple[int, int], fit: Fit) -> Placement:
    """Return where :func:`fit_picture` places an image.

    Args:
        original_size: (height, width) of the image in pixels.
        size: (height, width) of the network input in pixels.
        fit: See :data:`Fit`.
    """
    if fit == "stretch":
        return Placement((float(original_size[0]), float(original_size[1])), (0.0, 0.0))
    box = letter_box_frame(original_size, size)
    scale = box.resized[0] / original_size[0], box.resized[1] / original_size[1]
    return Placement((size[0] / scale[0], size[1] / scale[1]), (box.top / scale[0], box.left / scale[1]))


def letter_box_frame(original_size: tuple[int, int], size: tuple[int, int]) -> LetterBox:
    """Fit an image into a frame with its aspect ratio.

    Args:
        original_size: (height, width) of the image in pixels.
        size: (height, width) of the frame in pixels.

    Raises:
        ValueError: A side below 1.
    """
    if min(*original_size, *size) < 1:
        raise ValueError(
            f"got an image of {original_size} in a frame of {size} pixels, expected sides from 1"
        )
    scale = min(size[0] / original_size[0], size[1] / original_size[1])
    height, width = (max(round(side * scale), 1) for side in original_size)
    return LetterBox(scale, (size[1] - width) // 2, (size[0] - height) // 2, (height, width))
