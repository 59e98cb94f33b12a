"""Share of each loss term in the gradient of a step, and a warning about a term that drowns all others.

A weight that suits one data set may be far too large for another: the class distillation of the released
AnyDepth-DETR, weighted by queries / classes, has 15 times the gradient of the full pass with 3 classes. The
values of the losses do not show it, because a term may be small and steep.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from anydepth.layers.precision import disable_autocast
from anydepth.training.callbacks.gradient_conflict import loss_scale, trainable_parameters, unscaled_mean
from anydepth.training.callbacks.pass_observer import PassObserver
from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph

TermNorms = dict[str, list[Tensor | None]]
"""Squared norm of the gradient of each term by each trained parameter; None: the term does not use it."""


class LossShares(PassObserver):
    """Logs, every few steps, the share of each loss term in the gradient of the parameters of all passes.

    ``gradients/share/PASS/TERM`` is the norm of the term's gradient, as weighted in its loss and in the
    schedule, over the parameters that all passes use, divided by the sum of these norms over all terms of all
    passes: the shares of a step add up to 1. At the end of an epoch, if at least ``min_measured`` steps were
    measured since the last such look, a warning names the terms whose mean share is above one half.

    Training stays bit for bit the same. A measured step runs one further backward per term, 23 with
    AnyDepth-DETR and 10 with AnyDepth-YOLO. With gradient accumulation, the first micro-batch of a step is
    measured. In distributed training, gradients are averaged before their norms are taken.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next, and up to the first one.
        min_measured: Fewest measured steps that a warning is based on.

    Raises:
        ValueError: A number below 1.
    """

    def __init__(self, *, every_n_steps: int, min_measured: int) -> None:
        for name, value in {"every_n_steps": every_n_steps, "min_measured": min_measured}.items():
            if value < 1:
                raise ValueError(f"loss_shares.{name}={value}: allowed are 1 and above")
        super().__init__()
        self.every_n_steps = every_n_steps
        self.min_measured = min_measured
        self._norms: TermNorms = {}
        self._since: list[Mapping[str, float]] = []
        self._warned: set[str] = set()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Observe the passes of each step, and count measured steps from 0."""
        self._since.clear()
        super().on_fit_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn about a term that had more than half of the gradient."""
        if len(self._since) < self.min_measured:
            return
        for name, share in mean_shares(self._since).items():
            if share > 0.5 and name not in self._warned:
                self._warned.add(name)
                rank_zero_warn(
                    f"{name} has {share:.0%} of the gradient on the weights that all passes share, more than "
                    f"all other loss terms together (mean of {len(self._since)} steps up to step "
                    f"{trainer.global_step}): lower its weight (group losses), unless this is what you want"
                )
        self._since.clear()

    def _observe(self, trainer: pl.Trainer, module: DetectionModule, graph: PassGraph) -> None:
        step = trainer.global_step
        if not trainer.loggers or (step + 1) % self.every_n_steps or step == self._measured:
            return
        if graph.number == 0:
            self._norms.clear()
        self._norms |= term_norms(module, graph, scale=loss_scale(trainer))
        if graph.number + 1 < len(module.plan):
            return
        self._measured = step
        shares = gradient_shares(self._norms)
        self._norms.clear()
        if not shares:
            return
        self._since.append(shares)
        # Not through `log`, which drops steps that are not multiples of `log_every_n_steps`.
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"gradients/share/{name}": value for name, value in shares.items()}, step=step
            )


def term_norms(module: DetectionModule, graph: PassGraph, *, scale: float = 1.0) -> TermNorms:
    """Return the squared norms of the gradients of a pass's terms, by ``PASS/TERM`` and trained parameter.

    The graph stays usable. In distributed training every process must call this in the same step.

    Args:
        module: Module in training.
        graph: Graph of the pass.
        scale: Factor of the loss in the backward, against underflow in half precision.
    """
    parameters = list(trainable_parameters(module.detector).values())
    weight = graph.planned.weight
    norms: TermNorms = {}
    with disable_autocast(graph.total.device):
        for term in graph.losses.terms:
            found = unscaled_mean(graph.term_gradients(term, parameters, scale), parameters, scale)
            norms[f"{graph.planned.name}/{term}"] = [
                None if gradient is None else (weight * gradient.float()).square().sum() for gradient in found
            ]
    return norms


def gradient_shares(norms: TermNorms) -> dict[str, float]:
    """Return the share of each term in the gradients of the parameters that all passes use.

    Args:
        norms: Squared norms of all passes of a step, by ``PASS/TERM``.

    Returns:
        Shares that add up to 1; empty if no gradient is above 0, or one is not finite.
    """
    used: dict[str, list[bool]] = {}
    for name, squares in norms.items():
        has = [square is not None for square in squares]
        passes = used.setdefault(name.partition("/")[0], [False] * len(has))
        used[name.partition("/")[0]] = [a or b for a, b in zip(passes, has, strict=True)]
    common = [all(flags) for flags in zip(*used.values(), strict=True)]
    totals: dict[str, float] = {}
    for name, squares in norms.items():
        shared = [square for square, both in zip(squares, common, strict=True) if both and square is not None]
        totals[name] = float(torch.stack(shared).sum().sqrt()) if shared else 0.0
    whole = sum(totals.values())
    if not whole or not math.isfinite(whole):
        return {}
    return {name: value / whole for name, value in totals.items()}


def mean_shares(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean share of each term over some steps, in which a missing term has none."""
    sums: defaultdict[str, float] = defaultdict(float)
    for shares in measured:
        for name, share in shares.items():
            sums[name] += share / len(measured)
    return dict(sums)
