"""Losses of the YOLO family against ground truth.

Sources: TOOD (Feng et al., ICCV 2021) for the soft class targets and the weights; Distance-IoU (Zheng et al.,
AAAI 2020) for the box loss; Generalized Focal Loss (Li et al., NeurIPS 2020) for the distribution focal loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from anydepth import distributed
from anydepth.yolo.assigner import Assignment, GroundTruth, TaskAlignedAssigner
from anydepth.yolo.decode import Predictions
from anydepth.yolo.output import BINS
from anydepth.yolo.overlap import complete_iou

# In strides: less than the last bin, so that the upper of the two bins around a distance exists. The 0.01 is
# YOLOv8's.
_MAX_DISTANCE = BINS - 1 - 0.01


class YoloCriterion:
    """Box (1 - CIoU), class (binary cross entropy) and distribution focal losses of one forward pass.

    Each is divided by S = max(sum of the soft targets of the batch, 1) and multiplied by its weight; a weight
    of 0 skips its term. The batch is that of all processes, see
    :func:`anydepth.distributed.loss_normalizer`. The published factor, the number of images per step, belongs
    to the learning rate that was chosen for it: see :class:`~anydepth.training.recipes.SGDRecipe`.

    The losses of all anchors are computed and those of the background weighted with 0: selecting the
    foreground would make the host wait for the device.

    Args:
        assigner: Assigns anchors to ground truth.
        box_weight: Weight of 1 - CIoU.
        class_weight: Weight of the binary cross entropy of all anchors and classes.
        dfl_weight: Weight of the distribution focal loss of the four distances.

    Raises:
        ValueError: A negative weight, or none that is positive.
    """

    def __init__(
        self,
        *,
        assigner: TaskAlignedAssigner,
        box_weight: float,
        class_weight: float,
        dfl_weight: float,
    ) -> None:
        weights = {"box_weight": box_weight, "class_weight": class_weight, "dfl_weight": dfl_weight}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"loss weights {weights}: allowed are 0 or more, and at least one above 0")
        self.assigner = assigner
        self.box_weight = box_weight
        self.class_weight = class_weight
        self.dfl_weight = dfl_weight

    def assign(self, predictions: Predictions, truth: GroundTruth) -> Assignment:
        """Assign the anchors of one forward pass to the ground truth, by its own scores and boxes.

        Raises:
            ValueError: The number of images differs between predictions and ground truth.
        """
        scores = predictions.class_logits.detach().sigmoid()
        return self.assigner(scores, predictions.boxes_xyxy.detach(), predictions.centres, truth)

    def terms(
        self, predictions: Predictions, truth: GroundTruth, assignment: Assignment
    ) -> dict[str, Tensor]:
        """Compute the weighted losses ``box``, ``class`` and ``dfl`` of one forward pass, float32 scalars.

        Without boxes in the batch ``box`` and ``dfl`` are 0, with gradients of 0.

        Args:
            predictions: Predictions for the B images.
            truth: Ground truth of the B images; N is at least 1, as in :meth:`GroundTruth.collect`.
            assignment: Result of :meth:`assign` for these predictions.
        """
        weights = assignment.weights  # [B, A]
        targets = assignment.targets[..., None].expand(-1, -1, 4)  # [B, A, 4]
        wanted = truth.boxes_xyxy.gather(1, targets) / predictions.strides[:, None]  # [B, A, 4], strides
        terms: dict[str, Tensor] = {}
        if self.box_weight:
            predicted = predictions.boxes_xyxy / predictions.strides[:, None]  # [B, A, 4], strides
            terms["box"] = self.box_weight * (weights * (1 - complete_iou(predicted, wanted))).sum()
        if self.class_weight:
            terms["class"] = self.class_weight * F.binary_cross_entropy_with_logits(
                predictions.class_logits, assignment.soft_targets, reduction="sum"
            )
        if self.dfl_weight:
            distances = side_distances(wanted, predictions.centres / predictions.strides[:, None])
            loss = distribution_focal_loss(predictions.box_logits, distances)  # [B, A]
            terms["dfl"] = self.dfl_weight * (weights * loss).sum()
        total = distributed.loss_normalizer(weights.sum())
        return {name: term / total for name, term in terms.items()}


def side_distances(boxes_xyxy: Tensor, centres: Tensor) -> Tensor:
    """Return distances [..., A, 4] from points [A, 2] to left, top, right, bottom of boxes [..., A, 4]."""
    return torch.cat([centres - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - centres], dim=-1)


def distribution_focal_loss(box_logits: Tensor, distances: Tensor) -> Tensor:
    """Compute the cross entropy to the two bins around each distance, weighted by its nearness to them.

    Args:
        box_logits: [B, A, 4, 16].
        distances: [B, A, 4] in strides; clipped to [0, 14.99].

    Returns:
        [B, A], the mean over the four sides.
    """
    # NaN is reported by the objective once its losses are queued; until then it must not become an index.
    distances = distances.nan_to_num(nan=0).clamp(0, _MAX_DISTANCE)
    lower = distances.floor()  # [B, A, 4]
    upper_share = distances - lower
    bins = torch.stack([lower, lower + 1], dim=-1).long()  # [B, A, 4, 2]
    lower_loss, upper_loss = box_logits.log_softmax(-1).gather(-1, bins).neg().unbind(-1)  # [B, A, 4] each
    return (lower_loss * (1 - upper_share) + upper_loss * upper_share).mean(-1)
