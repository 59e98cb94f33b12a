"""Autograd graphs of the forward passes of one training step, which share the stem."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anydepth.detector import PassLosses
from anydepth.training.depth_schedule import PlannedPass


class SharedStem:
    """The stem's features, computed once, for forward passes that each run their own backward.

    The backward of every pass but the last ends at a copy of the features, where the gradients add up. The
    backward of the last pass adds that sum and continues through the stem, which also runs backward only
    once. Distributed training exchanges gradients in this last backward.

    Args:
        features: [B, C, H, W], with their graph if the stem is trained.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._copy = features.detach().requires_grad_(features.requires_grad)
        self._alone = False

    def for_pass(self, *, last: bool) -> Tensor:
        """Return the features for one pass; all others must have run backward before the last one does."""
        if not self.features.requires_grad:
            return self.features
        if not last:
            return self._copy
        joined: Tensor = _AddEarlierGradients.apply(self.features, self)
        return joined

    def add_earlier_gradients(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the last pass plus those of the passes before it."""
        return gradient if self._alone or self._copy.grad is None else gradient + self._copy.grad

    def gradients(
        self, total: Tensor, parameters: Sequence[Tensor], *, keep: bool = True
    ) -> list[Tensor | None]:
        """Return the gradients of one pass alone, None for parameters that it does not use.

        Args:
            total: Loss of the pass.
            parameters: Parameters to differentiate with respect to.
            keep: Whether the graph of the pass stays usable; the stem's graph always does.
        """
        with self._ignore_earlier():
            if not self.features.requires_grad:
                return list(_gradients(total, parameters, keep=keep))
            *found, at_copy = _gradients(total, [*parameters, self._copy], keep=keep)
        if at_copy is None:
            return found
        through_stem = _gradients(self.features, parameters, at_copy)
        # A parameter belongs either to the stem or to what follows it.
        return [stem if later is None else later for later, stem in zip(found, through_stem, strict=True)]

    @contextmanager
    def _ignore_earlier(self) -> Iterator[None]:
        self._alone = True
        try:
            yield
        finally:
            self._alone = False


@dataclass(frozen=True)
class PassGraph:
    """One forward pass of the current step, whose loss still has its graph.

    Attributes:
        number: Position in the plan, from 0.
        planned: Entry of the plan.
        losses: Losses of the pass.
        total: Sum of their terms.
        stem: Stem that all passes of the step share.
    """

    number: int
    planned: PlannedPass
    losses: PassLosses
    total: Tensor
    stem: SharedStem

    def gradients(
        self, parameters: Sequence[Tensor], scale: float = 1.0, *, keep: bool = True
    ) -> list[Tensor | None]:
        """Return the gradient of ``scale`` times the loss by each parameter; None for unused ones.

        Nothing is added to the parameters' own gradients, and the graph stays usable if ``keep``. In
        distributed training these are the gradients of this process.
        """
        return self.stem.gradients(scale * self.total, parameters, keep=keep)

    def term_gradients(
        self, term: str, parameters: Sequence[Tensor], scale: float = 1.0
    ) -> list[Tensor | None]:
        """Return the gradient of ``scale`` times one term of the loss, as :meth:`gradients` does.

        All are None if the term is a constant, such as a denoising loss of a batch without boxes.
        """
        value = self.losses.terms[term]
        if not value.requires_grad:
            return [None] * len(parameters)
        return self.stem.gradients(scale * value, parameters)


class _AddEarlierGradients(torch.autograd.Function):
    """Identity in the forward direction; backward adds the gradients of earlier passes."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, stem: SharedStem) -> Tensor:
        ctx.stem = stem
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        stem: SharedStem = ctx.stem
        return stem.add_earlier_gradients(gradients[0]), None


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], gradient: Tensor | None = None, *, keep: bool = True
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(output, inputs, gradient, retain_graph=keep, allow_unused=True)
