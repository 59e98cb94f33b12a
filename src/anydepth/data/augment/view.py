"""Parts shared by all augmentations: views, flips, box filtering and multi-scale sizes.

Every random number comes from the generator of one sample, so that a resumed run draws the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from anydepth.data.augment.random_arguments import check_probability, draw_bernoulli
from anydepth.data.outlines import Outlines
from anydepth.images import resize_keeping_type
from anydepth.pictures.fitting import Fit, place_image


class View(NamedTuple):
    """An image with its boxes and labels, the input and output of an augmentation.

    Attributes:
        image: ``tv_tensors.Image`` [3, H, W] uint8.
        boxes_xyxy: ``tv_tensors.BoundingBoxes`` [N, 4] float32 in pixels of the image.
        labels: [N] int64.
        outlines: Polygons of the N boxes, as they were read. Only copy-paste and the clipping of mosaics use
            them: the output of an augmentation has none.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    outlines: Outlines | None = None

    @classmethod
    def of(
        cls, image: Tensor, boxes_xyxy: Tensor, labels: Tensor, outlines: Outlines | None = None
    ) -> "View":
        """Wrap plain tensors: image [3, H, W], boxes [N, 4] xyxy in pixels, labels [N]."""
        return cls(tv_tensors.Image(image), _as_boxes(boxes_xyxy, image_size(image)), labels, outlines)

    def select(self, keep: Tensor) -> "View":
        """Select the boxes of a mask [N]; the image stays the same."""
        boxes = self.boxes_xyxy.as_subclass(Tensor)[keep]
        outlines = None if self.outlines is None else self.outlines.take(keep.nonzero()[:, 0].numpy())
        return View.of(self.image, boxes, self.labels[keep], outlines)

    def shrink(self, longest: int) -> "View":
        """Resize the image so that its longer side has at most ``longest`` pixels; never enlarge it."""
        height, width = image_size(self.image)
        factor = longest / max(height, width)
        if factor >= 1:
            return self
        size = max(1, round(height * factor)), max(1, round(width * factor))
        image = resize_keeping_type(self.image.as_subclass(Tensor), size)
        scale = size[1] / width, size[0] / height
        boxes = self.boxes_xyxy.as_subclass(Tensor) * torch.tensor(scale * 2)  # [N, 4]
        outlines = None if self.outlines is None else self.outlines.transform(scale, (0.0, 0.0))
        return View.of(image, boxes, self.labels, outlines)


class Augmentation(Protocol):
    """Interface of the augmentation of training samples; its randomness comes from the generator alone.

    Attributes:
        partners: Maximum number of other images that one sample is mixed with.
        outlines: Whether it uses polygons, which take memory.
    """

    partners: int
    outlines: bool

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> View:
        """Augment a view.

        Args:
            view: View of the sample.
            partners: ``self.partners`` loaders of other images, each called only if its image is needed. An
                empty sequence turns mixing off, as in the final epochs.
            generator: Random generator of the sample.
            size: (height, width) in pixels of the network input.
        """
        ...


class Turn:
    """Random flips and rotations by right angles; aerial and microscope pictures have no upright orientation.

    Args:
        horizontal: Probability of a left-right flip.
        vertical: Probability of a top-bottom flip.
        transpose: Probability of swapping rows and columns. With all three at 0.5, the eight orientations of
            a picture are equally likely.
    """

    def __init__(self, *, horizontal: float = 0.5, vertical: float = 0.0, transpose: float = 0.0) -> None:
        self.horizontal = check_probability("horizontal", horizontal)
        self.vertical = check_probability("vertical", vertical)
        self.transpose = check_probability("transpose", transpose)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """Flip and rotate a view."""
        image, boxes = view.image, view.boxes_xyxy
        if draw_bernoulli(self.horizontal, generator):
            image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
        if draw_bernoulli(self.vertical, generator):
            image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
        if draw_bernoulli(self.transpose, generator):
            image = image.as_subclass(Tensor).transpose(1, 2)
            return View.of(image, boxes.as_subclass(Tensor)[:, [1, 0, 3, 2]], view.labels)
        return View(image, boxes, view.labels)


def drop_small_boxes(view: View, size: tuple[int, int], min_side: float = 1.0, fit: Fit = "stretch") -> View:
    """Drop boxes with a side below ``min_side`` pixels, before or after the image is fitted to ``size``.

    Args:
        view: View before resizing.
        size: (height, width) in pixels after resizing.
        min_side: Minimum side in pixels.
        fit: How the image is fitted; a letter box scales both sides alike.
    """
    canvas = place_image(image_size(view.image), size, fit).canvas
    boxes = view.boxes_xyxy.as_subclass(Tensor)
    sides = boxes[:, 2:] - boxes[:, :2]  # [N, 2], width and height
    resized = sides * torch.tensor([size[1] / canvas[1], size[0] / canvas[0]])  # [N, 2]
    return view.select((torch.minimum(sides, resized) >= min_side).all(dim=1))


def multi_scale_size(seed: int, global_step: int, sizes: Sequence[int]) -> int:
    """Draw the input side of one training step, a function of the seed and the step alone.

    All processes agree without communication, and a resumed run continues the same sequence. A size that is
    listed several times is drawn proportionally more often.

    Args:
        seed: Seed of the run, from 0.
        global_step: Number of optimizer steps done.
        sizes: Candidate sides in pixels.

    Raises:
        ValueError: No sizes, or a negative seed or step.
    """
    if not sizes:
        raise ValueError("sizes is empty: give at least one side in pixels")
    if seed < 0 or global_step < 0:
        raise ValueError(f"got seed={seed} and global_step={global_step}; neither may be negative")
    return sizes[int(np.random.default_rng((seed, global_step)).integers(len(sizes)))]


def image_size(image: Tensor) -> tuple[int, int]:
    """Return the (height, width) of an image [..., H, W]."""
    return image.shape[-2], image.shape[-1]


def _as_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    wrapped: Tensor = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    return wrapped
