"""Reading and resizing images as tensors, for all parts of the package that compute with PyTorch.

Validation, prediction and export must read and resize images identically to give comparable results, so that
this and :mod:`anydepth.pictures`, on which it stands, are the only places that do either.
"""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anydepth.pictures.fitting import BORDER_GREY, Fit, letter_box_frame
from anydepth.pictures.reading import Pixels, decode_picture, read_picture


def read_image(path: str | Path, *, upright: bool = True) -> Tensor:
    """Read an image file of any mode as RGB; see :func:`anydepth.pictures.reading.read_picture`.

    Returns:
        [3, H, W] uint8 RGB; the memory is channels last, the order in which resizing is fastest.
    """
    return to_tensor(read_picture(path, upright=upright))


def decode_image(data: bytes, name: str, *, upright: bool = True) -> Tensor:
    """Decode an image file in memory; see :func:`anydepth.pictures.reading.decode_picture`.

    Returns:
        [3, H, W] uint8 RGB; the memory is channels last.
    """
    return to_tensor(decode_picture(data, name, upright=upright))


def to_tensor(picture: Pixels) -> Tensor:
    """Return a picture [H, W, 3] as a tensor [3, H, W] that shares its memory."""
    return torch.from_numpy(picture).permute(2, 0, 1)


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


def fit_image(image: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """Fit an image to the input size of the network.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.
        fit: See :data:`anydepth.pictures.fitting.Fit`.

    Returns:
        [3, height, width] of the same type.
    """
    return resize_keeping_type(image, size) if fit == "stretch" else letter_box_image(image, size)


def letter_box_image(image: Tensor, size: tuple[int, int], fill: int = BORDER_GREY) -> Tensor:
    """Resize an image with its aspect ratio and centre it, as YOLO is evaluated.

    Args:
        image: [3, H, W], uint8 or float in [0, 1].
        size: (height, width) in pixels.
        fill: Grey level of the borders.

    Returns:
        [3, height, width] of the same type; the memory is channels last.
    """
    box = letter_box_frame((image.shape[-2], image.shape[-1]), size)
    resized = resize_keeping_type(image, box.resized)
    if box.resized == tuple(size):
        return resized
    grey = fill if image.dtype == torch.uint8 else fill / 255
    frame = torch.full((*size, 3), grey, dtype=image.dtype, device=image.device)
    frame[box.region] = resized.permute(1, 2, 0)
    return frame.permute(2, 0, 1)


def to_unit_range(images: Tensor) -> Tensor:
    """Convert images [..., 3, H, W], uint8 or already float in [0, 1], to float32 in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32)
