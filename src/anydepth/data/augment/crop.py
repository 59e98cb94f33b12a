"""Which part of an image, or of a larger canvas around it, is seen: zooming out and the IoU crop.

The trials of the IoU crop are drawn at once, and end where torchvision would draw for ever (no box, or only
small boxes under high thresholds).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from anydepth.data.augment.photometric import Part, Recolouring
from anydepth.data.augment.random_arguments import (
    Range,
    grey_level,
    happens,
    probability,
    rising,
    uniform,
    unit,
)
from anydepth.data.augment.view import View, image_size

_CROP_DRAWS = 10


class Frame(NamedTuple):
    """A rectangle in pixels of an image, which it may exceed: what is seen of it, with the boxes inside.

    Attributes:
        left: Column of the image that the frame begins at; negative outside.
        top: Row of the image that the frame begins at.
        width: Of the frame.
        height: Of the frame.
        boxes_xyxy: [N, 4] float32 in pixels of the frame.
        labels: [N] int64.
    """

    left: int
    top: int
    width: int
    height: int
    boxes_xyxy: Tensor
    labels: Tensor

    @classmethod
    def around(cls, view: View) -> "Frame":
        """All of the image."""
        height, width = image_size(view.image)
        return cls(0, 0, width, height, view.boxes_xyxy.as_subclass(Tensor), view.labels)

    def crop(self, part: Part) -> "Frame":
        """A part of the frame; boxes are clipped, and dropped if their centre is outside."""
        left, top, right, bottom = part
        width, height = right - left, bottom - top
        held = _holds_centre(torch.tensor([part]), self.boxes_xyxy)[0]
        boxes = self.boxes_xyxy[held] - torch.tensor([left, top, left, top])
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
        return Frame(self.left + left, self.top + top, width, height, boxes, self.labels[held])

    def view_of(self, image: Tensor, recolouring: Recolouring | None, fill: int) -> View:
        """The view through the frame.

        Args:
            image: [3, H, W] uint8.
            recolouring: Changes of the colours of the image, made where it is seen.
            fill: Grey level beside the image.
        """
        height, width = image_size(image)
        left, top = max(self.left, 0), max(self.top, 0)
        right, bottom = min(self.left + self.width, width), min(self.top + self.height, height)
        # Ordered by pixel: the resize that follows is three times as fast.
        pixels = image[:, top:bottom, left:right].permute(1, 2, 0)
        if recolouring is not None and pixels.numel():
            pixels = recolouring(image, (left, top, right, bottom))
        if pixels.shape[:2] != (self.height, self.width):
            canvas = torch.full((self.height, self.width, 3), fill, dtype=torch.uint8)
            canvas[top - self.top : bottom - self.top, left - self.left : right - self.left] = pixels
            pixels = canvas
        return View.of(pixels.permute(2, 0, 1), self.boxes_xyxy, self.labels)


class ZoomOut:
    """Puts the image somewhere on a larger canvas, so that objects become smaller.

    Args:
        p: Probability.
        side_range: Range of the canvas side over the image side, from 1.
        fill: Grey level of the canvas.
    """

    def __init__(self, *, p: float = 0.5, side_range: Range = (1.0, 4.0), fill: int = 0) -> None:
        self.p = probability("p", p)
        self.side_range = rising("side_range", side_range, 1.0)
        self.fill = grey_level("fill", fill)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view on its canvas."""
        return self.draw(Frame.around(view), generator).view_of(view.image, None, self.fill)

    def draw(self, frame: Frame, generator: torch.Generator) -> Frame:
        """A larger frame around the given one, or that."""
        if not happens(self.p, generator):
            return frame
        factor = uniform(self.side_range, generator)
        right, bottom = int(frame.width * factor) - frame.width, int(frame.height * factor) - frame.height
        left, top = int(right * unit(generator)), int(bottom * unit(generator))
        return frame._replace(
            left=frame.left - left,
            top=frame.top - top,
            width=frame.width + right,
            height=frame.height + bottom,
            boxes_xyxy=frame.boxes_xyxy + torch.tensor([left, top, left, top]),
        )


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
        self.p = probability("p", p)
        self.scale = rising("scale", scale, 0.0, 1.0)
        self.aspect = rising("aspect", aspect, 0.0)
        if not min_iou or min(min_iou) < 0:
            raise ValueError(f"min_iou={list(min_iou)}: give at least one threshold, none below 0")
        if trials < 1:
            raise ValueError(f"trials={trials}: allowed are whole numbers from 1")
        self.min_iou = tuple(min_iou)
        self.trials = trials

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The part of the view that was drawn, or all of it."""
        return self.draw(Frame.around(view), generator).view_of(view.image, None, 0)

    def draw(self, frame: Frame, generator: torch.Generator) -> Frame:
        """A part of the frame, or all of it."""
        if not len(frame.labels) or not happens(self.p, generator):
            return frame
        # Thresholds that no crop can reach (small boxes) are drawn again; ten draws miss the others rarely.
        for _ in range(_CROP_DRAWS):
            threshold = self.min_iou[int(torch.randint(len(self.min_iou), (), generator=generator))]
            if threshold >= 1:
                break
            part = self._draw_part(frame, threshold, generator)
            if part is not None:
                return frame.crop(part)
        return frame

    def _draw_part(self, frame: Frame, threshold: float, generator: torch.Generator) -> Part | None:
        """The first of ``trials`` random parts that meets all conditions."""
        image_side = torch.tensor([frame.width, frame.height])
        low, high = self.scale
        side = (image_side * (low + (high - low) * torch.rand(self.trials, 2, generator=generator))).int()
        start = ((image_side - side) * torch.rand(self.trials, 2, generator=generator)).int()
        crops = torch.cat([start, start + side], dim=1)
        aspect = side[:, 0] / side[:, 1]
        fits = (side > 0).all(dim=1) & (aspect >= self.aspect[0]) & (aspect <= self.aspect[1])
        held = _holds_centre(crops, frame.boxes_xyxy)
        overlap = torch.where(held, box_iou(crops.to(torch.float32), frame.boxes_xyxy), -1.0).amax(dim=1)
        good = (fits & (overlap >= threshold)).nonzero()
        if not len(good):
            return None
        left, top, right, bottom = crops[good[0, 0]].tolist()
        return left, top, right, bottom


def _holds_centre(crops: Tensor, boxes: Tensor) -> Tensor:
    """Whether the centre of each box [N, 4] lies in each crop [T, 4]; [T, N] bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(dim=2)
