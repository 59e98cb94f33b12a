"""The losses of AnyDepth-YOLO as the training loop sees them: a supervised pass and a distilled one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from anydepth.detector import WHOLE_TEACHING, Objective, PassLosses, Teaching
from anydepth.layers.precision import disable_autocast
from anydepth.structures import DetectorOutput, Targets
from anydepth.yolo.assigner import Assignment, GroundTruth
from anydepth.yolo.criterion import YoloCriterion
from anydepth.yolo.decode import Predictions, image_size
from anydepth.yolo.distillation import YoloDistillation
from anydepth.yolo.finite import find_non_finite
from anydepth.yolo.output import YoloOutput

TERMS_OF_LEVELS: Final[Mapping[str, frozenset[str]]] = {
    "predictions": frozenset({"kd_class", "kd_box", "kd_dfl"}),
    "features": frozenset({"kd_feature"}),
}
"""Names of the distillation terms by level."""


@dataclass(frozen=True)
class Supervision:
    """Ground truth and assignment of a pass: ``assignment`` in :class:`~anydepth.detector.PassLosses`.

    Attributes:
        truth: The ground truth of the batch.
        assignment: Assignment of the pass's own predictions to it.
    """

    truth: GroundTruth
    assignment: Assignment


class YoloObjective(Objective):
    """Losses of AnyDepth-YOLO (Kang et al., 2026), in float32 also under mixed precision.

    The deeper pass learns from ground truth; the shallower one from alpha x ground truth + (1 - alpha) x the
    deeper pass.

    Terms are named ``box``, ``class`` and ``dfl``, and ``kd_box``, ``kd_class``, ``kd_dfl`` and
    ``kd_feature``; those of a weight of 0 are left out.

    Args:
        criterion: Losses against ground truth.
        distillation: Losses against the deeper pass.
        alpha: Share of the ground truth in the shallower pass: 1 is ground truth alone, 0 none of it.

    Raises:
        ValueError: alpha outside [0, 1], or alpha = 0 with every distillation weight 0.
    """

    def __init__(self, *, criterion: YoloCriterion, distillation: YoloDistillation, alpha: float) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: allowed are 0 (distillation alone) to 1 (ground truth alone)")
        if not alpha and not distillation.levels:
            raise ValueError(
                "alpha=0 leaves the shallower pass to the distillation, and its weights are all 0: raise "
                "alpha or a weight of losses.distillation"
            )
        self.criterion = criterion
        self.distillation = distillation
        self.alpha = alpha

    @property
    def distilled_levels(self) -> frozenset[str]:
        """See :attr:`anydepth.detector.Objective.distilled_levels`."""
        # alpha = 1 multiplies every distillation term by 0.
        return self.distillation.levels if self.alpha < 1 else frozenset()

    @property
    def distilled_terms(self) -> Mapping[str, frozenset[str]]:
        """See :attr:`anydepth.detector.Objective.distilled_terms`."""
        return {level: TERMS_OF_LEVELS[level] for level in self.distilled_levels}

    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        """Return the losses of an output against ground truth, in float32.

        Args:
            output: Output of the detector.
            targets: Ground truth of the B images, on the output's device; images without boxes are allowed.

        Raises:
            ValueError: The output is of another family, or the number of images differs.
        """
        output = _as_yolo(output)
        with disable_autocast(output.maps[0].device):
            truth = GroundTruth.collect(targets, image_size(output.maps))
            predictions = Predictions.decode(output.maps)
            assignment = self.criterion.assign(predictions, truth)
            terms = self.criterion.terms(predictions, truth, assignment)
            fault = find_non_finite(predictions, truth)
        return PassLosses(terms, Supervision(truth, assignment), fault, _detached_sum(terms))

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
            student: Output of the detector for the shallower pass.
            teacher: Its output for the deeper pass; it is detached here.
            targets: Ground truth of the B images; the teacher's, already collected, is used.
            teacher_losses: Losses of the teacher from :meth:`supervised` or :meth:`distilled`; their
                ground truth and assignment are reused.
            teaching: How much is learnt from the teacher; ground truth has the rest of its share.

        Raises:
            ValueError: An output of another family, or losses that another objective made.
        """
        student, teacher = _as_yolo(student), _as_yolo(teacher)
        given = teacher_losses.assignment
        if not isinstance(given, Supervision):
            raise ValueError(
                f"got a {type(given).__name__} as the teacher's assignment, expected the PassLosses that "
                "this objective's supervised() returned for the teacher's output"
            )
        terms: dict[str, Tensor] = {}
        with disable_autocast(student.maps[0].device):
            predictions = Predictions.decode(student.maps)
            assignment = self.criterion.assign(predictions, given.truth)
            against_truth = None
            # What the teacher does not have of its share is left to the ground truth.
            alpha = 1 - (1 - self.alpha) * teaching.strength if teaching.strength < 1 else self.alpha
            if alpha > 0 or teaching.compares:
                found = self.criterion.terms(predictions, given.truth, assignment)
                against_truth = _detached_sum(found)
                terms |= {name: alpha * term for name, term in found.items() if alpha > 0}
            if alpha < 1:
                decoded = Predictions.decode([level.detach() for level in teacher.maps])
                found = self.distillation.predictions(predictions, decoded, assignment, given.assignment)
                found = {name: teaching.factor("predictions") * term for name, term in found.items()}
                features = self.distillation.features(student, teacher)
                found |= {name: teaching.factor("features") * term for name, term in features.items()}
                terms |= {name: (1 - self.alpha) * term for name, term in found.items()}
            fault = find_non_finite(predictions, given.truth)
        return PassLosses(terms, Supervision(given.truth, assignment), fault, against_truth)


def _detached_sum(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([term.detach() for term in terms.values()]).sum()


def _as_yolo(output: DetectorOutput) -> YoloOutput:
    if not isinstance(output, YoloOutput):
        raise ValueError(
            f"got a {type(output).__name__}, expected a YoloOutput: choose the "
            "losses of the detector's own family"
        )
    return output
