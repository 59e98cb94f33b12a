"""The forms in which pictures are given from Python: files, addresses, Pillow pictures and arrays."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from typing import Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anydepth.pictures.reading import ImageError, Pixels, convert_picture, decode_picture, read_picture

T = TypeVar("T")

PictureSource = str | os.PathLike[str] | bytes | Image.Image | Pixels
"""A picture: a path, an address, the bytes of a file, a Pillow picture or an array."""

ALLOWED: Final = (
    "a path, an image file opened as binary or its bytes, a Pillow picture, an array [H, W, 3] uint8 RGB, or "
    "a list of these"
)
_TIMEOUT_S = 30.0
# Far above any photograph, and little enough memory to hold.
_MAX_BYTES = 256 * 2**20


def list_pictures(source: object, *, allowed: str = ALLOWED) -> list[object]:
    """Return one entry per picture of what a caller gave; :func:`to_picture` reads an entry.

    Args:
        source: One picture, an iterable of pictures, or a batch: an array [N, H, W, 3].
        allowed: The forms that the message names.

    Raises:
        ValueError: Neither a picture nor a sequence; the message names the allowed forms.
    """
    if isinstance(source, np.ndarray) and source.ndim == 4:
        return list(source)
    if isinstance(source, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray):
        return [source]
    if hasattr(source, "read"):  # an open file, which would be iterated by its lines
        return [source]
    # A tensor would be iterated by its channels.
    if isinstance(source, Iterable) and not (isinstance(source, Mapping | memoryview) or _is_tensor(source)):
        return list(source)
    raise ValueError(_refusal(source, allowed))


def to_picture(source: object, *, urls: bool = False, allowed: str = ALLOWED) -> Pixels:
    """Read one picture of any of the allowed forms.

    Args:
        source: See :data:`PictureSource`. Files and Pillow pictures of any mode are converted to RGB and
            turned upright by their EXIF orientation; arrays are RGB.
        urls: Whether a text that begins with ``http://`` or ``https://`` is fetched.
        allowed: The forms that the message names.

    Returns:
        [H, W, 3] uint8 RGB; an array is not copied.

    Raises:
        ImageError: A file or picture that is missing, damaged or not an image; an address that was not
            allowed or cannot be fetched.
        ValueError: A shape or type other than those allowed.
    """
    if isinstance(source, str) and urlsplit(source).scheme in ("http", "https"):
        return decode_picture(_fetch(source, allowed=urls), source)
    if isinstance(source, str | os.PathLike):
        return read_picture(os.fspath(source))
    if isinstance(source, bytes | bytearray):
        return decode_picture(bytes(source), "the image in memory")
    data = source.read() if hasattr(source, "read") else None
    if isinstance(data, bytes):
        return decode_picture(data, str(getattr(source, "name", None) or "the image in memory"))
    if isinstance(source, Image.Image):
        return convert_picture(source, getattr(source, "filename", "") or "the Pillow picture")
    if isinstance(source, np.ndarray):
        return _check_array(source)
    raise ValueError(_refusal(source, allowed))


def read_member(read: Callable[[object], T], sources: Sequence[object], index: int) -> T:
    """Read one of several pictures.

    Args:
        read: Reads an entry of ``sources``.
        sources: What :func:`list_pictures` returned.
        index: The one to read.

    Raises:
        ImageError: As ``read`` raises it, which names a file.
        ValueError: As ``read`` raises it, with the index of the picture if there are several.
    """
    try:
        return read(sources[index])
    except ImageError:
        raise
    except ValueError as error:
        if len(sources) == 1:
            raise
        raise ValueError(f"image {index} of {len(sources)} (counted from 0): {error}") from error


def _check_array(array: Pixels) -> Pixels:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            f"got an array image of shape {array.shape} and type {array.dtype}, expected [H, W, 3] uint8 RGB"
            f"{_array_remedy(array)}"
        )
    return array


def _array_remedy(array: NDArray[np.generic]) -> str:
    if array.ndim == 2:
        return "; repeat a grey image with np.stack([image] * 3, axis=2)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "; drop the transparency with image[..., :3]"
    if array.ndim == 3 and array.shape[2] == 3 and array.size:
        if array.dtype == np.uint16 and int(array.max()) > 255:
            return "; convert values in [0, 65535] with (image / 257).round().astype(np.uint8)"
        if np.issubdtype(array.dtype, np.integer):
            return "; convert values in [0, 255] with image.astype(np.uint8)"
        if np.issubdtype(array.dtype, np.floating) and float(array.max()) > 1:
            return "; convert values in [0, 255] with image.round().clip(0, 255).astype(np.uint8)"
        return "; convert values in [0, 1] with (255 * image).round().astype(np.uint8)"
    return ""


def _fetch(url: str, *, allowed: bool) -> bytes:
    if not allowed:
        raise ImageError(f"{url}: the address of an image; allow fetching it with urls=True, or download it")
    try:
        with urlopen(url, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read(_MAX_BYTES + 1)
    # URLError is an OSError; the others are answers that are not http.
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"{url}: cannot be fetched ({error}); check the address and the network") from error
    if len(data) > _MAX_BYTES:
        raise ImageError(f"{url}: more than {_MAX_BYTES:,} bytes; download the file and give its path")
    return data


def _is_tensor(source: object) -> bool:
    """Return whether something is a tensor of a framework, which is not imported to find out."""
    # Columns of tables have fewer axes, and may be lists of paths.
    return hasattr(source, "__array__") and getattr(source, "ndim", 0) > 2


def _refusal(source: object, allowed: str) -> str:
    name = "None" if source is None else f"an object of type {type(source).__name__}"
    tensor = "; convert a tensor [3, H, W] with image.permute(1, 2, 0).numpy()" if _is_tensor(source) else ""
    return f"got {name} as an image; give {allowed}{tensor}"
