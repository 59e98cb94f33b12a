"""The contract of the losses of a detector."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from anydepth.structures import DetectorOutput, Targets


class NonFiniteError(FloatingPointError):
    """Predictions or ground truth that hold NaN or infinity, so that their losses mean nothing.

    Attributes:
        images: Positions in the batch of the images concerned.
    """

    def __init__(self, message: str, images: tuple[int, ...]) -> None:
        super().__init__(message)
        self.images = images


@dataclass(frozen=True)
class Teaching:
    """How a shallower pass learns from a deeper one.

    Attributes:
        strength: Share of the deeper pass in what it replaces, 0 to 1: the ground truth has the rest. Terms
            that come in addition to the ground truth have this factor.
        factors: Further factors by level, see :attr:`Objective.distilled_terms`; 1 where there is none.
        compares: Whether :attr:`PassLosses.against_truth` is needed.
    """

    strength: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    compares: bool = False

    def factor(self, level: str) -> float:
        """Return the factor of the terms of a level."""
        return self.strength * self.factors.get(level, 1.0)


WHOLE_TEACHING: Final = Teaching()
"""Everything is learnt from the deeper pass that can be, as in the published method."""


@dataclass(frozen=True)
class PassLosses:
    """Losses of one pass through the detector.

    Attributes:
        terms: Weighted scalars by name; their sum is the loss of the pass.
        assignment: Which predictions were assigned to which ground truth; a teacher's assignment is
            handed to the distillation, so that nothing is matched twice.
        fault: Error about values of the predictions or the ground truth that are NaN or infinite; None: none.
        against_truth: Loss of the final predictions against ground truth, detached and comparable between
            passes; None: not computed, see :attr:`Teaching.compares`.
    """

    terms: Mapping[str, Tensor]
    assignment: object = field(default=None, repr=False)
    fault: NonFiniteError | None = None
    against_truth: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Sum of all terms, a scalar."""
        return torch.stack(list(self.terms.values())).sum()


class Objective(nn.Module, ABC):
    """The losses of one family: a pass that learns from ground truth, and one that learns from a deeper pass.

    NaN and infinity raise nothing: they are in the terms, and :attr:`PassLosses.fault` says where they came
    from. One of several processes must not leave a step alone, because the others wait for it.
    """

    @property
    @abstractmethod
    def distilled_levels(self) -> frozenset[str]:
        """Levels of the deeper pass that :meth:`distilled` learns from, by name.

        ``predictions`` and ``features`` are those of the method; an objective may name others. Empty if the
        shallower pass learns from ground truth alone. A run records it, and the comparison of runs reads it
        from there.
        """

    @property
    def distilled_terms(self) -> Mapping[str, frozenset[str]]:
        """Names of the terms of each level of :attr:`distilled_levels`, for factors by level; or none."""
        return {}

    @abstractmethod
    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        """Return the losses of a training-mode output against ground truth, in float32.

        Args:
            output: Output of the detector in training mode.
            targets: Ground truth per image; images without boxes are allowed.
        """

    @abstractmethod
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
            targets: Ground truth per image.
            teacher_losses: Losses of the teacher from :meth:`supervised`; their assignment is reused.
            teaching: How much is learnt from the teacher. An objective without this parameter trains, but
                refuses the settings ``teaching``.
        """
