"""The losses of AnyDepth-YOLO as the training loop sees them: one supervised path and one that is taught."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from anydepth.detector import Objective, PassLosses
from anydepth.layers.precision import disable_autocast
from anydepth.structures import DetectorOutput, Targets
from anydepth.yolo.assigner import Assignment, GroundTruth, TaskAlignedAssigner
from anydepth.yolo.criterion import YoloCriterion
from anydepth.yolo.decode import Predictions, image_size
from anydepth.yolo.distillation import ClassLoss, YoloDistillation
from anydepth.yolo.finite import find_non_finite
from anydepth.yolo.output import YoloOutput


@dataclass(frozen=True)
class Supervision:
    """What a path was taught with; the ``assignment`` of its :class:`~anydepth.detector.PassLosses`.

    Attributes:
        truth: The ground truth of the batch.
        assignment: Of the path's own predictions to it.
    """

    truth: GroundTruth
    assignment: Assignment


class YoloObjective(Objective):
    """Losses of AnyDepth-YOLO (Kang et al., 2026), in float32 also under mixed precision.

    The deeper path learns from ground truth; the shallower one from alpha x ground truth + (1 - alpha) x the
    deeper path.

    Terms are named ``box``, ``class`` and ``dfl``, and ``kd_box``, ``kd_class``, ``kd_dfl`` and
    ``kd_feature``; those of a gain of 0 are left out.

    Args:
        criterion: Losses against ground truth.
        distillation: Losses against the deeper path.
        alpha: Share of the ground truth in the shallower path: 1 is ground truth alone, 0 none of it.

    Raises:
        ValueError: alpha outside [0, 1], or alpha = 0 with every distillation gain 0.
    """

    def __init__(
        self, *, criterion: YoloCriterion, distillation: YoloDistillation, alpha: float = 0.2
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: allowed are 0 (distillation alone) to 1 (ground truth alone)")
        if not alpha and not distillation.active:
            raise ValueError(
                "alpha=0 leaves the shallower path to the distillation, and its gains are all 0: raise alpha "
                "or one of the kd_*_gain"
            )
        self.criterion = criterion
        self.distillation = distillation
        self.alpha = alpha

    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        """Losses of an output against ground truth, in float32.

        Args:
            output: What the detector returned.
            targets: Ground truth of the B images, on the output's device; images without boxes are allowed.

        Raises:
            ValueError: The output is of another wing, or the number of images differs.
        """
        output = _as_yolo(output)
        with disable_autocast(output.maps[0].device):
            truth = GroundTruth.collect(targets, image_size(output.maps))
            predictions = Predictions.decode(output.maps)
            assignment = self.criterion.assign(predictions, truth)
            terms = self.criterion.terms(predictions, truth, assignment)
            fault = find_non_finite(predictions, truth)
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
            student: What the detector returned for the shallower path.
            teacher: What it returned for the deeper path; it is detached here.
            targets: Ground truth of the B images; the teacher's, already collected, is used.
            teacher_losses: What :meth:`supervised` or :meth:`distilled` returned for the teacher; its
                ground truth and its assignment are reused.

        Raises:
            ValueError: An output of another wing, losses that another objective made, or ``softmax_kl`` with
                one class.
        """
        student, teacher = _as_yolo(student), _as_yolo(teacher)
        given = teacher_losses.assignment
        if not isinstance(given, Supervision):
            raise ValueError(
                f"the teacher's assignment is a {type(given).__name__}: give the PassLosses that this "
                "objective's supervised() returned for the teacher's output"
            )
        terms: dict[str, Tensor] = {}
        with disable_autocast(student.maps[0].device):
            predictions = Predictions.decode(student.maps)
            assignment = self.criterion.assign(predictions, given.truth)
            if self.alpha > 0:
                found = self.criterion.terms(predictions, given.truth, assignment)
                terms |= {name: self.alpha * term for name, term in found.items()}
            if self.alpha < 1:
                decoded = Predictions.decode([level.detach() for level in teacher.maps])
                found = self.distillation.predictions(predictions, decoded, assignment, given.assignment)
                found |= self.distillation.features(student, teacher)
                terms |= {name: (1 - self.alpha) * term for name, term in found.items()}
            fault = find_non_finite(predictions, given.truth)
        return PassLosses(terms, Supervision(given.truth, assignment), fault)


def build_objective(
    *,
    assign_top_k: int = 10,
    assign_alpha: float = 0.5,
    assign_beta: float = 6.0,
    box_gain: float = 7.5,
    class_gain: float = 0.5,
    dfl_gain: float = 1.5,
    alpha: float = 0.2,
    class_loss: ClassLoss = "auto",
    kd_box_gain: float = 1.2,
    kd_class_gain: float = 0.4,
    kd_dfl_gain: float = 0.8,
    kd_feature_gain: float = 0.4,
    kd_class_temperature: float = 2.0,
    kd_dfl_temperature: float = 1.0,
) -> YoloObjective:
    """Build the objective from plain values, as ``conf/distillation/yolo*.yaml`` lists and explains them.

    Args:
        assign_top_k: See :class:`~anydepth.yolo.assigner.TaskAlignedAssigner` for the three of assignment.
        assign_alpha: Exponent of the score.
        assign_beta: Exponent of the overlap.
        box_gain: See :class:`~anydepth.yolo.criterion.YoloCriterion` for the three of ground truth.
        class_gain: Gain of the class loss.
        dfl_gain: Gain of the distribution focal loss.
        alpha: Share of the ground truth in the shallower path, see :class:`YoloObjective`.
        class_loss: See :class:`~anydepth.yolo.distillation.YoloDistillation` for this and the rest.
        kd_box_gain: Gain of the box term.
        kd_class_gain: Gain of the class term.
        kd_dfl_gain: Gain of the term of the distance distributions.
        kd_feature_gain: Gain of the feature term.
        kd_class_temperature: Divides the class logits.
        kd_dfl_temperature: Divides the logits of the distance bins.

    Raises:
        ValueError: A value that its part does not allow.
    """
    assigner = TaskAlignedAssigner(top_k=assign_top_k, alpha=assign_alpha, beta=assign_beta)
    criterion = YoloCriterion(assigner=assigner, box_gain=box_gain, class_gain=class_gain, dfl_gain=dfl_gain)
    distillation = YoloDistillation(
        class_loss=class_loss,
        box_gain=kd_box_gain,
        class_gain=kd_class_gain,
        dfl_gain=kd_dfl_gain,
        feature_gain=kd_feature_gain,
        class_temperature=kd_class_temperature,
        dfl_temperature=kd_dfl_temperature,
    )
    return YoloObjective(criterion=criterion, distillation=distillation, alpha=alpha)


def _as_yolo(output: DetectorOutput) -> YoloOutput:
    if not isinstance(output, YoloOutput):
        raise ValueError(
            f"a {type(output).__name__} came to the YOLO objective, which needs a YoloOutput: choose the "
            "distillation group of the detector's own wing"
        )
    return output
