"""The contract of the losses of a detector."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
class PassLosses:
    """Losses of one pass through the detector.

    Attributes:
        terms: Weighted scalars by name; their sum is the loss of the pass.
        assignment: Which predictions were assigned to which ground truth; a teacher's assignment is
            handed to the distillation, so that nothing is matched twice.
        fault: Error about values of the predictions or the ground truth that are NaN or infinite; None: none.
    """

    terms: Mapping[str, Tensor]
    assignment: object = field(default=None, repr=False)
    fault: NonFiniteError | None = None

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
    ) -> PassLosses:
        """Return the losses of a shallower pass that learns from a deeper one of the same step, in float32.

        Args:
            student: Training-mode output of the shallower pass.
            teacher: Training-mode output of the deeper pass; it is detached here.
            targets: Ground truth per image.
            teacher_losses: Losses of the teacher from :meth:`supervised`; their assignment is reused.
        """
