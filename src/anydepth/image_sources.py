"""The forms in which images are given from Python: files, addresses, Pillow pictures, arrays and tensors."""

import os
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anydepth.images import ImageError, convert_picture, decode_image, read_image

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Tensor
"""An image: a path, an address, the bytes of a file, a Pillow picture, an array or a tensor."""

ALLOWED: Final = (
    "a path, an image file opened as binary or its bytes, a Pillow picture, an array [H, W, 3] uint8 RGB, a "
    "tensor [3, H, W] RGB (uint8, or float in [0, 1]), or a list of these"
)
# Rounding of float16 beyond 1, and no more: resampling that overshoots is the caller's to clamp.
_SLACK = 1e-3
_TIMEOUT_S = 30.0
# Far above any photograph, and little enough memory to hold.
_MAX_BYTES = 256 * 2**20


def list_images(source: object) -> list[object]:
    """Return one entry per image of what a caller gave; :func:`to_image` reads an entry.

    Args:
        source: One image, an iterable of images, or a batch: an array [N, H, W, 3] or a tensor [N, 3, H, W].

    Raises:
        ValueError: Neither an image nor a sequence; the message names the allowed forms.
    """
    if isinstance(source, np.ndarray | Tensor) and source.ndim == 4:
        return list(source)
    if isinstance(source, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray | Tensor):
        return [source]
    if hasattr(source, "read"):  # an open file, which would be iterated by its lines
        return [source]
    if isinstance(source, Iterable) and not isinstance(source, Mapping | memoryview):
        return list(source)
    raise ValueError(f"got {_describe(source)} as an image; give {ALLOWED}")


def to_image(source: object, *, urls: bool = False) -> Tensor:
    """Read one image of any of the allowed forms.

    Args:
        source: See :data:`ImageSource`. Files and Pillow pictures of any mode are converted to RGB and turned
            upright by their EXIF orientation; arrays and tensors are RGB.
        urls: Whether a text that begins with ``http://`` or ``https://`` is fetched.

    Returns:
        [3, H, W] RGB in host memory, uint8, or float32 in [0, 1].

    Raises:
        ImageError: A file or picture that is missing, damaged or not an image; an address that was not
            allowed or cannot be fetched.
        ValueError: A shape, type or range of values other than those allowed.
    """
    if isinstance(source, str) and urlsplit(source).scheme in ("http", "https"):
        return decode_image(_fetch(source, allowed=urls), source)
    if isinstance(source, str | os.PathLike):
        return read_image(os.fspath(source))
    if isinstance(source, bytes | bytearray):
        return decode_image(bytes(source), "the image in memory")
    data = source.read() if hasattr(source, "read") else None
    if isinstance(data, bytes):
        return decode_image(data, str(getattr(source, "name", None) or "the image in memory"))
    if isinstance(source, Image.Image):
        return convert_picture(source, getattr(source, "filename", "") or "the Pillow picture")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    raise ValueError(f"got {_describe(source)} as an image; give {ALLOWED}")


def _from_array(array: NDArray[np.uint8]) -> Tensor:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"got an array image of shape {array.shape} and type {array.dtype}, expected [H, W, 3] uint8 RGB"
            f"{_array_remedy(array)}"
        )
    return _from_tensor(torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1))


def _array_remedy(array: NDArray[np.generic]) -> str:
    if array.ndim == 2:
        return "; repeat a grey image with np.stack([image] * 3, axis=2)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "; drop the transparency with image[..., :3]"
    if array.ndim == 3 and array.shape[2] == 3:
        if np.issubdtype(array.dtype, np.floating) and array.size and float(array.max()) > 1:
            return "; convert values in [0, 255] with image.round().clip(0, 255).astype(np.uint8)"
        return "; convert values in [0, 1] with (255 * image).round().astype(np.uint8)"
    return ""


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        channels_last = image.ndim == 3 and image.shape[2] == 3
        remedy = "; move the channels to the front with image.permute(2, 0, 1)" if channels_last else ""
        raise ValueError(f"got a tensor image of shape {tuple(image.shape)}, expected [3, H, W]{remedy}")
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point():
        raise ValueError(f"got a tensor image of type {image.dtype}, expected uint8 or float in [0, 1]")
    values = image.detach().cpu().float()
    low, high = float(values.min()), float(values.max())
    # Written so that NaN fails, too.
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise ValueError(
            f"got a float tensor image with values from {low:g} to {high:g}, expected [0, 1]; "
            f"{_range_remedy(low, high)}"
        )
    return values


def _range_remedy(low: float, high: float) -> str:
    if low >= 0 and high > 2:
        return "divide it by 255, or give it as uint8"
    if low > -0.5 and high < 1.5:
        return "clamp what interpolation left outside with image.clamp(0, 1)"
    return "undo its normalization, because the detector normalizes by itself where it has to"


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


def _describe(source: object) -> str:
    return "None" if source is None else f"an object of type {type(source).__name__}"
