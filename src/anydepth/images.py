"""Reading and resizing images, for all parts of the package.

Validation, prediction and export must read and resize images identically to give comparable results, so that
this is the only place that does either.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anydepth.utils import wide_pixels
from anydepth.utils.png import SIGNATURE, strip_metadata

# The formats of photographs and scans. Pillow recognises more by their first bytes, whatever the suffix:
# vector formats that start Ghostscript or a system's renderer, and rarely reviewed decoders.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "DIB")

LIMIT_VARIABLE = "ANYDEPTH_MAX_IMAGE_PIXELS"
"""The environment variable of the maximum number of pixels of an image; worker processes inherit it."""

Fit = Literal["stretch", "letter_box"]
"""How an image is fitted to the input size: each side on its own (``stretch``), or with its aspect ratio and
grey borders (``letter_box``)."""


class ImageError(ValueError):
    """A file is missing or not a readable image; the message names the file and the remedy."""


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


class Placement(NamedTuple):
    """Position of an image in the network input, in pixels of the image.

    Attributes:
        canvas: (height, width) of the network input.
        offset: (top, left) corner of the image in it.
    """

    canvas: tuple[float, float]
    offset: tuple[float, float]


def read_image(path: str | Path, *, upright: bool = True) -> Tensor:
    """Read an image file of any mode as RGB.

    Greyscale, palette, CMYK and YCbCr are converted, transparency is dropped (the colour under it stays, as
    in torchvision and COCO tools), and the first frame of an animation is used. The format is recognised by
    the content, not by the suffix.

    Values of 16 and 32 bits are scaled to 8. Files do not say how many bits of them are used: cameras and
    microscopes often store 12, which would come out black. A picture whose values are all below 4,096 is
    therefore taken for one of 12 bits (below 256 and of 32 bits, for one of 8), and a warning says so. The
    environment variable ``ANYDEPTH_IMAGE_BITS`` fixes the number for all pictures instead.

    Args:
        path: File to read.
        upright: Whether to apply the EXIF orientation; False returns the pixels as they are stored.

    Returns:
        [3, H, W] uint8 RGB; the memory is channels last, the order in which resizing is fastest.

    Raises:
        ImageError: The file is missing, truncated, not an image, of a mode without a meaning as RGB (float,
            32-bit), or its header announces more pixels than :func:`max_pixels`.
    """
    return _read(path, str(path), upright)


def decode_image(data: bytes, name: str, *, upright: bool = True) -> Tensor:
    """Decode an image file in memory; see :func:`read_image`.

    Args:
        data: Bytes of the file.
        name: Name of the file in messages.
        upright: See :func:`read_image`.
    """
    return _read(BytesIO(data), name, upright)


def convert_picture(picture: Image.Image, name: str) -> Tensor:
    """Convert a picture that Pillow opened or made, upright, as :func:`read_image` converts a file.

    Args:
        picture: Picture of any mode; it is not changed, except that its pixels are loaded.
        name: Name of the picture in messages.
    """
    with _explaining(name):
        if wide_pixels.has_wide_colours(picture):
            # Not loaded yet: its file has the lower bytes, which loading would drop.
            file: Any = picture.fp  # type: ignore[attr-defined]
            place = file.tell()
            file.seek(0)
            data = BytesIO(file.read())
            file.seek(place)
            return _decode(data, upright=True)
        negative = wide_pixels.is_negative(picture)  # Turned upright, it is a copy without these fields.
        picture.load()
        return _to_tensor(_to_rgb(_upright(picture), negative))


def max_pixels() -> int:
    """Return the maximum number of pixels of an image to decode: a small file may expand to any number.

    It is about 179 million, half a gigabyte as RGB, unless the environment variable
    ``ANYDEPTH_MAX_IMAGE_PIXELS`` sets another.

    Raises:
        ImageError: The variable is not a number of pixels.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if not (given.isascii() and given.isdecimal() and 0 < len(given) < 19 and int(given)):
        raise ImageError(f"got {LIMIT_VARIABLE}={given[:40]!r}, expected a number of pixels, e.g. 500000000")
    return int(given)


@contextmanager
def open_picture(file: str | Path | BytesIO) -> Iterator[Image.Image]:
    """Open an untrusted picture and read its header, but not its pixels.

    The metadata of a PNG file is ignored if it exceeds Pillow's limits for it.

    Raises:
        ImageError: It has more pixels than :func:`max_pixels`, or is not a regular file.
        Exception: Decoders raise exceptions of any kind on malformed bytes.
    """
    if not isinstance(file, BytesIO) and not stat.S_ISREG(Path(file).stat().st_mode):
        # Reading a pipe would block, and a device may have no end.
        raise ImageError("not a regular file; give a readable image file")
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        # Pillow refuses images of more than twice its own limit.
        Image.MAX_IMAGE_PIXELS = limit // 2 + 1
    with _open(file) as picture:
        width, height = picture.size
        if width * height > limit:
            raise ImageError(_size_message(f"{height:,} x {width:,} pixels", limit))
        yield picture


