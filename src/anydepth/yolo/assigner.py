"""Task-aligned assignment of anchors to ground truth.

Source: TOOD (Feng et al., ICCV 2021, section 3.2) for the metric, the choice per box and the normalised
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

# How far, in pixels, an anchor must lie from the nearest side to be inside a box.
_INSIDE = 1e-9
_METRIC_EPSILON = 1e-9
# Pairs of a box and an anchor that are compared at once, 64 MiB per float32 tensor: a batch of 16 images of
# 8400 anchors and 100 boxes goes in one piece, larger ones in several.
_PAIRS = 2**24


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
        # Scaled by numbers of the host: a tensor of the four would have to be copied to the device.
        x, y = boxes[..., 0::2] * width, boxes[..., 1::2] * height
        return cls(labels, cxcywh_to_xyxy(torch.stack([x, y], dim=-1).flatten(2)), valid)

    def __getitem__(self, images: slice) -> "GroundTruth":
        """The ground truth of some images."""
        return GroundTruth(self.labels[images], self.boxes_xyxy[images], self.valid[images])


@dataclass(frozen=True)
class Assignment:
    """Which anchor learns which box, and how strongly.

    Attributes:
        foreground: [B, A] bool, True where a box is assigned.
        targets: [B, A] int64, position in N of the assigned box; 0 in the background.
        soft_targets: [B, A, K] float32, the class targets: in [0, 1] at the class of the assigned box, 0
            elsewhere.
    """

    foreground: Tensor
    targets: Tensor
    soft_targets: Tensor

    @property
    def weights(self) -> Tensor:
        """[B, A] float32, the sum of an anchor's soft targets; 0 in the background."""
        return self.soft_targets.sum(-1)


class TaskAlignedAssigner:
    """Assigns to each box the anchors inside it that classify and localise it best.

    The metric of a pair is t = s^alpha u^beta, of the score s of the box's class and u = max(CIoU, 0). Each
    box claims the ``top_k`` anchors of highest t > 0 whose centre lies inside it; an anchor that several
    boxes claim goes to the one of highest u among them. The soft target of an anchor is t, scaled such that
    the largest of a box equals the largest u of that box, both over the anchors that the box was assigned.

    Args:
        top_k: Most anchors per box.
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
            scores: [B, A, K] sigmoid scores.
            boxes_xyxy: [B, A, 4] predicted boxes, pixels.
            centres: [A, 2] anchors (x, y), pixels.
            truth: Ground truth of the B images, on the device of the predictions; N may be 0.

        Raises:
            ValueError: The number of images differs between predictions and ground truth.
        """
        images, boxes = truth.valid.shape
        anchors = scores.shape[1]
        if images != len(scores):
            raise ValueError(f"ground truth of {images} images came for predictions of {len(scores)} images")
        soft_targets = torch.zeros_like(scores, dtype=torch.float32)
        if not boxes:
            targets = torch.zeros(images, anchors, dtype=torch.int64, device=scores.device)
            return Assignment(targets > 0, targets, soft_targets)
        group = max(1, _PAIRS // max(1, boxes * anchors))
        groups = [slice(start, start + group) for start in range(0, images, group)]
        parts = [
            self._assign(scores[some].float(), boxes_xyxy[some].float(), centres, truth[some])
            for some in groups
        ]
        foreground, targets, quality = (torch.cat(part) for part in zip(*parts, strict=True))
        soft_targets.scatter_(2, truth.labels.gather(1, targets)[..., None], quality[..., None])
        return Assignment(foreground, targets, soft_targets)

    def _assign(
        self, scores: Tensor, boxes: Tensor, centres: Tensor, truth: GroundTruth
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Foreground, position of the box, and soft target of its class, each [B, A], of some images."""
        candidates = _inside(centres, truth.boxes_xyxy) & truth.valid[..., None]
        overlap = complete_iou(boxes[:, None], truth.boxes_xyxy[:, :, None])
        overlap = overlap.clamp_(min=0).masked_fill_(~candidates, 0)
        metric = self._metric(scores, overlap, truth.labels).masked_fill_(~candidates, 0)
        claimed = self._claims(metric)
        targets = overlap.masked_fill(~claimed, -1).argmax(1)
        positions = torch.arange(truth.labels.shape[1], device=targets.device)
        lost = ~claimed | (targets[:, None] != positions[:, None])
        metric.masked_fill_(lost, 0)
        overlap.masked_fill_(lost, 0)
        scale = overlap.amax(2) / (metric.amax(2) + _METRIC_EPSILON)
        quality = metric.gather(1, targets[:, None])[:, 0] * scale.gather(1, targets)
        return claimed.any(1), targets, quality

    def _metric(self, scores: Tensor, overlap: Tensor, labels: Tensor) -> Tensor:
        """Metric t [B, N, A] from scores [B, A, K], u [B, N, A] and labels [B, N]."""
        classes = labels[..., None].expand(-1, -1, scores.shape[1])
        aligned = scores.transpose(1, 2).gather(1, classes).pow_(self.alpha)
        return aligned.mul_(overlap.pow(self.beta))

    def _claims(self, metric: Tensor) -> Tensor:
        """[B, N, A] bool: the ``top_k`` anchors of each box, as far as their metric is positive."""
        best, anchors = metric.topk(min(self.top_k, metric.shape[2]), dim=2, sorted=False)
        return torch.zeros_like(metric, dtype=torch.bool).scatter_(2, anchors, best > 0)


def _inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """[B, N, A] bool: anchors [A, 2] that lie inside of boxes [B, N, 4], not on their sides."""
    x, y = centres.unbind(-1)
    left, top, right, bottom = boxes[..., None].unbind(-2)
    inside_x = torch.minimum(x - left, right - x) > _INSIDE
    inside_y = torch.minimum(y - top, bottom - y) > _INSIDE
    return inside_x & inside_y
