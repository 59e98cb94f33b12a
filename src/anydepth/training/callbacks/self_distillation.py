"""The callback that decides which depths each training step runs, and how much one learns from another."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from anydepth import distributed
from anydepth.detector import Objective
from anydepth.training.callbacks.gradient_conflict import loss_scale
from anydepth.training.callbacks.loss_shares import TermNorms, gradient_shares, term_norms
from anydepth.training.callbacks.pass_observer import PassObserver
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph
from anydepth.training.teaching import TeachingControl


class SelfDistillation(PassObserver):
    """Samples the passes of each step from the depth schedule and hands them to the module.

    All micro-batches of one optimizer step (``accumulate_grad_batches``) run the same passes.

    If the teaching is controlled, these are logged:

    - ``teaching/strength/PASS``: share of the teacher in what it replaces;
    - ``teaching/loss/PASS/teacher`` and ``student``: moving averages against ground truth, which the gate
      compares;
    - ``teaching/factor/LEVEL``: factor of the weights that gives a level its share of the gradient.

    Args:
        schedule: Depth schedule of the run.
        seed: Seed of the run; together with the step it determines the passes.
        teaching: When and how strongly passes learn from their teacher; None: always and wholly.
    """

    def __init__(
        self, *, schedule: DepthSchedule, seed: int, teaching: TeachingControl | None = None
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.seed = seed
        self.teaching = teaching or TeachingControl()
        self._norms: TermNorms = {}
        self._teacher_loss: torch.Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Allow the further backwards that measured shares take."""
        if self.teaching.shares:
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check schedule and teaching against detector and losses before training starts.

        Raises:
            ValueError: The detector cannot be trained with this schedule, or not taught like this.
        """
        assert isinstance(pl_module, DetectionModule)
        self.schedule.sample(pl_module.detector.depth_space, self.seed, 0)
        if self.teaching.is_active:
            self._check_teaching(pl_module.objective)
        if self.teaching.gate or self.teaching.shares:
            super().on_fit_start(trainer, pl_module)

    def _check_teaching(self, objective: Objective) -> None:
        schedule = self.schedule
        if schedule.is_alone or not schedule.distill or not objective.distilled_levels:
            reason = (
                str(schedule) if objective.distilled_levels else "the losses have no term of distillation"
            )
            raise ValueError(
                "the settings `teaching` are about learning from a deeper pass, and in this run none does "
                f"({reason}): leave them out, or choose other losses or another depth_schedule"
            )
        if "teaching" not in inspect.signature(objective.distilled).parameters:
            raise ValueError(
                f"{type(objective).__name__}.distilled has no parameter `teaching`, without which it ignores "
                "the settings of this name: add it, or leave them out"
            )
        missing = sorted(self.teaching.shares.keys() - objective.distilled_terms.keys())
        if missing:
            raise ValueError(
                f"teaching.shares.{missing[0]}: the losses have no term of this level, or its weight is 0; "
                f"allowed here are {', '.join(sorted(objective.distilled_terms)) or 'none'}"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hand the plan of this step to the module."""
        assert isinstance(pl_module, DetectionModule)
        step = trainer.global_step
        plan = self.schedule.sample(pl_module.detector.depth_space, self.seed, step)
        if self.teaching.is_active:
            plan = tuple(
                one if one.teacher is None else replace(one, teaching=self.teaching.teaching(one.name, step))
                for one in plan
            )
            pl_module.log_dict(self._figures(plan))
        pl_module.plan = plan

    def _figures(self, plan: tuple[Any, ...]) -> dict[str, float]:
        values: dict[str, float] = {}
        for one in plan:
            if one.teacher is None:
                continue
            values[f"teaching/strength/{one.name}"] = one.teaching.strength
            values |= {f"teaching/factor/{level}": value for level, value in one.teaching.factors.items()}
            losses = self.teaching.losses(one.name)
            if losses is not None:
                for role, value in zip(("teacher", "student"), losses, strict=True):
                    values[f"teaching/loss/{one.name}/{role}"] = value
        return values

    # -- observing ---------------------------------------------------------------------------------------

    def _observe(self, trainer: pl.Trainer, module: DetectionModule, graph: PassGraph) -> None:
        step = trainer.global_step
        if self.teaching.gate:
            self._compare(graph, step)
        if self.teaching.shares and step % self.teaching.measure_every == 0 and step != self._measured:
            self._measure(trainer, module, graph, step)

    def _compare(self, graph: PassGraph, step: int) -> None:
        loss = graph.losses.against_truth
        if graph.number == 0:
            self._teacher_loss = loss
        elif graph.planned.teacher is not None and loss is not None and self._teacher_loss is not None:
            # The mean of all processes, which have to decide alike.
            teacher, student = (
                float(distributed.mean(one.reshape(1), torch.ones_like(one.reshape(1))))
                for one in (self._teacher_loss, loss)
            )
            self.teaching.observe_losses(graph.planned.name, teacher, student, step)

    def _measure(self, trainer: pl.Trainer, module: DetectionModule, graph: PassGraph, step: int) -> None:
        if graph.number == 0:
            self._norms.clear()
        self._norms |= term_norms(module, graph, scale=loss_scale(trainer))
        if graph.number + 1 < len(module.plan):
            return
        self._measured = step
        # What is not learnt yet has no gradient to compare.
        taught = [one for one in module.plan if one.teacher is not None and one.teaching.strength > 0]
        if taught:
            terms = module.objective.distilled_terms
            levels = {level: terms[level] for level in self.teaching.shares}
            self.teaching.observe_norms(*_by_level(gradient_shares(self._norms), levels))
        self._norms.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what the teaching has observed."""
        return self.teaching.state_dict() if self.teaching.is_active else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what the teaching had observed."""
        if state_dict:
            self.teaching.load_state_dict(state_dict)


def _by_level(
    norms: Mapping[str, float], terms: Mapping[str, frozenset[str]]
) -> tuple[dict[str, float], float]:
    """Return the sum of the norms of the terms of each level, and that of all other terms.

    Args:
        norms: Norm or share of each term, by ``PASS/TERM``.
        terms: Names of the terms of each level.
    """
    levels = dict.fromkeys(terms, 0.0)
    others = 0.0
    for name, norm in norms.items():
        term = name.partition("/")[2]
        level = next((one for one, names in terms.items() if term in names), None)
        if level is None:
            others += norm
        else:
            levels[level] += norm
    return levels, others
