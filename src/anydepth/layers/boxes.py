"""Box formats and matched-pair overlaps, on top of ``torchvision.ops``.

``xyxy`` boxes are corners, ``cxcywh`` boxes are centre and size; units are the caller's.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from centre and size to corners."""
    converted: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return converted


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from corners to centre and size."""
    converted: Tensor = box_convert(boxes, "xyxy", "cxcywh")
    return converted


def paired_iou_giou(first_xyxy: Tensor, second_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Compute IoU and generalised IoU (Rezatofighi et al., CVPR 2019) of matched pairs.

    torchvision computes the IoU only between all pairs, which is quadratic for matched lists.

    Args:
        first_xyxy: [N, 4].
        second_xyxy: [N, 4].

    Returns:
        IoU [N] in [0, 1] and GIoU [N] in [-1, 1]; degenerate pairs give 0 and a finite GIoU.
    """
    top_left = torch.maximum(first_xyxy[:, :2], second_xyxy[:, :2])
    bottom_right = torch.minimum(first_xyxy[:, 2:], second_xyxy[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    union = _area(first_xyxy) + _area(second_xyxy) - intersection
    hull_top_left = torch.minimum(first_xyxy[:, :2], second_xyxy[:, :2])
    hull_bottom_right = torch.maximum(first_xyxy[:, 2:], second_xyxy[:, 2:])
    hull = (hull_bottom_right - hull_top_left).clamp(min=0).prod(dim=1)
    epsilon = torch.finfo(union.dtype).eps
    iou = intersection / union.clamp(min=epsilon)
    return iou, iou - (hull - union) / hull.clamp(min=epsilon)


def _area(boxes_xyxy: Tensor) -> Tensor:
    size = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return size[:, 0] * size[:, 1]
