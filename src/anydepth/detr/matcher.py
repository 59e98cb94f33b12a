"""One-to-one assignment of predictions to ground truth by the Hungarian method, for many output sets at once.

Source: DETR (Carion et al., ECCV 2020, section 3.1); the focal class cost is that of Deformable DETR (Zhu et
al., ICLR 2021), with RT-DETR's numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anydepth.detector import NonFiniteError
from anydepth.layers.boxes import cxcywh_to_xyxy
from anydepth.structures import Targets

# Keeps the logarithm of the focal class cost finite; the value of Deformable DETR and its successors.
_LOG_EPSILON = 1e-8
# Replaces a cost that is NaN or infinite: above all finite costs, and far below the largest float32.
_NON_FINITE_COST = 1e9


class NonFiniteCostError(NonFiniteError):
    """Predictions or ground truth that cannot be matched because a cost is NaN or infinite."""


@dataclass(frozen=True)
class Assignment:
    """``P`` pairs of prediction and ground-truth box in each of ``S`` output sets.

    Every set has the same number of pairs, and pair ``p`` belongs to the same image in all of them, so that
    the losses of all sets can be gathered and summed without a loop.

    Attributes:
        images: [P] int64, index of the image in the batch, ascending.
        queries: [S, P] int64, index of the prediction in Q (or D for denoising).
        targets: [S, P] int64, index of the box in the concatenated boxes of the whole batch.
    """

    images: Tensor
    queries: Tensor
    targets: Tensor

    def gather(self, predictions: Tensor) -> Tensor:
        """Gather the assigned predictions [S, P, C] from [S, B, Q, C]."""
        return predictions[self.set_index, self.images, self.queries]

    @property
    def set_index(self) -> Tensor:
        """[S, 1] int64, index of each set; broadcasts against :attr:`queries`."""
        return torch.arange(len(self.queries), device=self.queries.device)[:, None]

    def select_set(self, set_index: int) -> "Assignment":
        """Return the assignment of one set, S = 1."""
        chosen = slice(set_index, set_index + 1)
        return Assignment(self.images, self.queries[chosen], self.targets[chosen])


class HungarianMatcher:
    """Assigns each ground-truth box to the prediction that keeps the total cost of its image lowest.

    The cost of a pair is ``class_cost`` x focal class cost + ``l1_cost`` x L1 distance of the normalised
    cxcywh boxes - ``giou_cost`` x generalised IoU. If an image has more boxes than queries, the boxes that
    cost most to match get no prediction.

    Args:
        class_cost: Weight of the class term.
        l1_cost: Weight of the L1 term.
        giou_cost: Weight of the GIoU term.
        alpha: Balance of the positive and the negative part of the focal class cost.
        gamma: Focusing exponent of the focal class cost.

    Raises:
        ValueError: A negative weight, no positive weight, or alpha outside [0, 1].
    """

    def __init__(
        self,
        *,
        class_cost: float,
        l1_cost: float,
        giou_cost: float,
        alpha: float,
        gamma: float,
    ) -> None:
        costs = {"class_cost": class_cost, "l1_cost": l1_cost, "giou_cost": giou_cost}
        if min(costs.values()) < 0 or not any(costs.values()):
            raise ValueError(f"matching costs {costs}: allowed are 0 or more, and at least one above 0")
        if not 0 <= alpha <= 1 or gamma < 0:
            raise ValueError(
                f"matching alpha={alpha}, gamma={gamma}: allowed are 0 <= alpha <= 1, gamma >= 0"
            )
        self.class_cost = class_cost
        self.l1_cost = l1_cost
        self.giou_cost = giou_cost
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, logits: Tensor, boxes_cxcywh: Tensor, targets: Sequence[Targets]) -> Assignment:
        """Match all output sets, as :meth:`assign` does.

        Raises:
            NonFiniteCostError: A prediction or a ground-truth box is NaN or infinite.
            ValueError: The number of images differs between predictions and targets.
        """
        assignment, fault = self.assign(logits, boxes_cxcywh, targets)
        if fault is not None:
            raise fault
        return assignment

    @torch.no_grad()
    def assign(
        self, logits: Tensor, boxes_cxcywh: Tensor, targets: Sequence[Targets]
    ) -> tuple[Assignment, NonFiniteCostError | None]:
        """Match all output sets: one cost computation, one transfer to the host and one back.

        Args:
            logits: [S, B, Q, K].
            boxes_cxcywh: [S, B, Q, 4], normalised.
            targets: Ground truth of the B images, on the device of the predictions.

        Returns:
            The assignment, on the device of the predictions; P is the sum over the images of min(Q, N). And
            an error if a prediction or a ground-truth box is NaN or infinite: such costs then count as very
            high ones, so that a step in which other processes take part can be completed.

        Raises:
            ValueError: The number of images differs between predictions and targets.
        """
        if logits.shape[1] != len(targets):
            raise ValueError(
                f"got targets of {len(targets)} images, expected {logits.shape[1]}, as predictions have"
            )
        counts = [len(target) for target in targets]
        if not any(counts):
            empty = torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device)
            return Assignment(empty.new_zeros(0), empty, empty), None
        costs = self._compute_costs(logits.float(), boxes_cxcywh.float(), targets).cpu().numpy()
        fault = None
        if not np.isfinite(costs).all():
            fault = _non_finite_error(costs, logits, boxes_cxcywh, targets)
            costs = np.nan_to_num(
                costs, nan=_NON_FINITE_COST, posinf=_NON_FINITE_COST, neginf=-_NON_FINITE_COST
            )
        # Images, then queries, then targets of all sets in one array: one transfer.
        table = torch.from_numpy(_solve(costs, counts)).to(logits.device)  # [1 + 2 S, P]
        queries, matched = table[1:].chunk(2)  # [S, P] each
        return Assignment(table[0], queries, matched), fault

    def _compute_costs(self, logits: Tensor, boxes: Tensor, targets: Sequence[Targets]) -> Tensor:
        """Compute costs [S, B, Q, N]; images with fewer boxes than N are padded."""
        target_labels = pad_sequence([t.labels for t in targets], batch_first=True)  # [B, N]
        target_boxes = pad_sequence([t.boxes_cxcywh for t in targets], batch_first=True).float()  # [B, N, 4]
        index = target_labels[None, :, None, :].expand(*logits.shape[:3], -1)  # [S, B, Q, N]
        costs = self.class_cost * self._class_cost(logits.gather(3, index).sigmoid())
        costs += self.l1_cost * torch.cdist(boxes, target_boxes, p=1)
        costs -= self.giou_cost * _pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        return costs

    def _class_cost(self, scores: Tensor) -> Tensor:
        positive = self.alpha * (1 - scores) ** self.gamma * -(scores + _LOG_EPSILON).log()
        negative = (1 - self.alpha) * scores**self.gamma * -(1 - scores + _LOG_EPSILON).log()
        return positive - negative


def _pairwise_giou(boxes_xyxy: Tensor, target_boxes_xyxy: Tensor) -> Tensor:
    """Compute the generalised IoU [S, B, Q, N] of boxes [S, B, Q, 4] and targets [B, N, 4] of the same image.

    Works coordinate by coordinate, because torchvision's function takes two plain lists of boxes and
    reductions over an axis of length 2 are slow.
    """
    left, top, right, bottom = boxes_xyxy[..., None].unbind(-2)  # [S, B, Q, 1] each
    t_left, t_top, t_right, t_bottom = target_boxes_xyxy[:, None].unbind(-1)  # [B, 1, N] each
    width = (torch.minimum(right, t_right) - torch.maximum(left, t_left)).clamp(min=0)  # [S, B, Q, N]
    height = (torch.minimum(bottom, t_bottom) - torch.maximum(top, t_top)).clamp(min=0)
    intersection = width * height
    union = (right - left) * (bottom - top) + (t_right - t_left) * (t_bottom - t_top) - intersection
    hull_width = torch.maximum(right, t_right) - torch.minimum(left, t_left)
    hull_height = torch.maximum(bottom, t_bottom) - torch.minimum(top, t_top)
    epsilon = torch.finfo(union.dtype).eps
    hull = (hull_width * hull_height).clamp(min=epsilon)
    return intersection / union.clamp(min=epsilon) - (hull - union) / hull


def _solve(costs: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.int64]:
    """Solve the assignments of costs [S, B, Q, N].

    Returns:
        [1 + 2 S, P]: the image of each pair, then its query in each set, then its target in each set.
    """
    sets, _, queries, _ = costs.shape
    pairs = [min(queries, count) for count in counts]
    table = np.empty((1 + 2 * sets, sum(pairs)), dtype=np.int64)
    pair_start = target_start = 0
    for image, (count, size) in enumerate(zip(counts, pairs, strict=True)):
        columns = slice(pair_start, pair_start + size)
        table[0, columns] = image
        for output_set in range(sets):
            rows, matched = linear_sum_assignment(costs[output_set, image, :, :count])
            table[1 + output_set, columns] = rows
            table[1 + sets + output_set, columns] = matched + target_start
        pair_start += size
        target_start += count
    return table


def _non_finite_error(
    costs: NDArray[np.float32], logits: Tensor, boxes: Tensor, targets: Sequence[Targets]
) -> NonFiniteCostError:
    bad_sets, bad_images, *_ = np.nonzero(~np.isfinite(costs))
    images = tuple(np.unique(bad_images).tolist())
    sets = np.unique(bad_sets).tolist()
    chosen = list(images)
    culprits = []
    if not logits[:, chosen].isfinite().all():
        culprits.append("predicted logits")
    if not boxes[:, chosen].isfinite().all():
        culprits.append("predicted boxes")
    if not all(targets[image].boxes_cxcywh.isfinite().all() for image in images):
        culprits.append("ground-truth boxes")
    # Boxes first: denoising feeds them to the decoder, so non-finite boxes make predictions non-finite, too.
    remedy = (
        "check the annotations of these images"
        if "ground-truth boxes" in culprits
        else "training has diverged: lower the learning rate, lengthen the warm-up, or train in bf16 or fp32"
    )
    return NonFiniteCostError(
        f"got NaN or infinite matching costs for images {chosen} of the batch (positions from 0) in output "
        f"sets {sets} of {len(costs)} (0 is the last decoder layer), caused by the "
        f"{' and '.join(culprits) or 'costs themselves'}; {remedy}",
        images,
    )
