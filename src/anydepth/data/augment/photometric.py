"""Photometric distortion of SSD and RT-DETR, of a whole image or only of its visible part."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageStat
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anydepth.data.augment.hsv import change_hsv
from anydepth.data.augment.random_arguments import (
    Range,
    check_probability,
    check_range,
    draw_bernoulli,
    draw_uniform,
)
from anydepth.data.augment.view import View, image_size

Part = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in whole pixels."""

_Kernel = Callable[[Image.Image, float], Image.Image]


class Recolouring(NamedTuple):
    """The colour changes drawn for one image.

    Attributes:
        before: Changes (kernel, strength) before the contrast; all of them if the contrast is unchanged.
        contrast: Factor of the contrast; None leaves it unchanged.
        after: Changes after the contrast.
        channels: New order of red, green and blue; None keeps it.
    """

    before: tuple[tuple[_Kernel, float], ...]
    contrast: float | None
    after: tuple[tuple[_Kernel, float], ...]
    channels: Tensor | None

    def __call__(self, image: Tensor, part: Part) -> Tensor:
        """Recolour a part of the image, exactly as if the whole image had been recoloured.

        Args:
            image: [3, H, W] uint8.
            part: Part to return.

        Returns:
            [h, w, 3] uint8.
        """
        picture = self._recolour(image, part)
        pixels = torch.from_numpy(np.array(picture))
        return pixels if self.channels is None else pixels[..., self.channels]

    def _recolour(self, image: Tensor, part: Part) -> Image.Image:
        # Pillow's kernels, with which RT-DETR was trained, take half the time of torchvision's on tensors.
        if self.contrast is None:
            return _apply(self.before, _cut(image, part))
        height, width = image_size(image)
        # Contrast alone depends on other pixels: it scales the distance from the mean of the whole image.
        whole = _apply(self.before, _cut(image, (0, 0, width, height)))
        grey = int(ImageStat.Stat(whole.convert("L")).mean[0] + 0.5)
        seen = whole.crop(part)
        pivot = Image.new("RGB", seen.size, (grey, grey, grey))
        return _apply(self.after, Image.blend(pivot, seen, self.contrast))


class PhotometricDistort:
    """Random colour changes, each with probability ``p``; the contrast comes before or after the others.

    Args:
        p: Probability of each change.
        brightness: Range of the brightness factor; None leaves it unchanged.
        contrast: Range of the contrast factor; None leaves it unchanged.
        saturation: Range of the saturation factor; None leaves it unchanged.
        hue: Range of the shift, within [-0.5, 0.5] of the colour circle; None leaves it unchanged. It takes
            more time than all other changes.
        permute_channels: Whether to permute red, green and blue at random, as torchvision does.
    """

    def __init__(
        self,
        *,
        p: float = 0.5,
        brightness: Range | None = (0.875, 1.125),
        contrast: Range | None = (0.5, 1.5),
        saturation: Range | None = (0.5, 1.5),
        hue: Range | None = (-0.05, 0.05),
        permute_channels: bool = True,
    ) -> None:
        self.p = check_probability("p", p)
        self.brightness = None if brightness is None else check_range("brightness", brightness, 0.0)
        self.contrast = None if contrast is None else check_range("contrast", contrast, 0.0)
        self.saturation = None if saturation is None else check_range("saturation", saturation, 0.0)
        self.hue = None if hue is None else check_range("hue", hue, -0.5, 0.5)
        self.permute_channels = permute_channels

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """Change the colours of a view."""
        height, width = image_size(view.image)
        pixels = self.draw(generator)(view.image.as_subclass(Tensor), (0, 0, width, height))
        return View.of(pixels.permute(2, 0, 1), view.boxes_xyxy.as_subclass(Tensor), view.labels)

    def draw(self, generator: torch.Generator) -> Recolouring:
        """Draw the colour changes of one image."""
        contrast_first = draw_bernoulli(0.5, generator)
        contrast = self._draw_strength(self.contrast, generator) if contrast_first else None
        drawn = (
            (F.adjust_brightness, self._draw_strength(self.brightness, generator)),
            (F.adjust_saturation, self._draw_strength(self.saturation, generator)),
            (_shift_hue, self._draw_strength(self.hue, generator)),
        )
        changes = tuple((kernel, strength) for kernel, strength in drawn if strength is not None)
        if not contrast_first:
            contrast = self._draw_strength(self.contrast, generator)
        permutes = self.permute_channels and draw_bernoulli(self.p, generator)
        channels = torch.randperm(3, generator=generator) if permutes else None
        if contrast_first and contrast is not None:
            return Recolouring((), contrast, changes, channels)
        return Recolouring(changes, contrast, (), channels)

    def _draw_strength(self, extent: Range | None, generator: torch.Generator) -> float | None:
        if extent is None or not draw_bernoulli(self.p, generator):
            return None
        return draw_uniform(extent, generator)


def _cut(image: Tensor, part: Part) -> Image.Image:
    left, top, right, bottom = part
    return Image.fromarray(image[:, top:bottom, left:right].permute(1, 2, 0).numpy())


def _apply(changes: tuple[tuple[_Kernel, float], ...], picture: Image.Image) -> Image.Image:
    for kernel, strength in changes:
        picture = kernel(picture, strength)
    return picture


def _shift_hue(picture: Image.Image, shift: float) -> Image.Image:
    """Shift the hue as ``F.adjust_hue`` does, but faster."""
    hue = (np.arange(256) + int(shift * 255)).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in change_hsv(np.asarray(picture), hue=hue)])
