"""Reading image files of every kind as arrays.

Training, prediction and deployed detectors must read pictures identically to give comparable results, so that
this is the only place that reads them.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anydepth.utils import wide_pixels
from anydepth.utils.png import SIGNATURE, strip_metadata

# The formats of photographs and scans. Pillow recognises more by their first bytes, whatever the suffix:
# vector formats that start Ghostscript or a system's renderer, and rarely reviewed decoders.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "DIB")

Pixels = NDArray[np.uint8]
"""Values of a picture: [H, W, 3] RGB."""

LIMIT_VARIABLE = "ANYDEPTH_MAX_IMAGE_PIXELS"
# Other libraries turn Pillow's limit off for the whole process, as SAHI 0.12.8 does when it reads a picture.
_PILLOW_LIMIT = Image.MAX_IMAGE_PIXELS
"""The environment variable of the maximum number of pixels of an image; worker processes inherit it."""


class ImageError(ValueError):
    """A file is missing or not a readable image; the message names the file and the remedy."""


def read_picture(path: str | Path, *, upright: bool = True) -> Pixels:
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
        [H, W, 3] uint8 RGB.

    Raises:
        ImageError: The file is missing, truncated, not an image, of a mode without a meaning as RGB (float,
            32-bit), or its header announces more pixels than :func:`max_pixels`.
    """
    return _read(path, str(path), upright)


def decode_picture(data: bytes, name: str, *, upright: bool = True) -> Pixels:
    """Decode an image file in memory; see :func:`read_picture`.

    Args:
        data: Bytes of the file.
        name: Name of the file in messages.
        upright: See :func:`read_picture`.
    """
    return _read(BytesIO(data), name, upright)


def convert_picture(picture: Image.Image, name: str) -> Pixels:
    """Convert a picture that Pillow opened or made, upright, as :func:`read_picture` converts a file.

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
        return _to_rgb(_upright(picture), negative)


def max_pixels() -> int:
    """Return the maximum number of pixels of an image to decode: a small file may expand to any number.

    It is about 179 million, half a gigabyte as RGB, unless the environment variable
    ``ANYDEPTH_MAX_IMAGE_PIXELS`` sets another.

    Raises:
        ImageError: The variable is not a number of pixels.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return 2 * (Image.MAX_IMAGE_PIXELS or _PILLOW_LIMIT or 2**62)
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
    except Image.DecompressionBombError:
        raise ImageError(_size_message("more pixels", max_pixels())) from None
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


def _read(file: str | Path | BytesIO, name: str, upright: bool) -> Pixels:
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


def _decode(file: str | Path | BytesIO, upright: bool) -> Pixels:
    with open_picture(file) as picture:
        wide, negative = wide_pixels.has_wide_colours(picture), wide_pixels.is_negative(picture)
        picture.load()
        if wide and (bits := wide_pixels.bits_of_colours(picture)) < 16:
            with open_picture(file) as again:
                picture = wide_pixels.restore_lower_bytes(picture, again, bits)
        return _to_rgb(_upright(picture) if upright else picture, negative)


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


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Damaged EXIF data does not affect the pixels, which are loaded already.
        return picture


def _to_rgb(picture: Image.Image, negative: bool) -> Pixels:
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
