"""Distillation of the shallower pass from the deeper one: matched predictions and pooled features.

Source: AnyDepth-DETR (Kang et al., 2026), whose method grew out of adaptive depth networks (Kang and Lee,
NeurIPS 2024). No gradient reaches the teacher: its tensors are detached.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from anydepth.detr.criterion import GroundTruth, Term
from anydepth.detr.matcher import Assignment
from anydepth.detr.output import DetrOutput
from anydepth.layers.boxes import cxcywh_to_xyxy, paired_iou_giou
from anydepth.layers.divergences import bernoulli_kl, class_kl

ClassLoss = Literal["softmax_kl", "bernoulli_kl"]
Source = Literal["teacher", "ground_truth", "both"]
AutoSource = Literal["auto", "teacher", "ground_truth", "both"]
Weight = float | Literal["auto", "queries/classes"]

# The weight that the released implementation comes to with its 80 classes (and 300 queries).
_PUBLISHED_WEIGHT = 3.75
_PUBLISHED_CLASSES = 80


class DetrDistillation:
    """Distillation losses of AnyDepth-DETR on the last decoder layer and on the feature maps.

    Student and teacher are each matched to the ground truth; predictions that share a ground-truth box form
    a pair, and only pairs are compared. The teacher's predictions replace the ground truth of the student's
    last layer, or are used in addition to it, depending on ``class_targets`` and ``box_targets``.

    One class is a special case. The softmax over one class is constant, so it is taken over the class and
    the mean of the teacher's logits (:func:`anydepth.layers.divergences.class_kl`); and no loss on matched
    pairs alone lowers the scores of unmatched queries, so the varifocal loss stays.

    Args:
        class_loss: ``softmax_kl`` is KL(teacher || student) of the softmax over classes, as published;
            ``bernoulli_kl`` the sum over classes of the KL divergence of sigmoid scores, which also keeps
            their level.
        class_targets: Source of the class terms of the last layer; ``auto`` is ``teacher``, with one class
            ``both``.
        box_targets: Source of the box terms of the last layer.
        softmax_kl_weight: Weight of ``softmax_kl``: a number, ``auto`` (:func:`balanced_weight`), or
            ``queries/classes``, which is Q / K, the factor of the released implementation. All agree with it
            at 300 queries and 80 classes; with few classes, Q / K drowns every other term.
        bernoulli_kl_weight: Weight of ``bernoulli_kl``.
        l1_weight: Weight of the L1 distance to the teacher's box (normalised cxcywh).
        giou_weight: Weight of 1 - GIoU with the teacher's box.
        backbone_weight: Weight of the KL divergence of pooled backbone features; 0 skips it.
        neck_weight: Weight of the KL divergence of pooled neck features; 0 skips it.

    Raises:
        ValueError: An unknown choice or a negative weight.
    """

    def __init__(
        self,
        *,
        class_loss: ClassLoss,
        class_targets: AutoSource,
        box_targets: Source,
        softmax_kl_weight: Weight,
        bernoulli_kl_weight: float,
        l1_weight: float,
        giou_weight: float,
        backbone_weight: float,
        neck_weight: float,
    ) -> None:
        _check_choice("class_loss", class_loss, get_args(ClassLoss))
        _check_choice("class_targets", class_targets, get_args(AutoSource))
        _check_choice("box_targets", box_targets, get_args(Source))
        if isinstance(softmax_kl_weight, str) and softmax_kl_weight not in ("auto", "queries/classes"):
            raise ValueError(
                f"softmax_kl_weight={softmax_kl_weight!r}: allowed are a number, 'auto' or 'queries/classes'"
            )
        weights = {
            "softmax_kl_weight": 0.0 if isinstance(softmax_kl_weight, str) else softmax_kl_weight,
            "bernoulli_kl_weight": bernoulli_kl_weight,
            "l1_weight": l1_weight,
            "giou_weight": giou_weight,
            "backbone_weight": backbone_weight,
            "neck_weight": neck_weight,
        }
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"{name}={value}: allowed is 0 (off) or more")
        self.class_loss = class_loss
        self.class_targets = class_targets
        self.box_targets = box_targets
        self.softmax_kl_weight: Weight = softmax_kl_weight
        self.bernoulli_kl_weight = bernoulli_kl_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.backbone_weight = backbone_weight
        self.neck_weight = neck_weight

    @property
    def levels(self) -> frozenset[str]:
        """Levels of the teacher that any term learns from: ``predictions``, ``features``."""
        of_softmax = self.class_loss == "softmax_kl"
        class_weight = self.softmax_kl_weight if of_softmax else self.bernoulli_kl_weight
        classes = self.class_targets != "ground_truth" and bool(class_weight)
        boxes = self.box_targets != "ground_truth" and any((self.l1_weight, self.giou_weight))
        taught = {"predictions": classes or boxes, "features": any((self.backbone_weight, self.neck_weight))}
        return frozenset(level for level, is_taught in taught.items() if is_taught)

    def ground_truth_terms(self, num_classes: int) -> set[Term]:
        """Return the ground-truth terms of the student's last layer, for K = ``num_classes``."""
        terms: set[Term] = set()
        if self._class_targets(num_classes) != "teacher":
            terms.add("vfl")
        if self.box_targets != "teacher":
            terms |= {"l1", "giou"}
        return terms

    def predictions(
        self,
        student: DetrOutput,
        teacher: DetrOutput,
        student_assignment: Assignment,
        teacher_assignment: Assignment,
        truth: GroundTruth,
    ) -> dict[str, Tensor]:
        """Compute weighted losses of the student's last decoder layer against the teacher's.

        Args:
            student: Output of the shallower pass.
            teacher: Output of the deeper pass.
            student_assignment: Assignment whose set 0 is the student's last layer.
            teacher_assignment: Assignment whose set 0 is the teacher's last layer.
            truth: Ground truth that both were matched to.

        Returns:
            ``kd_class``, ``kd_l1`` and ``kd_giou``, if their weights are not 0; float32 scalars.
        """
        ours, theirs, shared = pair_queries(student_assignment, teacher_assignment, len(truth.labels))
        terms: dict[str, Tensor] = {}
        if self._class_targets(student.logits.shape[-1]) != "ground_truth":
            queries, classes = student.logits.shape[-2:]
            weight = self._class_weight(queries, classes)
            if weight:
                logits = ours.gather(student.logits[None])[0].float()
                teacher_logits = theirs.gather(teacher.logits[None])[0].detach().float()
                if self.class_loss == "softmax_kl":
                    divergence = class_kl(logits, teacher_logits, shared)
                else:
                    divergence = bernoulli_kl(logits, teacher_logits)
                terms["kd_class"] = weight * (divergence * shared).sum()
        if self.box_targets != "ground_truth":
            boxes = ours.gather(student.boxes_cxcywh[None])[0].float()
            teacher_boxes = theirs.gather(teacher.boxes_cxcywh[None])[0].detach().float()
            if self.l1_weight:
                distance = (boxes - teacher_boxes).abs().sum(1)
                terms["kd_l1"] = self.l1_weight * (distance * shared).sum()
            if self.giou_weight:
                _, giou = paired_iou_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(teacher_boxes))
                terms["kd_giou"] = self.giou_weight * ((1 - giou) * shared).sum()
        return {name: term / truth.num_boxes for name, term in terms.items()}

    def features(self, student: DetrOutput, teacher: DetrOutput) -> dict[str, Tensor]:
        """Compute the weighted divergences ``kd_backbone`` and ``kd_neck`` of the pooled features."""
        terms: dict[str, Tensor] = {}
        if self.backbone_weight:
            divergence = pooled_feature_kl(student.backbone_features, teacher.backbone_features)
            terms["kd_backbone"] = self.backbone_weight * divergence
        if self.neck_weight:
            divergence = pooled_feature_kl(student.neck_features, teacher.neck_features)
            terms["kd_neck"] = self.neck_weight * divergence
        return terms

    def _class_targets(self, num_classes: int) -> Source:
        if self.class_targets == "auto":
            return "teacher" if num_classes > 1 else "both"
        return self.class_targets

    def _class_weight(self, queries: int, classes: int) -> float:
        if self.class_loss == "bernoulli_kl":
            return self.bernoulli_kl_weight
        weight = self.softmax_kl_weight
        if isinstance(weight, str):
            weight = queries / classes if weight == "queries/classes" else balanced_weight(classes)
        return weight


