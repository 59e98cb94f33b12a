"""Zooming out and the IoU crop: which part of an image, or of a larger canvas around it, is visible.

The trials of the IoU crop are drawn at once, and their number is limited even if torchvision would draw for
ever (no boxes, or only small boxes under high thresholds).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from anydepth.data.augment.photometric import Part, Recolouring
from anydepth.data.augment.random_arguments import (
    Range,
    check_grey_level,
    check_probability,
    check_range,
    draw_bernoulli,
    draw_uniform,
    draw_unit,
)
from anydepth.data.augment.view import View, image_size

_CROP_DRAWS = 10
"""Draws of a threshold: one that no crop reaches (small boxes) is drawn again. After ten failures the image
stays whole, as under the threshold 1.0; more draws would only cost time."""


class Frame(NamedTuple):
    """A visible rectangle of an image, which may exceed the image, and the boxes inside.

    Attributes:
        left: First column of the frame, in pixels of the image; may be negative.
        top: First row of the frame, in pixels of the image; may be negative.
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.
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
    def whole(cls, view: View) -> "Frame":
        """Return the frame of the whole image."""
        height, width = image_size(view.image)
        return cls(0, 0, width, height, view.boxes_xyxy.as_subclass(Tensor), view.labels)

    def crop(self, part: Part) -> "Frame":
        """Crop a part of the frame; boxes are clipped, and dropped if their centre is outside."""
        left, top, right, bottom = part
        width, height = right - left, bottom - top
        held = _contains_centre(torch.tensor([part]), self.boxes_xyxy)[0]
        boxes = self.boxes_xyxy[held] - torch.tensor([left, top, left, top])
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
        return Frame(self.left + left, self.top + top, width, height, boxes, self.labels[held])

    def render(self, image: Tensor, recolouring: Recolouring | None, fill: int) -> View:
        """Render the view of the frame.

        Args:
            image: [3, H, W] uint8.
            recolouring: Colour changes, applied to the visible part of the image.
            fill: Grey level outside the image.
        """
        height, width = image_size(image)
        left, top = max(self.left, 0), max(self.top, 0)
        right, bottom = min(self.left + self.width, width), min(self.top + self.height, height)
        # Channels last: the resize that follows is three times as fast.
        pixels = image[:, top:bottom, left:right].permute(1, 2, 0)
        if recolouring is not None and pixels.numel():
            pixels = recolouring(image, (left, top, right, bottom))
        if pixels.shape[:2] != (self.height, self.width):
            canvas = torch.full((self.height, self.width, 3), fill, dtype=torch.uint8)
            canvas[top - self.top : bottom - self.top, left - self.left : right - self.left] = pixels
            pixels = canvas
        return View.of(pixels.permute(2, 0, 1), self.boxes_xyxy, self.labels)


class ZoomOut:
    """Random placement of the image on a larger canvas, which makes objects smaller.

    Args:
        p: Probability of zooming out.
        side_range: Range of the canvas side over the image side, from 1.
        fill: Grey level of the canvas.
    """

    def __init__(self, *, p: float = 0.5, side_range: Range = (1.0, 4.0), fill: int = 0) -> None:
        self.p = check_probability("p", p)
        self.side_range = check_range("side_range", side_range, 1.0)
        self.fill = check_grey_level("fill", fill)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """Zoom out of a view."""
        return self.draw(Frame.whole(view), generator).render(view.image, None, self.fill)

    def draw(self, frame: Frame, generator: torch.Generator) -> Frame:
        """Draw a larger frame around the given one, or return that."""
        if not draw_bernoulli(self.p, generator):
            return frame
        factor = draw_uniform(self.side_range, generator)
        right, bottom = int(frame.width * factor) - frame.width, int(frame.height * factor) - frame.height
        left, top = int(right * draw_unit(generator)), int(bottom * draw_unit(generator))
        return frame._replace(
            left=frame.left - left,
            top=frame.top - top,
            width=frame.width + right,
            height=frame.height + bottom,
            boxes_xyxy=frame.boxes_xyxy + torch.tensor([left, top, left, top]),
        )


class IoUCrop:
    """Random crop that contains the centre of at least one box and reaches a drawn IoU with that box.

    Boxes whose centre is outside are dropped, the others are clipped. An image without boxes stays whole.

    Args:
        p: Probability of cropping.
        scale: Range of each side of the crop over that of the image.
        aspect: Range of width / height of the crop.
        min_iou: Candidate IoU thresholds for the best box, of which one is drawn; 1 or more leaves the image
            whole.
        trials: Number of crops tried before another ``min_iou`` is drawn.
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
        self.p = check_probability("p", p)
        self.scale = check_range("scale", scale, 0.0, 1.0)
        self.aspect = check_range("aspect", aspect, 0.0)
        if not min_iou or min(min_iou) < 0:
            raise ValueError(f"got min_iou={list(min_iou)}; give at least one threshold, none below 0")
        if trials < 1:
            raise ValueError(f"got trials={trials}, expected a whole number from 1")
        self.min_iou = tuple(min_iou)
        self.trials = trials

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """Crop a view, or return all of it."""
        return self.draw(Frame.whole(view), generator).render(view.image, None, 0)

    def draw(self, frame: Frame, generator: torch.Generator) -> Frame:
        """Draw a part of the frame, or return all of it."""
        if not len(frame.labels) or not draw_bernoulli(self.p, generator):
            return frame
        for _ in range(_CROP_DRAWS):
            threshold = self.min_iou[int(torch.randint(len(self.min_iou), (), generator=generator))]
            if threshold >= 1:
                break
            part = self._draw_part(frame, threshold, generator)
            if part is not None:
                return frame.crop(part)
        return frame

    def _draw_part(self, frame: Frame, threshold: float, generator: torch.Generator) -> Part | None:
        """Return the first of T = ``trials`` random parts that meets all conditions, or None."""
        image_side = torch.tensor([frame.width, frame.height])
        low, high = self.scale
        shares = low + (high - low) * torch.rand(self.trials, 2, generator=generator)  # [T, 2]
        side = (image_side * shares).int()  # [T, 2]
        start = ((image_side - side) * torch.rand(self.trials, 2, generator=generator)).int()  # [T, 2]
        crops = torch.cat([start, start + side], dim=1)  # [T, 4]
        aspect = side[:, 0] / side[:, 1]  # [T]
        fits = (side > 0).all(dim=1) & (aspect >= self.aspect[0]) & (aspect <= self.aspect[1])
        held = _contains_centre(crops, frame.boxes_xyxy)  # [T, N]
        ious = box_iou(crops.to(torch.float32), frame.boxes_xyxy)  # [T, N]
        overlap = torch.where(held, ious, -1.0).amax(dim=1)  # [T]
        good = (fits & (overlap >= threshold)).nonzero()
        if not len(good):
            return None
        left, top, right, bottom = crops[good[0, 0]].tolist()
        return left, top, right, bottom


def _contains_centre(crops: Tensor, boxes: Tensor) -> Tensor:
    """Return whether each crop [T, 4] contains the centre of each box [N, 4], as [T, N] bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # [N, 2]
    return ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(dim=2)
