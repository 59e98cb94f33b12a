"""Reading image files of every kind that data sets contain into one form, and resizing them in one way.

Whatever compares numbers between validation, prediction and export must read and resize alike, so this is the
only place that does either.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_MAX_UINT16 = 65535


class ImageError(ValueError):
    """A file that is missing or is no readable image; the message names the file and what to do."""


class LetterBox(NamedTuple):
    """Where an image lies in a frame that it fills in one direction, and in the other is centred in.

    Attributes:
        scale: Pixels of the frame per pixel of the image, before its sides are rounded.
        left: Columns of the frame before the image.
        top: Rows of the frame above the image.
        resized: (height, width) in pixels of the image in the frame.
    """

    scale: float
    left: int
    top: int
    resized: tuple[int, int]


def read_image(path: str | Path, *, upright: bool = True) -> Tensor:
    """Read an image file of any mode as RGB.

    Greyscale, palette, CMYK and YCbCr are converted, 16-bit values are scaled to 8 bits, transparency is
    dropped (the colour under it stays, as in torchvision and COCO tools), and of an animation the first frame
    is taken.

    Args:
        path: The file.
        upright: Turn the picture as its EXIF orientation says. False returns the pixels as they are stored.

    Returns:
        [3, H, W] uint8 RGB; the memory is ordered by pixel (channels last), which resizing is fastest on.

    Raises:
        ImageError: The file is missing, truncated, no image, of a mode without a meaning as RGB (float,
            32-bit), or so large that it may be a decompression bomb.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            array = _to_rgb(_upright(picture) if upright else picture)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(
            f"{path}: cannot be opened ({error.strerror}); give a readable image file"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: {error} Shrink or tile the picture; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    # Decoders meet arbitrary bytes; which exception a codec raises is its own affair.
    except Exception as error:
        raise ImageError(
            f"{path}: not a readable image ({type(error).__name__}: {error}); the file is truncated, damaged "
            "or of an unknown format: restore it or remove it"
        ) from error
    return torch.from_numpy(array).permute(2, 0, 1)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one image without keeping its aspect ratio, as RT-DETR is evaluated.

    On uint8 the result is rounded to whole grey levels before the division by 255: the validation loader
    ships uint8, and a picture given to ``predict`` has to become the very same tensor. Resize before moving
    the image to a GPU, whose kernel may round some values differently.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.

    Returns:
        [3, height, width] float32 in [0, 1], bilinear with antialiasing.
    """
    return to_unit_range(resize_keeping_type(image, size))


def resize_keeping_type(image: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`resize_image` without its conversion: uint8 stays uint8, float stays in [0, 1].

    Args:
        image: [3, H, W].
        size: (height, width) in pixels.

    Returns:
        [3, height, width] of the same type.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized: Tensor = F.resize(image, list(size), interpolation=F.InterpolationMode.BILINEAR, antialias=True)
    return resized


def letter_box_frame(original_size: tuple[int, int], size: tuple[int, int]) -> LetterBox:
    """Fit an image into a frame with its aspect ratio.

    Args:
        original_size: (height, width) in pixels of the image.
        size: (height, width) in pixels of the frame.

    Raises:
        ValueError: A side below 1.
    """
    if min(*original_size, *size) < 1:
        raise ValueError(f"an image of {original_size} in a frame of {size} pixels: give sides from 1")
    scale = min(size[0] / original_size[0], size[1] / original_size[1])
    height, width = (max(round(side * scale), 1) for side in original_size)
    return LetterBox(scale, (size[1] - width) // 2, (size[0] - height) // 2, (height, width))


def letter_box_image(image: Tensor, size: tuple[int, int], fill: int = 114) -> Tensor:
    """Resize an image with its aspect ratio and centre it in a frame (:func:`letter_box_frame`).

    Args:
        image: [3, H, W] uint8.
        size: (height, width) in pixels.
        fill: Grey level beside the image.

    Returns:
        [3, height, width] uint8; the memory is ordered by pixel (channels last).
    """
    box = letter_box_frame((image.shape[-2], image.shape[-1]), size)
    resized = resize_keeping_type(image, box.resized)
    if box.resized == tuple(size):
        return resized
    frame = torch.full((*size, 3), fill, dtype=torch.uint8)
    rows, columns = slice(box.top, box.top + box.resized[0]), slice(box.left, box.left + box.resized[1])
    frame[rows, columns] = resized.permute(1, 2, 0)
    return frame.permute(2, 0, 1)


def to_unit_range(images: Tensor) -> Tensor:
    """Float32 in [0, 1] of images [..., 3, H, W], uint8 or already float in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # The pixels are loaded already; damaged EXIF says nothing about them.
        return picture


def _to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith("I"):
        return _from_sixteen_bits(picture)
    if picture.mode == "F":
        raise ImageError("float pixels have no fixed range; convert the picture to 8 or 16 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        # Straight to RGB, Pillow would also look for the transparent colour and warn.
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _from_sixteen_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Pillow's own conversion clips at 255, which turns most 16-bit pictures white."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > _MAX_UINT16:
        raise ImageError(
            f"32-bit pixels of {values.min()}..{values.max()} have no fixed range; "
            "convert the picture to 8 or 16 bits"
        )
    grey = np.rint(values / (_MAX_UINT16 / 255)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
