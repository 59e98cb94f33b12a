"""Reading image files of every kind that data sets contain into one form, and resizing them in one way.

Whatever compares numbers between validation, prediction and export must read and resize alike, so this is the
only place that does either.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_MAX_UINT16 = 65535
# What photographs and scans come in. Pillow knows more, told by the first bytes and not by the suffix: vector
# formats that start Ghostscript or a system's renderer, and decoders that hardly anybody looks at.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "DIB")

LIMIT_VARIABLE = "ANYDEPTH_MAX_IMAGE_PIXELS"
"""The environment variable that sets the most pixels of an image; workers that load images inherit it."""

Fit = Literal["stretch", "letter_box"]
"""How an image becomes one of the network's size: each side on its own, or with its aspect ratio and grey
beside it."""


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


class Placement(NamedTuple):
    """Where an image lies in the picture that the network sees, in pixels of the image.

    Attributes:
        canvas: (height, width) of that picture.
        offset: (top, left) corner of the image in it.
    """

    canvas: tuple[float, float]
    offset: tuple[float, float]


def read_image(path: str | Path, *, upright: bool = True) -> Tensor:
    """Read an image file of any mode as RGB.

    Greyscale, palette, CMYK and YCbCr are converted, 16-bit values are scaled to 8 bits, transparency is
    dropped (the colour under it stays, as in torchvision and COCO tools), and of an animation the first frame
    is taken. The format is told by the content; the suffix may say another.

    Args:
        path: The file.
        upright: Turn the picture as its EXIF orientation says. False returns the pixels as they are stored.

    Returns:
        [3, H, W] uint8 RGB; the memory is ordered by pixel (channels last), which resizing is fastest on.

    Raises:
        ImageError: The file is missing, truncated, no image, of a mode without a meaning as RGB (float,
            32-bit), or of more pixels than :func:`most_pixels` allows, which its header tells.
    """
    return _read(path, str(path), upright)


def decode_image(data: bytes, name: str, *, upright: bool = True) -> Tensor:
    """:func:`read_image` of a file that is in memory already.

    Args:
        data: The bytes of the file.
        name: What messages call it.
        upright: As there.
    """
    return _read(BytesIO(data), name, upright)


def most_pixels() -> int:
    """The most pixels of an image that is decoded: a small file may unfold to any number of them.

    About 179 million, which are half a gigabyte as RGB, unless the environment variable
    ``ANYDEPTH_MAX_IMAGE_PIXELS`` says otherwise.

    Raises:
        ImageError: The variable holds no number of pixels.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if not (given.isascii() and given.isdecimal() and 0 < len(given) < 19 and int(given)):
        raise ImageError(f"{LIMIT_VARIABLE}={given[:40]!r}: give a number of pixels, e.g. 500000000")
    return int(given)


@contextmanager
def open_picture(file: str | Path | BytesIO) -> Iterator[Image.Image]:
    """A picture whose header was read and whose pixels were not, for everybody who reads files of others.

    Raises:
        ImageError: It has more pixels than :func:`most_pixels`, or is no regular file.
        Exception: Whatever a decoder raises on bytes that are none of its own.
    """
    if not isinstance(file, BytesIO) and not stat.S_ISREG(Path(file).stat().st_mode):
        # A pipe would be waited for, and a device may have no end.
        raise ImageError("it is no regular file; give a readable image file")
    most = most_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most // 2 + 1
    with Image.open(file, formats=_known_formats()) as picture:
        width, height = picture.size
        if width * height > most:
            raise ImageError(_too_large(f"{height:,} x {width:,} pixels", most))
        yield picture


@cache
def _known_formats() -> tuple[str, ...]:
    """Those that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _too_large(what: str, most: int) -> str:
    return (
        f"{what} are more than the {most:,} that are decoded, as it may be a decompression bomb. Shrink or "
        f"tile the picture; if you trust it, set the environment variable {LIMIT_VARIABLE}"
    )


def resize_keeping_type(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one image without keeping its aspect ratio, as RT-DETR is evaluated.

    On uint8 the result is rounded to whole grey levels, before any division by 255: the validation loader
    ships uint8, and a picture given to ``predict`` has to become the very same tensor. Resize before moving
    the image to a GPU, whose kernel may round some values differently.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.

    Returns:
        [3, height, width] of the same type, bilinear with antialiasing.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized: Tensor = F.resize(image, list(size), interpolation=F.InterpolationMode.BILINEAR, antialias=True)
    return resized


def check_fit(fit: str) -> None:
    """Refuse an unknown way to fit images.

    Raises:
        ValueError: With the known ones.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit={fit!r}: allowed are {' and '.join(get_args(Fit))}")


def fit_image(image: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """An image as the network sees it.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.
        fit: See :data:`Fit`.

    Returns:
        [3, height, width] of the same type.
    """
    return resize_keeping_type(image, size) if fit == "stretch" else letter_box_image(image, size)


def place_image(original_size: tuple[int, int], size: tuple[int, int], fit: Fit) -> Placement:
    """Where :func:`fit_image` puts an image.

    Args:
        original_size: (height, width) in pixels of the image.
        size: (height, width) in pixels of what the network sees.
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
    """Resize an image with its aspect ratio and centre it, as YOLO is evaluated.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.
        fill: Grey level beside the image.

    Returns:
        [3, height, width] of the same type; the memory is ordered by pixel (channels last).
    """
    box = letter_box_frame((image.shape[-2], image.shape[-1]), size)
    resized = resize_keeping_type(image, box.resized)
    if box.resized == tuple(size):
        return resized
    grey = fill if image.dtype == torch.uint8 else fill / 255
    frame = torch.full((*size, 3), grey, dtype=image.dtype, device=image.device)
    rows, columns = slice(box.top, box.top + box.resized[0]), slice(box.left, box.left + box.resized[1])
    frame[rows, columns] = resized.permute(1, 2, 0)
    return frame.permute(2, 0, 1)


def to_unit_range(images: Tensor) -> Tensor:
    """Float32 in [0, 1] of images [..., 3, H, W], uint8 or already float in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32)


def _read(file: str | Path | BytesIO, name: str, upright: bool) -> Tensor:
    try:
        with open_picture(file) as picture:
            picture.load()
            array = _to_rgb(_upright(picture) if upright else picture)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(
            f"{name}: cannot be opened ({error.strerror}); give a readable image file"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {_too_large('its pixels', most_pixels())}") from error
    # Decoders meet arbitrary bytes; which exception a codec raises is its own affair.
    except Exception as error:
        raise ImageError(
            f"{name}: not a readable image ({type(error).__name__}: {error}); the file is truncated, damaged "
            "or of an unknown format: restore it or remove it"
        ) from error
    return torch.from_numpy(array).permute(2, 0, 1)


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
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > _MAX_UINT16:
        raise ImageError(
            f"32-bit pixels of {values.min()}..{values.max()} have no fixed range; "
            "convert the picture to 8 or 16 bits"
        )
    # Looked up, because a quotient per pixel would take eight times the memory of the picture.
    levels = np.rint(np.arange(_MAX_UINT16 + 1) / (_MAX_UINT16 / 255)).astype(np.uint8)
    return np.repeat(levels[values][:, :, None], 3, axis=2)
