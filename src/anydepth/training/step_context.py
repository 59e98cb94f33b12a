"""The place of a training step in its run, which seeds its random numbers and chooses its image size."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anydepth.data.augment.view import multi_scale_size

ResizeMode = Literal["bilinear", "nearest"]


@dataclass(frozen=True, kw_only=True)
class StepPlace:
    """Position of a batch in a run; random numbers and the size of the images follow from it.

    Attributes:
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        batch_idx: Number of the batch in the epoch, from 0.
        step: Optimizer steps before it, including skipped ones.
    """

    seed: int
    epoch: int
    batch_idx: int
    step: int

    def seed_generators(self) -> None:
        """Seed torch's generators, with the same value in every process."""
        text = f"{self.seed}/{self.epoch}/{self.batch_idx}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))

    def resize(self, images: Tensor, sizes: Sequence[int], mode: ResizeMode, *, antialias: bool) -> Tensor:
        """Resize images [B, 3, H, W] to the side of this step, which all processes share.

        Args:
            images: Float images.
            sizes: Sides in pixels that the step draws from; none: the images stay as they are.
            mode: Interpolation mode.
            antialias: Whether ``bilinear`` filters before it shrinks.
        """
        if not sizes:
            return images
        side = multi_scale_size(self.seed, self.step, tuple(sizes))
        if images.shape[-2:] == (side, side):
            return images
        if mode == "nearest":
            return F.interpolate(images, size=(side, side), mode="nearest")
        return F.interpolate(
            images, size=(side, side), mode="bilinear", align_corners=False, antialias=antialias
        )
