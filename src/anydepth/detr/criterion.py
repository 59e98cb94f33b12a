"""Losses of RT-DETR against ground truth, for all output sets at once.

Sources: RT-DETR (Zhao et al., CVPR 2024) for the terms and their weights; VarifocalNet (Zhang et al., CVPR
2021) for the varifocal loss; DN-DETR (Li et al., CVPR 2022) for the denoising losses.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from anydepth import distributed
from anydepth.detr.matcher import Assignment, HungarianMatcher, NonFiniteCostError
from anydepth.detr.output import DenoisingQueries, DetrOutput
from anydepth.layers.boxes import cxcywh_to_xyxy, paired_iou_giou
from anydepth.structures import Targets

Term = Literal["vfl", "l1", "giou"]
TERMS: tuple[Term, ...] = get_args(Term)


@dataclass(frozen=True)
class GroundTruth:
    """The concatenated boxes of a whole batch, and the divisor of the losses.

    Attributes:
        boxes_cxcywh: [T, 4] float32, normalised; T is the number of boxes in the batch.
        labels: [T] int64, classes in [0, K).
        counts: Number of boxes of each image; they add up to T.
        num_boxes: Scalar, the number of boxes of all processes, at least 1, divided by the number of
            processes.
    """

    boxes_cxcywh: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    num_boxes: Tensor

    @classmethod
    def collect(cls, targets: Sequence[Targets]) -> "GroundTruth":
        """Concatenate the targets of a batch; in distributed training the box counts are summed."""
        boxes = torch.cat([target.boxes_cxcywh for target in targets]).float()
        # A tensor throughout: reading the number back would make the host wait for the device.
        num_boxes = distributed.loss_normalizer(torch.tensor(float(len(boxes)), device=boxes.device))
        counts = tuple(len(target) for target in targets)
        return cls(boxes, torch.cat([target.labels for target in targets]), counts, num_boxes)


class DetrCriterion:
    """Varifocal, L1 and GIoU losses of the last decoder layer, the auxiliary and the denoising outputs.

    All terms are sums over the output sets of their kind, divided by the number of ground-truth boxes, and
    weighted; for denoising, by the number of boxes that were noised times the number of groups. A weight of 0
    skips its terms.

    Args:
        matcher: Assigns predictions to ground truth, per output set.
        vfl_weight: Weight of the varifocal loss.
        l1_weight: Weight of the L1 distance of normalised cxcywh boxes.
        giou_weight: Weight of 1 - GIoU.
        vfl_alpha: Weight of negatives in the varifocal loss.
        vfl_gamma: Focusing exponent of negatives in the varifocal loss.

    Raises:
        ValueError: A negative number, or no positive weight.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        vfl_weight: float,
        l1_weight: float,
        giou_weight: float,
        vfl_alpha: float,
        vfl_gamma: float,
    ) -> None:
        self.weights: dict[Term, float] = {"vfl": vfl_weight, "l1": l1_weight, "giou": giou_weight}
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(f"loss weights {self.weights}: allowed are 0 or more, and at least one above 0")
        if vfl_alpha < 0 or vfl_gamma < 0:
            raise ValueError(f"vfl_alpha={vfl_alpha}, vfl_gamma={vfl_gamma}: allowed are 0 or more")
        self.matcher = matcher
        self.vfl_alpha = vfl_alpha
        self.vfl_gamma = vfl_gamma

    def match(
        self, output: DetrOutput, targets: Sequence[Targets]
    ) -> tuple[Assignment, NonFiniteCostError | None]:
        """Match the last decoder layer (set 0) and the auxiliary outputs (sets 1 to A) to the ground truth.

        Returns:
            The assignment, and an error if a prediction or a ground-truth box is NaN or infinite.

        Raises:
            ValueError: The output comes from eval mode.
        """
        return self.matcher.assign(*_matched_sets(output), targets)

    def terms(
        self,
        output: DetrOutput,
        truth: GroundTruth,
        assignment: Assignment,
        last_layer: Collection[Term] = TERMS,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of one forward pass, float32 scalars.

        Args:
            output: Training-mode output.
            truth: Ground truth of the batch.
            assignment: Result of :meth:`match` for this output.
            last_layer: Terms of the last decoder layer; the other sets always have all terms.

        Returns:
            ``vfl``, ``l1``, ``giou`` of the last decoder layer; ``aux_*`` summed over the auxiliary outputs;
            ``dn_*`` summed over the denoising outputs, 0 in a batch without boxes, so that all processes
            report the same names.

        Raises:
            ValueError: The output comes from eval mode.
        """
        matched = self._set_losses(*_matched_sets(output), assignment, truth, truth.num_boxes)
        denoising = self._denoising_losses(output, truth)
        found: dict[str, Tensor] = {}
        for term, losses in matched.items():
            if term in last_layer:
                found[term] = losses[0]
            found[f"aux_{term}"] = losses[1:].sum()
            found[f"dn_{term}"] = denoising[term].sum() if denoising else losses.new_zeros(())
        return found

    def _denoising_losses(self, output: DetrOutput, truth: GroundTruth) -> dict[Term, Tensor]:
        if output.denoising is None or output.denoising_logits is None or output.denoising_boxes is None:
            return {}
        assignment = denoising_assignment(output.denoising, truth.counts, len(output.denoising_logits))
        num_boxes = truth.num_boxes
        if output.denoising.incomplete:
            # Boxes that are left out must not dilute the losses of the others.
            noised = sum(len(positive) for positive in output.denoising.positives) / output.denoising.groups
            num_boxes = distributed.loss_normalizer(torch.tensor(noised, device=num_boxes.device))
        return self._set_losses(
            output.denoising_logits,
            output.denoising_boxes,
            assignment,
            truth,
            num_boxes * output.denoising.groups,
        )

    def _set_losses(
        self, logits: Tensor, boxes: Tensor, assignment: Assignment, truth: GroundTruth, normalizer: Tensor
    ) -> dict[Term, Tensor]:
        """Compute the weighted losses [S] of each term from logits [S, B, Q, K] and boxes [S, B, Q, 4]."""
        predicted = assignment.gather(boxes).float()  # [S, P, 4]
        wanted = truth.boxes_cxcywh[assignment.targets]  # [S, P, 4]
        iou, giou = paired_iou_giou(  # [S * P] each
            cxcywh_to_xyxy(predicted).flatten(0, 1), cxcywh_to_xyxy(wanted).flatten(0, 1)
        )
        losses: dict[Term, Tensor] = {}
        if self.weights["vfl"]:
            quality = iou.detach().view_as(assignment.queries)  # [S, P]
            losses["vfl"] = self._varifocal_loss(logits.float(), assignment, truth.labels, quality)
        if self.weights["l1"]:
            losses["l1"] = (predicted - wanted).abs().sum((1, 2))
        if self.weights["giou"]:
            losses["giou"] = (1 - giou).view_as(assignment.queries).sum(1)
        return {term: self.weights[term] * loss / normalizer for term, loss in losses.items()}

    def _varifocal_loss(
        self, logits: Tensor, assignment: Assignment, labels: Tensor, quality: Tensor
    ) -> Tensor:
        """Compute the varifocal loss [S], summed over queries and classes; ``quality`` [S, P] is an IoU."""
        positive = (
            assignment.set_index,
            assignment.images,
            assignment.queries,
            labels[assignment.targets],
        )
        target = torch.zeros_like(logits).index_put_(positive, quality)  # [S, B, Q, K]
        weight = self.vfl_alpha * logits.detach().sigmoid().pow(self.vfl_gamma)  # [S, B, Q, K]
        weight.index_put_(positive, quality)
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
        return loss.sum((1, 2, 3))


def denoising_assignment(queries: DenoisingQueries, counts: Sequence[int], layers: int) -> Assignment:
    """Assign each positive denoising query to the box that it is a copy of, in every layer.

    Args:
        queries: Denoising queries of the batch.
        counts: Number of boxes of each image.
        layers: Number of decoder layers, and so of output sets S.
    """
    pairs = torch.tensor([len(positive) for positive in queries.positives])
    starts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    # Image of each pair and the index of its first box, stacked for a single transfer.
    images, first = (
        torch.stack([torch.arange(len(pairs)), starts]).repeat_interleave(pairs, 1).to(queries.labels.device)
    )
    positions = torch.cat(queries.positives).expand(layers, -1)
    return Assignment(images, positions, (torch.cat(queries.positive_targets) + first).expand(layers, -1))


def _matched_sets(output: DetrOutput) -> tuple[Tensor, Tensor]:
    """Return logits [1 + A, B, Q, K] and boxes [1 + A, B, Q, 4], the last decoder layer first."""
    if output.auxiliary_logits is None or output.auxiliary_boxes is None:
        raise ValueError(
            "got an output without auxiliary predictions, so it comes from eval mode; call detector.train() "
            "before the forward pass whose losses are computed"
        )
    return (
        torch.cat([output.logits[None], output.auxiliary_logits]),
        torch.cat([output.boxes_cxcywh[None], output.auxiliary_boxes]),
    )
