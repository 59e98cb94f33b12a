"""Task-aligned assignment of anchors to ground truth.

Source: TOOD (Feng et al., ICCV 2021, section 3.2) for the metric, the selection per box and the normalised
targets; the exponents and the use of CIoU are those of YOLOv8 and its successors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anydepth.layers.boxes import cxcywh_to_xyxy
from anydepth.structures import Targets
from anydepth.yolo.overlap import complete_iou

# Pixels that an anchor must lie from the nearest side to be inside a box; the value of YOLOv8.
_INSIDE_MARGIN = 1e-9
# Keeps the scale of targets finite for boxes without anchors; the value of YOLOv8.
_METRIC_EPSILON = 1e-9
# (box, anchor) pairs that are compared at once, 64 MiB per float32 tensor [B, N, A]: trades memory for
# launches. A batch of 16 images of 8400 anchors and 100 boxes fits into one chunk; larger ones are split.
_MAX_PAIRS = 2**24


@dataclass(frozen=True)
class GroundTruth:
    """The boxes of a batch, padded to the same number N per image.

    Attributes:
        labels: [B, N] int64, classes in [0, K); 0 where padded.
        boxes_xyxy: [B, N, 4] float32, pixels; 0 where padded.
        valid: [B, N] bool, False where padded.
    """

    labels: Tensor
    boxes_xyxy: Tensor
    valid: Tensor

    @classmethod
    def collect(cls, targets: Sequence[Targets], size: tuple[int, int]) -> "GroundTruth":
        """Pad the targets of a batch; N is at least 1, so that a batch without boxes needs no special case.

        Args:
            targets: Ground truth per image.
            size: (height, width) of the images in pixels.
        """
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        boxes = pad_sequence([target.boxes_cxcywh for target in targets], batch_first=True).float()
        valid = pad_sequence([torch.ones_like(t.labels, dtype=torch.bool) for t in targets], batch_first=True)
        if not labels.shape[1]:
            shape = (len(targets), 1)
            labels, boxes, valid = labels.new_zeros(shape), boxes.new_zeros(*shape, 4), valid.new_zeros(shape)
        height, width = size
        # Scaled by Python numbers: a tensor of the four factors would have to be copied to the device.
        x, y = boxes[..., 0::2] * width, boxes[..., 1::2] * height  # [B, N, 2] each: position and size
        return cls(labels, cxcywh_to_xyxy(torch.stack([x, y], dim=-1).flatten(2)), valid)

    def __getitem__(self, images: slice) -> "GroundTruth":
        """Return the ground truth of some images."""
        return GroundTruth(self.labels[images], self.boxes_xyxy[images], self.valid[images])


@dataclass(frozen=True)
class Assignment:
    """The box that each anchor learns, and the weight with which it learns it.

    Attributes:
        foreground: [B, A] bool, True where a box is assigned.
        targets: [B, A] int64, index in N of the assigned box; 0 in the background.
        soft_targets: [B, A, K] float32, class targets: in [0, 1] at the class of the assigned box, 0
            elsewhere.
    """

    foreground: Tensor
    targets: Tensor
    soft_targets: Tensor

    @property
    def weights(self) -> Tensor:
        """[B, A] float32, sum of an anchor's soft targets; 0 in the background."""
        return self.soft_targets.sum(-1)


