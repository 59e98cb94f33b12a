"""What training does to images: the list of RT-DETR (Zhao et al., CVPR 2024), most of it from SSD.

The kernels are those of ``torchvision.transforms.v2``, on ``tv_tensors`` and Pillow images. The drawing is
done here, for three reasons: every number comes from the generator of one sample, so that a resumed run draws
the same; the trials of the IoU crop are drawn at once, and end where torchvision would draw for ever (no box,
or only small boxes under high thresholds); and each strength can be set, permuted channels included.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as F

Range = tuple[float, float]
_CROP_DRAWS = 10


class View(NamedTuple):
    """An image with its boxes, on the way through an augmentation.

    Attributes:
        image: ``tv_tensors.Image`` [3, H, W] uint8.
        boxes_xyxy: ``tv_tensors.BoundingBoxes`` [N, 4] float32 in pixels of the image.
        labels: [N] int64.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor

    @classmethod
    def of(cls, image: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> "View":
        """A view of plain tensors: [3, H, W], [N, 4] in pixels, [N]."""
        return cls(tv_tensors.Image(image), _as_boxes(boxes_xyxy, _size(image)), labels)

    def where(self, keep: Tensor) -> "View":
        """The same image with only these boxes; ``keep`` is [N] bool."""
        boxes = self.boxes_xyxy.as_subclass(Tensor)[keep]
        return View(self.image, _as_boxes(boxes, _size(self.image)), self.labels[keep])


class Augmentation(Protocol):
    """What training does to an image before it is resized."""

    partners: int

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> View:
        """The augmented view."""
        ...


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
        self.p = _probability("p", p)
        self.brightness = _range("brightness", brightness, 0.0)
        self.contrast = _range("contrast", contrast, 0.0)
        self.saturation = _range("saturation", saturation, 0.0)
        self.hue = _range("hue", hue, -0.5, 0.5)
        self.permute_channels = permute_channels

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view in other colours."""
        # Pillow's kernels, which RT-DETR was trained with, take half the time of those on tensors.
        picture = Image.fromarray(view.image.as_subclass(Tensor).permute(1, 2, 0).numpy())
        contrast_first = _happens(0.5, generator)
        if contrast_first:
            picture = self._change(F.adjust_contrast, picture, self.contrast, generator)
        picture = self._change(F.adjust_brightness, picture, self.brightness, generator)
        picture = self._change(F.adjust_saturation, picture, self.saturation, generator)
        picture = self._change(F.adjust_hue, picture, self.hue, generator)
        if not contrast_first:
            picture = self._change(F.adjust_contrast, picture, self.contrast, generator)
        pixels = torch.from_numpy(np.array(picture))
        if self.permute_channels and _happens(self.p, generator):
            pixels = pixels[..., torch.randperm(3, generator=generator)]
        return view._replace(image=tv_tensors.Image(pixels.permute(2, 0, 1)))

    def _change(
        self,
        kernel: Callable[[Image.Image, float], Image.Image],
        picture: Image.Image,
        extent: Range | None,
        generator: torch.Generator,
    ) -> Image.Image:
        if extent is None or not _happens(self.p, generator):
            return picture
        return kernel(picture, _uniform(extent, generator))


class ZoomOut:
    """Puts the image somewhere on a larger canvas, so that objects become smaller.

    Args:
        p: Probability.
        side_range: Range of the canvas side over the image side, from 1.
        fill: Grey level of the canvas.
    """

    def __init__(self, *, p: float = 0.5, side_range: Range = (1.0, 4.0), fill: int = 0) -> None:
        self.p = _probability("p", p)
        self.side_range = _checked_range("side_range", side_range, 1.0)
        if not 0 <= fill <= 255:
            raise ValueError(f"fill={fill}: allowed are 0 to 255")
        self.fill = fill

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view on its canvas."""
        if not _happens(self.p, generator):
            return view
        height, width = _size(view.image)
        factor = _uniform(self.side_range, generator)
        right, bottom = int(width * factor) - width, int(height * factor) - height
        left, top = int(right * _unit(generator)), int(bottom * _unit(generator))
        # Ordered by pixel, unlike what F.pad returns: the resize that follows is three times as fast.
        canvas = torch.full((height + bottom, width + right, 3), self.fill, dtype=torch.uint8)
        canvas[top : top + height, left : left + width] = view.image.as_subclass(Tensor).permute(1, 2, 0)
        shift = torch.tensor([left, top, left, top])
        return View.of(canvas.permute(2, 0, 1), view.boxes_xyxy.as_subclass(Tensor) + shift, view.labels)


class IoUCrop:
    """Crops a part of the image in which at least one box keeps its centre and a drawn IoU with the crop.

    Boxes whose centre is outside are dropped, the others are clipped. An image without boxes stays whole.

    Args:
        p: Probability.
        scale: Range of each side of the crop over that of the image.
        aspect: Range of width / height of the crop.
        min_iou: One of these is drawn and asked of the best box; 1 or more leaves the image whole.
        trials: Crops tried before another ``min_iou`` is drawn.
    """

    def __init__(
        self,
        *,
        p: float = 0.8,
        scale: Range = (0.3, 1.0),
        aspect: Range = (0.5, 2.0),
        min_iou: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        trials: int = 40,
    ) -> None:
        self.p = _probability("p", p)
        self.scale = _checked_range("scale", scale, 0.0, 1.0)
        self.aspect = _checked_range("aspect", aspect, 0.0)
        if not min_iou or min(min_iou) < 0:
            raise ValueError(f"min_iou={list(min_iou)}: give at least one threshold, none below 0")
        if trials < 1:
            raise ValueError(f"trials={trials}: allowed are whole numbers from 1")
        self.min_iou = tuple(min_iou)
        self.trials = trials

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The part of the view that was drawn, or all of it."""
        if not len(view.labels) or not _happens(self.p, generator):
            return view
        # Thresholds that no crop can reach (small boxes) are drawn again; ten draws miss the others rarely.
        for _ in range(_CROP_DRAWS):
            threshold = self.min_iou[int(torch.randint(len(self.min_iou), (), generator=generator))]
            if threshold >= 1:
                break
            crop = self._draw(view, threshold, generator)
            if crop is not None:
                return _cropped(view, crop)
        return view

    def _draw(self, view: View, threshold: float, generator: torch.Generator) -> Tensor | None:
        """The first of ``trials`` random crops (xyxy, whole pixels) that meets all conditions."""
        boxes = view.boxes_xyxy.as_subclass(Tensor)
        height, width = _size(view.image)
        image_side = torch.tensor([width, height])
        low, high = self.scale
        side = (image_side * (low + (high - low) * torch.rand(self.trials, 2, generator=generator))).int()
        start = ((image_side - side) * torch.rand(self.trials, 2, generator=generator)).int()
        crops = torch.cat([start, start + side], dim=1)
        aspect = side[:, 0] / side[:, 1]
        fits = (side > 0).all(dim=1) & (aspect >= self.aspect[0]) & (aspect <= self.aspect[1])
        held = _holds_centre(crops, boxes)
        overlap = torch.where(held, box_iou(crops.to(boxes.dtype), boxes), -1.0).amax(dim=1)
        good = (fits & (overlap >= threshold)).nonzero()
        return crops[good[0, 0]] if len(good) else None


class Turn:
    """Mirrors and turns by right angles; aerial and microscope pictures have no up.

    Args:
        horizontal: Probability of a left-right flip.
        vertical: Probability of a top-bottom flip.
        transpose: Probability of swapping rows and columns. With all three at 0.5, the eight ways to lay down
            a picture are equally likely.
    """

    def __init__(self, *, horizontal: float = 0.5, vertical: float = 0.0, transpose: float = 0.0) -> None:
        self.horizontal = _probability("horizontal", horizontal)
        self.vertical = _probability("vertical", vertical)
        self.transpose = _probability("transpose", transpose)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view in its new position."""
        image, boxes = view.image, view.boxes_xyxy
        if _happens(self.horizontal, generator):
            image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
        if _happens(self.vertical, generator):
            image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
        if _happens(self.transpose, generator):
            image = image.as_subclass(Tensor).transpose(1, 2)
            return View.of(image, boxes.as_subclass(Tensor)[:, [1, 0, 3, 2]], view.labels)
        return View(image, boxes, view.labels)


class RTDETRAugmentation:
    """The training list in RT-DETR's order; None leaves a part out.

    Resizing, dropping boxes below a pixel and normalising follow in the data set, for every image alike.

    Args:
        photometric: Colours.
        zoom_out: Larger canvas.
        crop: Part of the image.
        turn: Flips and right angles.
    """

    def __init__(
        self,
        *,
        photometric: PhotometricDistort | None = None,
        zoom_out: ZoomOut | None = None,
        crop: IoUCrop | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.parts = [part for part in (photometric, zoom_out, crop, turn) if part is not None]

    partners = 0

    def __call__(
        self,
        view: View,
        partners: Sequence[Callable[[], View]],
        generator: torch.Generator,
        size: tuple[int, int],
    ) -> View:
        """The augmented view; all its random numbers come from ``generator``."""
        for part in self.parts:
            view = part(view, generator)
        return view


def drop_small_boxes(view: View, size: tuple[int, int], min_side: float = 1.0) -> View:
    """Drop boxes with a side below ``min_side`` pixels, now or once the image is resized to ``size``.

    Args:
        view: The image before it is resized.
        size: (height, width) in pixels that it will have.
        min_side: Pixels.
    """
    height, width = _size(view.image)
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


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _as_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    wrapped: Tensor = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    return wrapped


def _cropped(view: View, crop: Tensor) -> View:
    left, top, right, bottom = crop.tolist()
    held = _holds_centre(crop[None], view.boxes_xyxy.as_subclass(Tensor))[0]
    place = (top, left, bottom - top, right - left)
    return View(F.crop(view.image, *place), F.crop(view.boxes_xyxy, *place), view.labels).where(held)


def _holds_centre(crops: Tensor, boxes: Tensor) -> Tensor:
    """Whether the centre of each box [N, 4] lies in each crop [T, 4]; [T, N] bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(dim=2)


def _unit(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _uniform(extent: Range, generator: torch.Generator) -> float:
    return extent[0] + (extent[1] - extent[0]) * _unit(generator)


def _happens(probability: float, generator: torch.Generator) -> bool:
    return _unit(generator) < probability


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: allowed are probabilities from 0 to 1")
    return value


def _range(name: str, extent: Range | None, low: float, high: float = float("inf")) -> Range | None:
    return None if extent is None else _checked_range(name, extent, low, high)


def _checked_range(name: str, extent: Range, low: float, high: float = float("inf")) -> Range:
    if len(extent) != 2 or not low <= extent[0] <= extent[1] <= high:
        raise ValueError(f"{name}={extent}: give two rising numbers between {low} and {high}")
    return float(extent[0]), float(extent[1])