def _open(file: str | Path | BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=_known_formats())
    except ValueError:
        stripped = _without_metadata(file)
        if stripped is None:
            raise
        return Image.open(stripped, formats=_known_formats())


def _without_metadata(file: str | Path | BytesIO) -> BytesIO | None:
    """Return a PNG file without metadata, whose limits Pillow reports as a ValueError; None if it is none."""
    data = file.getvalue() if isinstance(file, BytesIO) else Path(file).read_bytes()
    return BytesIO(strip_metadata(data)) if data.startswith(SIGNATURE) else None


@cache
def _known_formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _size_message(size: str, limit: int) -> str:
    return (
        f"got {size}, expected at most {limit:,}, because it may be a decompression bomb. Shrink or tile the "
        f"picture; if you trust it, raise the limit with the environment variable {LIMIT_VARIABLE}"
    )


def resize_keeping_type(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one image without keeping its aspect ratio, as RT-DETR is evaluated.

    A uint8 result is rounded to whole grey levels, before any division by 255: the validation loader sends
    uint8, and ``predict`` must compute the same tensor. Resize before moving the image to a GPU, whose kernel
    may round some values differently.

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
    """Check the name of a way to fit images.

    Raises:
        ValueError: It is unknown.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"got fit={fit!r}, expected {' or '.join(get_args(Fit))}")


def fit_image(image: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """Fit an image to the input size of the network.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.
        fit: See :data:`Fit`.

    Returns:
        [3, height, width] of the same type.
    """
    return resize_keeping_type(image, size) if fit == "stretch" else letter_box_image(image, size)


def place_image(original_size: tuple[int, int], size: tuple[int, int], fit: Fit) -> Placement:
    """Return where :func:`fit_image` places an image.

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


def letter_box_image(image: Tensor, size: tuple[int, int], fill: int = 114) -> Tensor:
    """Resize an image with its aspect ratio and centre it, as YOLO is evaluated.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.
        fill: Grey level of the borders; 114 is YOLO's.

    Returns:
        [3, height, width] of the same type; the memory is channels last.
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
    """Convert images [..., 3, H, W], uint8 or already float in [0, 1], to float32 in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32)


def _read(file: str | Path | BytesIO, name: str, upright: bool) -> Tensor:
    with _explaining(name):
        try:
            return _decode(file, upright)
        except (ImageError, wide_pixels.PixelRangeError):
            raise
        except ValueError:
            # Metadata may follow the pixels, so that Pillow meets it only now.
            stripped = _without_metadata(file)
            if stripped is None:
                raise
            return _decode(stripped, upright)


def _decode(file: str | Path | BytesIO, upright: bool) -> Tensor:
    with open_picture(file) as picture:
        wide, negative = wide_pixels.has_wide_colours(picture), wide_pixels.is_negative(picture)
        picture.load()
        if wide and (bits := wide_pixels.bits_of_colours(picture)) < 16:
            with open_picture(file) as again:
                picture = wide_pixels.restore_lower_bytes(picture, again, bits)
        return _to_tensor(_to_rgb(_upright(picture) if upright else picture, negative))


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Turn whatever is raised while a picture is read into an :class:`ImageError` that names it."""
    try:
        yield
    except (ImageError, wide_pixels.PixelRangeError) as error:
        raise ImageError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check its name") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(
            f"{name}: cannot be opened ({error.strerror}); give a readable image file"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {_size_message('more pixels', max_pixels())}") from error
    # Files are arbitrary bytes, on which decoders raise exceptions of any kind.
    except Exception as error:
        raise ImageError(
            f"{name}: not a readable image ({type(error).__name__}: {error}); the file is truncated, damaged "
            "or in an unknown format: restore it or remove it"
        ) from error


def _to_tensor(array: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Damaged EXIF data does not affect the pixels, which are loaded already.
        return picture


def _to_rgb(picture: Image.Image, negative: bool) -> NDArray[np.uint8]:
    if picture.mode.startswith("I"):
        return wide_pixels.read_grey(picture, negative=negative)
    if picture.mode == "F":
        raise wide_pixels.PixelRangeError(
            "float pixels have no fixed range; convert the picture to 8 or 16 bits"
        )
    if picture.mode == "P" and "transparency" in picture.info:
        # A direct conversion to RGB warns about the transparent colour.
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"), dtype=np.uint8)
