"""The colour changes of SSD and RT-DETR, on all of an image or only on the part that will be seen."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageStat
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anydepth.data.augment.hsv import change_hsv
from anydepth.data.augment.random_arguments import Range, happens, probability, rising, uniform
from anydepth.data.augment.view import View, image_size

Part = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in pixels."""

_Kernel = Callable[[Image.Image, float], Image.Image]


class Recolouring(NamedTuple):
    """Colour changes as they were drawn.

    Attributes:
        before: Changes ahead of the contrast, and all of them where it stays: kernel and strength.
        contrast: Its factor; None leaves it alone.
        after: Changes that follow the contrast.
        channels: The new order of red, green and blue; None keeps it.
    """

    before: tuple[tuple[_Kernel, float], ...]
    contrast: float | None
    after: tuple[tuple[_Kernel, float], ...]
    channels: Tensor | None

    def __call__(self, image: Tensor, part: Part) -> Tensor:
        """The part of the image in its new colours, exactly as if all of the image had been changed.

        Args:
            image: [3, H, W] uint8.
            part: What to return.

        Returns:
            [h, w, 3] uint8.
        """
        picture = self._recoloured(image, part)
        pixels = torch.from_numpy(np.array(picture))
        return pixels if self.channels is None else pixels[..., self.channels]

    def _recoloured(self, image: Tensor, part: Part) -> Image.Image:
        # Pillow's kernels, which RT-DETR was trained with, take half the time of those on tensors.
        if self.contrast is None:
            return _applied(self.before, _picture(image, part))
        height, width = image_size(image)
        # The only change of a pixel that depends on others: it pivots on the mean of the whole image.
        whole = _applied(self.before, _picture(image, (0, 0, width, height)))
        grey = int(ImageStat.Stat(whole.convert("L")).mean[0] + 0.5)
        seen = whole.crop(part)
        pivot = Image.new("RGB", seen.size, (grey, grey, grey))
        return _applied(self.after, Image.blend(pivot, seen, self.contrast))


class PhotometricDistort:
    """Changes colours; each change on its own with probability ``p``, contrast before or after the others.

    Args:
        p: Probability of each change.
        brightness: Range of the factor; None leaves it alone.
        contrast: Range of the factor; None leaves it alone.
        saturation: Range of the factor; None leaves it alone.
        hue: Range of the shift, within [-0.5, 0.5] of the colour circle; None leaves it alone. It takes more
            time than all other changes.
        permute_channels: Also put red, green and blue in a random order, as torchvision does.
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
        self.p = probability("p", p)
        self.brightness = None if brightness is None else rising("brightness", brightness, 0.0)
        self.contrast = None if contrast is None else rising("contrast", contrast, 0.0)
        self.saturation = None if saturation is None else rising("saturation", saturation, 0.0)
        self.hue = None if hue is None else rising("hue", hue, -0.5, 0.5)
        self.permute_channels = permute_channels

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view in other colours."""
        height, width = image_size(view.image)
        pixels = self.draw(generator)(view.image.as_subclass(Tensor), (0, 0, width, height))
        return View.of(pixels.permute(2, 0, 1), view.boxes_xyxy.as_subclass(Tensor), view.labels)

    def draw(self, generator: torch.Generator) -> Recolouring:
        """What to do to one image."""
        contrast_first = happens(0.5, generator)
        contrast = self._strength(self.contrast, generator) if contrast_first else None
        drawn = (
            (F.adjust_brightness, self._strength(self.brightness, generator)),
            (F.adjust_saturation, self._strength(self.saturation, generator)),
            (_shift_hue, self._strength(self.hue, generator)),
        )
        changes = tuple((kernel, strength) for kernel, strength in drawn if strength is not None)
        if not contrast_first:
            contrast = self._strength(self.contrast, generator)
        permutes = self.permute_channels and happens(self.p, generator)
        channels = torch.randperm(3, generator=generator) if permutes else None
        if contrast_first and contrast is not None:
            return Recolouring((), contrast, changes, channels)
        return Recolouring(changes, contrast, (), channels)

    def _strength(self, extent: Range | None, generator: torch.Generator) -> float | None:
        if extent is None or not happens(self.p, generator):
            return None
        return uniform(extent, generator)


def _picture(image: Tensor, part: Part) -> Image.Image:
    left, top, right, bottom = part
    return Image.fromarray(image[:, top:bottom, left:right].permute(1, 2, 0).numpy())


def _applied(changes: tuple[tuple[_Kernel, float], ...], picture: Image.Image) -> Image.Image:
    for kernel, strength in changes:
        picture = kernel(picture, strength)
    return picture


def _shift_hue(picture: Image.Image, shift: float) -> Image.Image:
    """What ``F.adjust_hue`` does, faster."""
    hue = (np.arange(256) + int(shift * 255)).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in change_hsv(np.asarray(picture), hue=hue)])
