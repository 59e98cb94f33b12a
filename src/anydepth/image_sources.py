"""The forms in which images are given from Python: those of :mod:`anydepth.pictures.sources`, and tensors."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from anydepth.images import to_tensor
from anydepth.pictures.sources import PictureSource, list_pictures, to_picture

ImageSource = PictureSource | Tensor
"""An image: a path, an address, the bytes of a file, a Pillow picture, an array or a tensor."""

ALLOWED: Final = (
    "a path, an image file opened as binary or its bytes, a Pillow picture, an array [H, W, 3] uint8 RGB, a "
    "tensor [3, H, W] RGB (uint8, or float in [0, 1]), or a list of these"
)
# Rounding of float16 beyond 1, and no more: resampling that overshoots is the caller's to clamp.
_SLACK = 1e-3


def list_images(source: object) -> list[object]:
    """Return one entry per image of what a caller gave; :func:`to_image` reads an entry.

    Args:
        source: One image, an iterable of images, or a batch: an array [N, H, W, 3] or a tensor [N, 3, H, W].

    Raises:
        ValueError: Neither an image nor a sequence; the message names the allowed forms.
    """
    if isinstance(source, Tensor):
        return list(source) if source.ndim == 4 else [source]
    return list_pictures(source, allowed=ALLOWED)


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
    if isinstance(source, Tensor):
        return _check_tensor(source)
    # Some arrays, such as those of mirrored views, have strides that tensors cannot have.
    return to_tensor(np.ascontiguousarray(to_picture(source, urls=urls, allowed=ALLOWED)))


def _check_tensor(image: Tensor) -> Tensor:
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