class TaskAlignedAssigner:
    """Assigns to each box the anchors inside it that classify and localise it best.

    The metric of a pair is t = s^alpha u^beta, with the score s of the box's class and u = max(CIoU, 0). Each
    box claims the ``top_k`` anchors of highest t > 0 whose centre lies inside it. An anchor that several
    boxes claim is assigned to the one of highest u among all boxes that it lies in, which need not be one of
    those that claim it; so it is in YOLOv8 and its successors. The soft target of an anchor is t, scaled
    such that a box's largest equals its largest u, both over the anchors assigned to the box.

    Args:
        top_k: Maximum number of anchors per box.
        alpha: Exponent of the score.
        beta: Exponent of the overlap.

    Raises:
        ValueError: ``top_k`` below 1 or a negative exponent.
    """

    def __init__(self, *, top_k: int, alpha: float, beta: float) -> None:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: allowed is 1 or more anchors per box")
        if alpha < 0 or beta < 0:
            raise ValueError(f"assignment alpha={alpha}, beta={beta}: allowed are 0 or more")
        self.top_k = top_k
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, scores: Tensor, boxes_xyxy: Tensor, centres: Tensor, truth: GroundTruth) -> Assignment:
        """Assign a batch, without the host waiting for the device.

        Args:
            scores: [B, A, K], sigmoid scores.
            boxes_xyxy: [B, A, 4], predicted boxes, pixels.
            centres: [A, 2], anchors (x, y), pixels.
            truth: Ground truth of the B images, on the device of the predictions; N may be 0.

        Raises:
            ValueError: The number of images differs between predictions and ground truth.
        """
        images, boxes = truth.valid.shape
        anchors = scores.shape[1]
        if images != len(scores):
            raise ValueError(
                f"got ground truth of {images} images, expected {len(scores)}, as predictions have"
            )
        soft_targets = torch.zeros_like(scores, dtype=torch.float32)  # [B, A, K]
        if not boxes:
            targets = torch.zeros(images, anchors, dtype=torch.int64, device=scores.device)
            return Assignment(targets > 0, targets, soft_targets)
        size = max(1, _MAX_PAIRS // max(1, boxes * anchors))
        chunks = [slice(start, start + size) for start in range(0, images, size)]
        parts = [
            self._assign(scores[chunk].float(), boxes_xyxy[chunk].float(), centres, truth[chunk])
            for chunk in chunks
        ]
        foreground, targets, quality = (torch.cat(part) for part in zip(*parts, strict=True))  # [B, A] each
        labels = truth.labels.gather(1, targets)  # [B, A]
        soft_targets.scatter_(2, labels[..., None], quality[..., None])
        return Assignment(foreground, targets, soft_targets)

    def _assign(
        self, scores: Tensor, boxes: Tensor, centres: Tensor, truth: GroundTruth
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return foreground, index of the box, and soft target of its class, each [B, A], of some images."""
        candidates = _inside(centres, truth.boxes_xyxy) & truth.valid[..., None]  # [B, N, A] bool
        overlap = complete_iou(boxes[:, None], truth.boxes_xyxy[:, :, None])  # [B, N, A]
        overlap = overlap.clamp_(min=0).masked_fill_(~candidates, 0)  # [B, N, A], u
        metric = self._metric(scores, overlap, truth.labels).masked_fill_(~candidates, 0)  # [B, N, A], t
        claimed = self._claims(metric)  # [B, N, A] bool
        contested = claimed.sum(1, keepdim=True) > 1  # [B, 1, A] bool
        eligible = claimed | (contested & candidates)  # [B, N, A] bool
        targets = overlap.masked_fill(~eligible, -1).argmax(1)  # [B, A]
        indices = torch.arange(truth.labels.shape[1], device=targets.device)  # [N]
        lost = ~eligible | (targets[:, None] != indices[:, None])  # [B, N, A] bool
        metric.masked_fill_(lost, 0)
        overlap.masked_fill_(lost, 0)
        scale = overlap.amax(2) / (metric.amax(2) + _METRIC_EPSILON)  # [B, N]
        quality = metric.gather(1, targets[:, None])[:, 0] * scale.gather(1, targets)  # [B, A]
        return claimed.any(1), targets, quality

    def _metric(self, scores: Tensor, overlap: Tensor, labels: Tensor) -> Tensor:
        """Compute the metric t [B, N, A] from scores [B, A, K], u [B, N, A] and labels [B, N]."""
        classes = labels[..., None].expand(-1, -1, scores.shape[1])  # [B, N, A]
        aligned = scores.transpose(1, 2).gather(1, classes).pow_(self.alpha)  # [B, N, A]
        return aligned.mul_(overlap.pow(self.beta))

    def _claims(self, metric: Tensor) -> Tensor:
        """Return [B, N, A] bool, true for the ``top_k`` anchors of each box whose metric is positive."""
        count = min(self.top_k, metric.shape[2])
        best, anchors = metric.topk(count, dim=2, sorted=False)  # [B, N, count] each
        return torch.zeros_like(metric, dtype=torch.bool).scatter_(2, anchors, best > 0)


def _inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Return [B, N, A] bool, true for anchors [A, 2] inside boxes [B, N, 4] and not on their sides."""
    x, y = centres.unbind(-1)  # [A] each
    left, top, right, bottom = boxes[..., None].unbind(-2)  # [B, N, 1] each
    inside_x = torch.minimum(x - left, right - x) > _INSIDE_MARGIN  # [B, N, A]
    inside_y = torch.minimum(y - top, bottom - y) > _INSIDE_MARGIN  # [B, N, A]
    return inside_x & inside_y
