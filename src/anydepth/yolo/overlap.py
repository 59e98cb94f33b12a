"""Complete IoU of boxes, between any shapes that broadcast.

Source: Distance-IoU (Zheng et al., AAAI 2020). ``torchvision.ops.complete_box_iou_loss`` computes 1 - CIoU of
matched pairs, but its gradient is NaN for boxes without height, which a distribution over distances reaches
if it saturates at 0.
"""

import math

import torch
from torch import Tensor

# Keeps quotients finite for boxes without area; the value of the YOLO projects.
_EPSILON = 1e-7


def complete_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compute CIoU: IoU minus the normalised centre distance minus the mismatch of the aspect ratios.

    The weight of the aspect term is a constant for the gradient, as published.

    Args:
        first_xyxy: [..., 4], x2 >= x1 and y2 >= y1, any unit.
        second_xyxy: [..., 4], the same unit; the leading axes broadcast.

    Returns:
        [...], at most 1; boxes without area give finite values and finite gradients.
    """
    iou = _iou(first_xyxy, second_xyxy)
    aspect = (_angle(first_xyxy) - _angle(second_xyxy)).square() * (4 / math.pi**2)
    tradeoff = (aspect / (aspect - iou + (1 + _EPSILON))).detach()
    return iou - _centre_distance(first_xyxy, second_xyxy) - tradeoff * aspect


def _iou(first: Tensor, second: Tensor) -> Tensor:
    left, top, right, bottom = first.unbind(-1)
    left_2, top_2, right_2, bottom_2 = second.unbind(-1)
    width = (torch.minimum(right, right_2) - torch.maximum(left, left_2)).clamp(min=0)
    height = (torch.minimum(bottom, bottom_2) - torch.maximum(top, top_2)).clamp(min=0)
    intersection = width * height
    areas = (right - left) * (bottom - top) + (right_2 - left_2) * (bottom_2 - top_2)
    return intersection / (areas - intersection + _EPSILON)


def _centre_distance(first: Tensor, second: Tensor) -> Tensor:
    """Compute the squared distance of the centres over the squared diagonal of the enclosing box."""
    left, top, right, bottom = first.unbind(-1)
    left_2, top_2, right_2, bottom_2 = second.unbind(-1)
    width = torch.maximum(right, right_2) - torch.minimum(left, left_2)
    height = torch.maximum(bottom, bottom_2) - torch.minimum(top, top_2)
    # Twice the distance between the centres, hence the 4.
    x = (left + right) - (left_2 + right_2)
    y = (top + bottom) - (top_2 + bottom_2)
    return (x.square() + y.square()) / (4 * (width.square() + height.square() + _EPSILON))


def _angle(boxes: Tensor) -> Tensor:
    """Return the arc tangent of width / height [...]."""
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.atan(size[..., 0] / (size[..., 1] + _EPSILON))