def balanced_weight(num_classes: int) -> float:
    """Return the weight of the softmax divergence that keeps its share of the gradient, whatever K is.

    It is 3.75 ln(1 + K) / ln(81): the published value at 80 classes, 0.94 at 2, 5.9 at 1,000. The gradient
    of the divergence of K logits falls about as 1 / ln(1 + K) early in training, when the classes are still
    alike: on the parameters that both passes use, it then has 0.3 to 0.9 times the norm of the gradient of
    all losses of the deeper pass for 1 to 365 classes, measured on ``detr_tiny``. Of the two logits that are
    compared with one class, only one learns: the weight is twice that of two classes, 1.9. Divided by the
    number of boxes, the term does not depend on the number of queries.
    """
    if num_classes == 1:
        return 2 * balanced_weight(2)
    return _PUBLISHED_WEIGHT * (math.log1p(num_classes) / math.log1p(_PUBLISHED_CLASSES))


def pair_queries(
    student: Assignment, teacher: Assignment, num_targets: int
) -> tuple[Assignment, Assignment, Tensor]:
    """Pair the predictions of student and teacher that set 0 assigned to the same ground-truth box.

    With more boxes than queries, student and teacher may leave out different boxes. Such a pair is kept with
    a weight of 0 instead of being dropped, because dropping would need the device's count on the host.

    Args:
        student: Assignment of the student.
        teacher: Assignment of the teacher.
        num_targets: Number of ground-truth boxes in the batch.

    Returns:
        Both assignments (S = 1) in the order of the student's pairs, and [P] float32: 1 for a true pair.
    """
    targets = student.targets[0]  # [P]
    query_of_target = torch.full((num_targets,), -1, dtype=torch.int64, device=targets.device)  # [T]
    query_of_target[teacher.targets[0]] = teacher.queries[0]
    queries = query_of_target[targets]  # [P], -1 without a partner
    partner = Assignment(student.images, queries.clamp(min=0)[None], targets[None])
    return student.select_set(0), partner, (queries >= 0).float()


def pooled_feature_kl(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute KL(teacher || student) of the pooled features of several levels, a float32 scalar.

    Each map is averaged over its cells; the channels of all levels of an image form one vector, whose softmax
    is compared. The mean over images is taken, so an image contributes the same in a batch of any size.

    Args:
        student: L maps [B, C, H, W] each.
        teacher: L maps [B, C, H, W] each; detached here.
    """
    return F.kl_div(
        _pooled(student).log_softmax(1),
        _pooled([level.detach() for level in teacher]).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def _pooled(levels: Sequence[Tensor]) -> Tensor:
    # The sum accumulates in float32 without a float32 copy of the map; dividing afterwards instead of taking
    # the mean keeps the gradient an expanded view, while that of the mean would be a map of its own.
    pooled = [level.sum((2, 3), dtype=torch.float32) / (level.shape[2] * level.shape[3]) for level in levels]
    return torch.cat(pooled, dim=1)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(allowed)}")
