"""The losses of AnyDepth-DETR as the training loop sees them: a supervised pass and a distilled one."""

from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.detector import Objective, PassLosses
from anydepth.detr.criterion import DetrCriterion, GroundTruth
from anydepth.detr.distillation import DetrDistillation
from anydepth.detr.matcher import Assignment
from anydepth.detr.output import DetrOutput
from anydepth.layers.precision import disable_autocast
from anydepth.structures import DetectorOutput, Targets


@dataclass(frozen=True)
class Supervision:
    """Ground truth and assignment of a pass: ``assignment`` in :class:`~anydepth.detector.PassLosses`.

    Attributes:
        truth: The ground truth of the batch and the number the losses are divided by.
        assignment: Set 0 is the last decoder layer, sets 1 to A are the auxiliary outputs.
    """

    truth: GroundTruth
    assignment: Assignment


class DetrObjective(Objective):
    """Losses of AnyDepth-DETR (Kang et al., 2026), in float32 also under mixed precision.

    The deeper pass learns from ground truth. The shallower pass's last layer and features learn from the
    deeper pass, its auxiliary and denoising outputs from ground truth.

    Terms are named ``vfl``, ``l1``, ``giou`` (last layer), ``aux_*``, ``dn_*``, ``kd_class``, ``kd_l1``,
    ``kd_giou``, ``kd_backbone`` and ``kd_neck``.

    Args:
        criterion: Losses against ground truth.
        distillation: Losses against the deeper pass.
    """

    def __init__(self, *, criterion: DetrCriterion, distillation: DetrDistillation) -> None:
        super().__init__()
        self.criterion = criterion
        self.distillation = distillation

    @property
    def distilled_levels(self) -> frozenset[str]:
        """See :attr:`anydepth.detector.Objective.distilled_levels`."""
        return self.distillation.levels

    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        """Return the losses of a training-mode output against ground truth, in float32.

        Args:
            output: Output of the detector in training mode.
            targets: Ground truth of the B images, on the output's device; images without boxes are allowed.

        Raises:
            ValueError: The output is of another family or of eval mode, or the number of images differs.
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
        """Return the losses of a shallower pass that learns from a deeper one of the same step, in float32.

        Args:
            student: Training-mode output of the shallower pass.
            teacher: Training-mode output of the deeper pass; it is detached here.
            targets: Ground truth of the B images, the same that the teacher was matched to.
            teacher_losses: Losses of the teacher from :meth:`supervised` or :meth:`distilled`; their
                assignment and box count are reused.

        Raises:
            ValueError: An output of another family or of eval mode, or losses that another objective made.
        """
        student, teacher = _as_detr(student), _as_detr(teacher)
        given = teacher_losses.assignment
        if not isinstance(given, Supervision):
            raise ValueError(
                f"got a {type(given).__name__} as the teacher's assignment, expected the PassLosses that "
                "this objective's supervised() returned for the teacher's output"
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


def _as_detr(output: DetectorOutput) -> DetrOutput:
    if not isinstance(output, DetrOutput):
        raise ValueError(
            f"got a {type(output).__name__}, expected a DetrOutput: choose the "
            "losses of the detector's own family"
        )
    return output
