"""The graphs of the paths of a step, which share the stem, and how their losses reach the parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anydepth.detector import PassLosses
from anydepth.training.depth_schedule import PlannedPass


class SharedStem:
    """The stem's features, computed once, for paths with a backward pass each.

    The pass of every path but the last one ends at a copy of the features, where the gradients add up. That
    of the last path adds the sum and goes on through the stem, which is walked once, too. Distributed
    training exchanges gradients in this last pass.

    Args:
        features: [B, C, H, W], with their graph where the stem is trained.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._copy = features.detach().requires_grad_(features.requires_grad)
        self._alone = False

    def for_pass(self, *, last: bool) -> Tensor:
        """What a path is given; every path but the last must have gone backward before the last one does."""
        if not self.features.requires_grad:
            return self.features
        if not last:
            return self._copy
        joined: Tensor = _Joined.apply(self.features, self)
        return joined

    def with_earlier(self, gradient: Tensor) -> Tensor:
        """The gradient of the last path, and those of the paths before it."""
        return gradient if self._alone or self._copy.grad is None else gradient + self._copy.grad

    def gradients(
        self, total: Tensor, parameters: Sequence[Tensor], *, keep: bool = True
    ) -> list[Tensor | None]:
        """The gradients of one path alone, None for what it does not use.

        Args:
            total: The loss of the path.
            parameters: Of which gradients are wanted.
            keep: Whether the graph of the path stays usable; that of the stem does.
        """
        with self._without_earlier():
            if not self.features.requires_grad:
                return list(_gradients(total, parameters, keep=keep))
            *found, at_copy = _gradients(total, [*parameters, self._copy], keep=keep)
        if at_copy is None:
            return found
        through_stem = _gradients(self.features, parameters, at_copy)
        return [stem if path is None else path for path, stem in zip(found, through_stem, strict=True)]

    @contextmanager
    def _without_earlier(self) -> Iterator[None]:
        self._alone = True
        try:
            yield
        finally:
            self._alone = False


@dataclass(frozen=True)
class PassGraph:
    """One path of the running step, whose loss still has its graph.

    Attributes:
        number: Position in the plan, from 0.
        path: What was planned.
        losses: Its terms.
        total: Their sum.
        stem: That of all paths of the step.
    """

    number: int
    path: PlannedPass
    losses: PassLosses
    total: Tensor
    stem: SharedStem

    def gradients(
        self, parameters: Sequence[Tensor], scale: float = 1.0, *, keep: bool = True
    ) -> list[Tensor | None]:
        """The gradient of ``scale`` times the loss by each parameter; None where the path does not use it.

        Nothing is added to the parameters' own gradients, and the graph stays usable if ``keep``. In
        distributed training these are the gradients of this process.
        """
        return self.stem.gradients(scale * self.total, parameters, keep=keep)


class _Joined(torch.autograd.Function):
    """The features themselves; backward, the gradients of earlier paths are added."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, stem: SharedStem) -> Tensor:
        ctx.stem = stem
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        stem: SharedStem = ctx.stem
        return stem.with_earlier(gradients[0]), None


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], gradient: Tensor | None = None, *, keep: bool = True
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(output, inputs, gradient, retain_graph=keep, allow_unused=True)
