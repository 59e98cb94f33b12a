"""The losses of AnyDepth-DETR as the training loop sees them: a supervised pass and a distilled one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from anydepth.detector import WHOLE_TEACHING, Objective, PassLosses, Teaching
from anydepth.detr.criterion import TERMS, DetrCriterion, GroundTruth
from anydepth.detr.distillation import DetrDistillation
from anydepth.detr.matcher import Assignment
from anydepth.detr.output import DetrOutput
from anydepth.layers.precision import disable_autocast
from anydepth.structures import DetectorOutput, Targets

TERMS_OF_LEVELS: Final[Mapping[str, frozenset[str]]] = {
    "predictions": frozenset({"kd_class", "kd_l1", "kd_giou"}),
    "features": frozenset({"kd_backbone", "kd_neck"}),
}
"""Names of the distillation terms by level."""


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

    @property
    def distilled_terms(self) -> Mapping[str, frozenset[str]]:
        """See :attr:`anydepth.detector.Objective.distilled_terms`."""
        return {level: TERMS_OF_LEVELS[level] for level in self.distilled_levels}

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
        return PassLosses(terms, Supervision(truth, assignment), fault, _last_layer(terms))

    def distilled(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Targets],
        teacher_losses: PassLosses,
        teaching: Teaching = WHOLE_TEACHING,
    ) -> PassLosses:
        """Return the losses of a shallower pass that learns from a deeper one of the same step, in float32.

        Args:
            student: Training-mode output of the shallower pass.
            teacher: Training-mode output of the deeper pass; it is detached here.
            targets: Ground truth of the B images, the same that the teacher was matched to.
            teacher_losses: Losses of the teacher from :meth:`supervised` or :meth:`distilled`; their
                assignment and box count are reused.
            teaching: How much is learnt from the teacher; ground truth of the last layer replaces the rest.

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
            own = self.distillation.ground_truth_terms(student.logits.shape[-1])
            needed = TERMS if teaching.compares or teaching.strength < 1 else own
            terms = self.criterion.terms(student, given.truth, assignment, needed)
            against_truth = _last_layer(terms)
            for replaced in set(needed) - own:
                term = terms.pop(replaced)
                if teaching.strength < 1:
                    terms[replaced] = (1 - teaching.strength) * term
            if teaching.strength > 0:
                found = self.distillation.predictions(
                    student, teacher, assignment, given.assignment, given.truth
                )
                terms |= {name: teaching.factor("predictions") * term for name, term in found.items()}
                found = self.distillation.features(student, teacher)
                terms |= {name: teaching.factor("features") * term for name, term in found.items()}
        return PassLosses(terms, Supervision(given.truth, assignment), fault, against_truth)


def _last_layer(terms: Mapping[str, Tensor]) -> Tensor | None:
    """Return the loss of the last decoder layer against ground truth, None unless all its terms are there."""
    if not all(name in terms for name in TERMS):
        return None
    return torch.stack([terms[name].detach() for name in TERMS]).sum()


def _as_detr(output: DetectorOutput) -> DetrOutput:
    if not isinstance(output, DetrOutput):
        raise ValueError(
            f"got a {type(output).__name__}, expected a DetrOutput: choose the "
            "losses of the detector's own family"
        )
    return output
