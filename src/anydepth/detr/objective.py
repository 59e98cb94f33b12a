"""The losses of AnyDepth-DETR as the training loop sees them: one supervised path and one that is taught."""

from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.detector import Objective, PassLosses
from anydepth.detr.criterion import DetrCriterion, GroundTruth
from anydepth.detr.distillation import AutoSource, ClassLoss, DetrDistillation, Source, Weight
from anydepth.detr.matcher import Assignment, HungarianMatcher
from anydepth.detr.output import DetrOutput
from anydepth.layers.precision import disable_autocast
from anydepth.structures import DetectorOutput, Targets


@dataclass(frozen=True)
class Supervision:
    """What a path was taught with; the ``assignment`` of its :class:`~anydepth.detector.PassLosses`.

    Attributes:
        truth: The ground truth of the batch and the number the losses are divided by.
        assignment: Set 0 is the last decoder layer, sets 1 to A are the auxiliary outputs.
    """

    truth: GroundTruth
    assignment: Assignment


class DetrObjective(Objective):
    """Losses of AnyDepth-DETR (Kang et al., 2026), in float32 also under mixed precision.

    The deeper path learns from ground truth. The shallower path's last layer and features learn from the
    deeper path, its auxiliary and denoising outputs from ground truth.

    Terms are named ``vfl``, ``l1``, ``giou`` (last layer), ``aux_*``, ``dn_*``, ``kd_class``, ``kd_l1``,
    ``kd_giou``, ``kd_backbone`` and ``kd_neck``.

    Args:
        criterion: Losses against ground truth.
        distillation: Losses against the deeper path.
    """

    def __init__(self, *, criterion: DetrCriterion, distillation: DetrDistillation) -> None:
        super().__init__()
        self.criterion = criterion
        self.distillation = distillation

    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        """Losses of a training-mode output against ground truth, in float32.

        Args:
            output: What the detector returned in training mode.
            targets: Ground truth of the B images, on the output's device; images without boxes are allowed.

        Raises:
            ValueError: The output is of another wing or of eval mode, or the number of images differs.
        """
        output = _as_detr(output)
        with disable_autocast(output.logits.device):
            assignment, fault = self.criterion.match(output, targets)
            truth = GroundTruth.collect(targets)
            terms = self.criterion.terms(output, truth, assignment)
        return PassLosses(terms, Supervision(truth, assignment), fault)

    def distilled(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Targets],
        teacher_losses: PassLosses,
    ) -> PassLosses:
        """Losses of a shallower path that learns from a deeper one of the same step, in float32.

        Args:
            student: Training-mode output of the shallower path.
            teacher: Training-mode output of the deeper path; it is detached here.
            targets: Ground truth of the B images, the same that the teacher was matched to.
            teacher_losses: What :meth:`supervised` or :meth:`distilled` returned for the teacher; its
                assignment and its box count are reused.

        Raises:
            ValueError: An output of another wing or of eval mode, losses that another objective made, or
                ``softmax_kl`` with one class.
        """
        student, teacher = _as_detr(student), _as_detr(teacher)
        given = teacher_losses.assignment
        if not isinstance(given, Supervision):
            raise ValueError(
                f"the teacher's assignment is a {type(given).__name__}: give the PassLosses that this "
                "objective's supervised() returned for the teacher's output"
            )
        with disable_autocast(student.logits.device):
            assignment, fault = self.criterion.match(student, targets)
            last_layer = self.distillation.ground_truth_terms(student.logits.shape[-1])
            terms = self.criterion.terms(student, given.truth, assignment, last_layer)
            terms |= self.distillation.predictions(
                student, teacher, assignment, given.assignment, given.truth
            )
            terms |= self.distillation.features(student, teacher)
        return PassLosses(terms, Supervision(given.truth, assignment), fault)


def build_objective(
    *,
    match_class_cost: float = 2.0,
    match_l1_cost: float = 5.0,
    match_giou_cost: float = 2.0,
    match_alpha: float = 0.25,
    match_gamma: float = 2.0,
    vfl_weight: float = 1.0,
    vfl_alpha: float = 0.75,
    vfl_gamma: float = 2.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    class_loss: ClassLoss = "auto",
    class_targets: AutoSource = "auto",
    box_targets: Source = "teacher",
    kd_softmax_kl_weight: Weight = "queries/classes",
    kd_bernoulli_kl_weight: float = 1.0,
    kd_l1_weight: float = 5.0,
    kd_giou_weight: float = 2.0,
    kd_backbone_weight: float = 1.0,
    kd_neck_weight: float = 1.0,
) -> DetrObjective:
    """Build the objective from plain values, as ``conf/distillation/detr*.yaml`` lists and explains them.

    Args:
        match_class_cost: See :class:`~anydepth.detr.matcher.HungarianMatcher` for the five of matching.
        match_l1_cost: Cost of the L1 distance.
        match_giou_cost: Cost of the GIoU.
        match_alpha: Balance of the focal class cost.
        match_gamma: Exponent of the focal class cost.
        vfl_weight: See :class:`~anydepth.detr.criterion.DetrCriterion` for the five of ground truth.
        vfl_alpha: Weight of negatives.
        vfl_gamma: Exponent of negatives.
        l1_weight: Weight of the L1 distance.
        giou_weight: Weight of 1 - GIoU.
        class_loss: See :class:`~anydepth.detr.distillation.DetrDistillation` for this and the rest.
        class_targets: Teacher of the last layer's classes.
        box_targets: Teacher of the last layer's boxes.
        kd_softmax_kl_weight: Weight of the class term with ``softmax_kl``.
        kd_bernoulli_kl_weight: Weight of the class term with ``bernoulli_kl``.
        kd_l1_weight: Weight of the L1 distance to the teacher's box.
        kd_giou_weight: Weight of 1 - GIoU with the teacher's box.
        kd_backbone_weight: Weight of the backbone features.
        kd_neck_weight: Weight of the neck features.

    Raises:
        ValueError: A value that its part does not allow.
    """
    matcher = HungarianMatcher(
        class_cost=match_class_cost,
        l1_cost=match_l1_cost,
        giou_cost=match_giou_cost,
        alpha=match_alpha,
        gamma=match_gamma,
    )
    criterion = DetrCriterion(
        matcher=matcher,
        vfl_weight=vfl_weight,
        l1_weight=l1_weight,
        giou_weight=giou_weight,
        vfl_alpha=vfl_alpha,
        vfl_gamma=vfl_gamma,
    )
    distillation = DetrDistillation(
        class_loss=class_loss,
        class_targets=class_targets,
        box_targets=box_targets,
        softmax_kl_weight=kd_softmax_kl_weight,
        bernoulli_kl_weight=kd_bernoulli_kl_weight,
        l1_weight=kd_l1_weight,
        giou_weight=kd_giou_weight,
        backbone_weight=kd_backbone_weight,
        neck_weight=kd_neck_weight,
    )
    return DetrObjective(criterion=criterion, distillation=distillation)


def _as_detr(output: DetectorOutput) -> DetrOutput:
    if not isinstance(output, DetrOutput):
        raise ValueError(
            f"a {type(output).__name__} came to the DETR objective, which needs a DetrOutput: choose the "
            "distillation group of the detector's own wing"
        )
    return output
