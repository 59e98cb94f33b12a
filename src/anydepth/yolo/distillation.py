"""Distillation of the shallower pass from the deeper one: scores, boxes, distributions and pooled features.

Source: AnyDepth-YOLO (Kang et al., 2026), whose method grew out of adaptive depth networks (Kang and Lee,
NeurIPS 2024). No gradient reaches the teacher: its tensors are detached.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from anydepth import distributed
from anydepth.layers.divergences import bernoulli_kl, class_kl, softmax_kl
from anydepth.yolo.assigner import Assignment
from anydepth.yolo.decode import Predictions
from anydepth.yolo.output import YoloOutput
from anydepth.yolo.overlap import complete_iou

ClassLoss = Literal["softmax_kl", "bernoulli_kl"]


class YoloDistillation:
    """Distillation losses of AnyDepth-YOLO, anchor by anchor where the teacher sees an object.

    The anchors of both passes have been assigned to the ground truth by their own predictions. An anchor is
    in *conflict* if both assign it, but to different boxes; it is ignored. For all others the sum of the
    teacher's soft targets is the anchor's weight w, and each loss is sum(w loss) / max(sum(w), 1) over its
    anchors, the latter sum over those of all processes:

    =======  =====================================================  ==========================================
    term     anchors                                                loss
    =======  =====================================================  ==========================================
    class    assigned by the teacher (the student may see           KL(teacher || student) of the classes at
             background), no conflict                               ``class_temperature``, times its square
    box      assigned by both, no conflict                          1 - CIoU with the teacher's box
    dfl      assigned by both, no conflict                          KL(teacher || student) of the 16 bins at
                                                                    ``dfl_temperature``, mean over the sides;
                                                                    not times its square
    =======  =====================================================  ==========================================

    The feature loss is the squared distance of L2-normalised pooled maps, mean over images and maps.

    One class is a special case: the softmax over one class is constant, so it is taken over the class and the
    mean of the teacher's logits, see :func:`anydepth.layers.divergences.class_kl`.

    Args:
        class_loss: ``softmax_kl`` is the KL divergence of the softmax over classes, as published;
            ``bernoulli_kl`` the sum over classes of the KL divergence of sigmoid scores, which also keeps
            their level.
        box_weight: Weight of the box term; 0 skips it.
        class_weight: Weight of the class term; 0 skips it.
        dfl_weight: Weight of the term of the distance distributions; 0 skips it.
        feature_weight: Weight of the feature term; 0 skips it.
        class_temperature: Divisor of the class logits, of either ``class_loss``.
        dfl_temperature: Divisor of the logits of the distance bins.

    Raises:
        ValueError: An unknown choice, a negative weight, or a temperature that is not positive.
    """

    def __init__(
        self,
        *,
        class_loss: ClassLoss,
        box_weight: float,
        class_weight: float,
        dfl_weight: float,
        feature_weight: float,
        class_temperature: float,
        dfl_temperature: float,
    ) -> None:
        if class_loss not in get_args(ClassLoss):
            raise ValueError(f"class_loss={class_loss!r}: allowed are {', '.join(get_args(ClassLoss))}")
        weights = {
            "box_weight": box_weight,
            "class_weight": class_weight,
            "dfl_weight": dfl_weight,
            "feature_weight": feature_weight,
        }
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"{name}={value}: allowed is 0 (off) or more")
        for name, value in {
            "class_temperature": class_temperature,
            "dfl_temperature": dfl_temperature,
        }.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: allowed is more than 0")
        self.class_loss = class_loss
        self.box_weight = box_weight
        self.class_weight = class_weight
        self.dfl_weight = dfl_weight
        self.feature_weight = feature_weight
        self.class_temperature = class_temperature
        self.dfl_temperature = dfl_temperature

    @property
    def levels(self) -> frozenset[str]:
        """Levels of the teacher that any term learns from: ``predictions``, ``features``."""
        weights = {
            "predictions": (self.box_weight, self.class_weight, self.dfl_weight),
            "features": (self.feature_weight,),
        }
        return frozenset(level for level, values in weights.items() if any(values))

    def predictions(
        self,
        student: Predictions,
        teacher: Predictions,
        student_assignment: Assignment,
        teacher_assignment: Assignment,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of the student's predictions against the teacher's.

        Args:
            student: Predictions of the shallower pass.
            teacher: Predictions of the deeper pass for the same images; detached here.
            student_assignment: Assignment of the student's anchors.
            teacher_assignment: Assignment of the teacher's anchors to the same ground truth.

        Returns:
            ``kd_box``, ``kd_class`` and ``kd_dfl``, if their weights are not 0; float32 scalars, 0 if no
            anchor counts.
        """
        teacher = teacher.detach()
        taught, shared = distilled_weights(student_assignment, teacher_assignment)
        terms: dict[str, Tensor] = {}
        if self.box_weight:
            boxes, wanted = (side.boxes_xyxy / side.strides[:, None] for side in (student, teacher))
            terms["kd_box"] = self.box_weight * _weighted_mean(1 - complete_iou(boxes, wanted), shared)
        if self.class_weight:
            divergence = self._class_divergence(student.class_logits, teacher.class_logits, taught)
            terms["kd_class"] = self.class_weight * _weighted_mean(divergence, taught)
        if self.dfl_weight:
            bins, wanted = (side.box_logits / self.dfl_temperature for side in (student, teacher))
            terms["kd_dfl"] = self.dfl_weight * _weighted_mean(softmax_kl(bins, wanted).mean(-1), shared)
        return terms

    def features(self, student: YoloOutput, teacher: YoloOutput) -> dict[str, Tensor]:
        """Compute the weighted ``kd_feature``, a float32 scalar, unless its weight is 0.

        The maps are those of the backbone at strides 16 and 32 and all maps of the neck (layers 6, 8, 14, 17
        and 20 of YOLOv12).
        """
        if not self.feature_weight:
            return {}
        ours, theirs = (
            (*output.backbone_features[1:], *output.neck_features) for output in (student, teacher)
        )
        distance = pooled_feature_distance(ours, theirs)
        return {"kd_feature": self.feature_weight * distance}

    def _class_divergence(self, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        """Compute the divergence [B, A] of logits [B, A, K], times the square of the temperature."""
        temperature = self.class_temperature
        student, teacher = student / temperature, teacher / temperature
        if self.class_loss == "softmax_kl":
            return temperature**2 * class_kl(student, teacher, weights)
        return temperature**2 * bernoulli_kl(student, teacher)


def distilled_weights(student: Assignment, teacher: Assignment) -> tuple[Tensor, Tensor]:
    """Return weights [B, A] of the class term and of the box terms: the teacher's, 0 for ignored anchors.

    The first keeps anchors to which the teacher assigned a box and the student none or the same; the second
    those to which both assigned the same.
    """
    both = student.foreground & teacher.foreground  # [B, A]
    same = student.targets == teacher.targets  # [B, A]
    weights = teacher.weights  # [B, A]
    return weights.masked_fill(both & ~same, 0), weights.masked_fill(~(both & same), 0)


def pooled_feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute the squared distance of L2-normalised pooled maps, a float32 scalar; that is 2 (1 - cosine).

    The mean over images and maps is taken, so an image contributes the same in a batch of any size.

    Args:
        student: L maps [B, C, H, W] each.
        teacher: L maps [B, C, H, W] each; detached here.

    Raises:
        ValueError: Student and teacher have different numbers of maps.
    """
    distances = [
        (_pooled(ours) - _pooled(theirs.detach())).square().sum(1).mean()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(distances).mean()


def _pooled(level: Tensor) -> Tensor:
    # The length of the vector cancels, so the sum over the cells can replace the mean. It accumulates in
    # float32 without a float32 copy of the map.
    return F.normalize(level.sum((2, 3), dtype=torch.float32), dim=1)


def _weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).sum() / distributed.loss_normalizer(weights.sum())
