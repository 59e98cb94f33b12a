"""What the augmentations have in common: the view that they change, flips, and the size of a step.

Every number is drawn from the generator of one sample, so that a resumed run draws the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from anydepth.data.augment.random_arguments import happens, probability
from anydepth.data.outlines import Outlines


class View(NamedTuple):
    """An image with its boxes, on the way through an augmentation.

    Attributes:
        image: ``tv_tensors.Image`` [3, H, W] uint8.
        boxes_xyxy: ``tv_tensors.BoundingBoxes`` [N, 4] float32 in pixels of the image.
        labels: [N] int64.
        outlines: Of the N boxes, as they were read. Only copy-paste and the clipping of mosaics want them:
            what comes out of an augmentation has none.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    outlines: Outlines | None = None

    @classmethod
    def of(
        cls, image: Tensor, boxes_xyxy: Tensor, labels: Tensor, outlines: Outlines | None = None
    ) -> "View":
        """A view of plain tensors: [3, H, W], [N, 4] in pixels, [N]."""
        return cls(tv_tensors.Image(image), _as_boxes(boxes_xyxy, image_size(image)), labels, outlines)

    def where(self, keep: Tensor) -> "View":
        """The same image with only these boxes; ``keep`` is [N] bool."""
        boxes = self.boxes_xyxy.as_subclass(Tensor)[keep]
        outlines = None if self.outlines is None else self.outlines.take(keep.nonzero()[:, 0].numpy())
        return View.of(self.image, boxes, self.labels[keep], outlines)


class Augmentation(Protocol):
    """What training does to a sample; its randomness comes from the generator alone.

    Attributes:
        partners: The most other images that one sample may be mixed with.
        outlines: Whether polygons are of use to it; they take memory.
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
        """The augmented view.

        Args:
            view: The image of the sample.
            partners: ``self.partners`` loaders of other images, each called only where its image is needed.
                None at all asks for no mixing, as in closing epochs.
            generator: The random numbers of the sample.
            size: (height, width) in pixels that the network will see.
        """
        ...


class Turn:
    """Mirrors and turns by right angles; aerial and microscope pictures have no up.

    Args:
        horizontal: Probability of a left-right flip.
        vertical: Probability of a top-bottom flip.
        transpose: Probability of swapping rows and columns. With all three at 0.5, the eight ways to lay down
            a picture are equally likely.
    """

    def __init__(self, *, horizontal: float = 0.5, vertical: float = 0.0, transpose: float = 0.0) -> None:
        self.horizontal = probability("horizontal", horizontal)
        self.vertical = probability("vertical", vertical)
        self.transpose = probability("transpose", transpose)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view in its new position."""
        image, boxes = view.image, view.boxes_xyxy
        if happens(self.horizontal, generator):
            image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
        if happens(self.vertical, generator):
            image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
        if happens(self.transpose, generator):
            image = image.as_subclass(Tensor).transpose(1, 2)
            return View.of(image, boxes.as_subclass(Tensor)[:, [1, 0, 3, 2]], view.labels)
        return View(image, boxes, view.labels)


def drop_small_boxes(view: View, size: tuple[int, int], min_side: float = 1.0) -> View:
    """Drop boxes with a side below ``min_side`` pixels, now or once the image is resized to ``size``.

    Args:
        view: The image before it is resized.
        size: (height, width) in pixels that it will have.
        min_side: Pixels.
    """
    height, width = image_size(view.image)
    boxes = view.boxes_xyxy.as_subclass(Tensor)
    sides = boxes[:, 2:] - boxes[:, :2]
    resized = sides * torch.tensor([size[1] / width, size[0] / height])
    return view.where((torch.minimum(sides, resized) >= min_side).all(dim=1))


def multi_scale_size(seed: int, global_step: int, sizes: Sequence[int]) -> int:
    """The input side of one training step: a function of the seed and the step alone.

    All processes agree without talking, and a resumed run goes on with the same sequence. A size that is
    given several times is drawn as many times as often.

    Args:
        seed: From 0.
        global_step: Optimizer steps done, from 0.
        sizes: Sides in pixels to draw from.

    Raises:
        ValueError: No sizes, or a negative seed or step.
    """
    if not sizes:
        raise ValueError("sizes is empty: give at least one side in pixels")
    if seed < 0 or global_step < 0:
        raise ValueError(f"seed={seed}, global_step={global_step}: neither may be negative")
    return sizes[int(np.random.default_rng((seed, global_step)).integers(len(sizes)))]


def image_size(image: Tensor) -> tuple[int, int]:
    """(height, width) of an image [..., H, W]."""
    return image.shape[-2], image.shape[-1]


def _as_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    wrapped: Tensor = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    return wrapped
