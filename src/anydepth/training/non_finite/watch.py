"""Steps with NaN or infinite numbers: all processes detect them together, and stop or skip the step.

The losses of the passes stay on the device until the gradients are computed; then one small tensor holds
whether they and the gradient norm are finite, the processes reduce it, and the host reads it: one
synchronisation and one collective per optimizer step. No process leaves a step in the middle, where others
would wait for it. The faulty pass, loss term, images and parameters are looked for only in bad steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anydepth import distributed
from anydepth.structures import Batch
from anydepth.training.non_finite.diagnosis import (
    BatchRecord,
    Diagnosis,
    PassRecord,
    diagnose_gradients,
    diagnose_loss,
    diagnose_sum,
)
from anydepth.training.non_finite.recorder import RecordedStep, StepRecorder, pass_to_plain
from anydepth.training.norms import RunningStatistics
from anydepth.training.passes import PassGraph
from anydepth.training.step_context import StepPlace
from anydepth.utils.console import print_lines

Action = Literal["stop", "skip"]
# Below 1 the scale shrinks the gradients, so that it cannot be what makes them overflow float16.
SMALLEST_LOSS_SCALE = 1.0
# Most findings in a message: two passes of four processes fill it, more would hide the remedy below them.
_MAX_LINES = 8

Replay = Callable[[BatchRecord], Iterator[PassGraph]]


class NonFiniteStepError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names pass, term or parameter, step and images."""


@dataclass(frozen=True, kw_only=True)
class NonFinitePolicy:
    """Policy of a run about non-finite steps.

    Attributes:
        action: ``stop`` ends the run; ``skip`` skips the optimizer step: weights, averaged weights, running
            statistics and the optimizer stay as they were bit for bit, while the learning rate, the depths
            and the sizes advance with the step number as if it had been taken.
        limit: Most skipped steps in total; one more ends the run.
        limit_in_a_row: Most consecutive skipped steps: weights that have diverged do not recover.

    Raises:
        ValueError: An unknown action or a limit below 1.
    """

    action: Action = "stop"
    limit: int = 100
    limit_in_a_row: int = 10

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(f"non_finite.action={self.action!r}: allowed are stop and skip")
        for name in ("limit", "limit_in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"non_finite.{name}={getattr(self, name)}: allowed are 1 and above")


class StepWatch:
    """Detects non-finite steps, keeps them from the weights, and counts them.

    Args:
        policy: Policy for non-finite steps.
        recorder: Recorder that writes them to files; None: nothing is written.

    Attributes:
        taken: Whether the last optimizer step was taken; averages of weights skip the others.
        skipped: Steps skipped so far, including those before a resume.
        overflows: Steps that float16's scaler skipped, to continue with a smaller scale; not failures.
    """

    def __init__(
        self, *, policy: NonFinitePolicy | None = None, recorder: StepRecorder | None = None
    ) -> None:
        self.policy = policy or NonFinitePolicy()
        self.recorder = recorder
        self.taken = True
        self.skipped = 0
        self.overflows = 0
        self._in_a_row = 0
        self._statistics: RunningStatistics | None = None
        self._records: list[BatchRecord] = []
        self._finite: list[Tensor] = []
        self._scaler_before: dict[str, Any] = {}

    # -- during a step -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset before a fit, whose norms and devices may differ from the last one's."""
        self._statistics = None
        self._records.clear()
        self._finite.clear()

    def start_batch(self, detector: nn.Module) -> None:
        """Before the first batch of a step runs, save the running statistics."""
        if self._statistics is None:
            self._statistics = RunningStatistics(detector)
        if not self._records:
            self._statistics.save()

    def record_batch(self, batch: Batch, place: StepPlace, graphs: Sequence[PassGraph]) -> None:
        """Record the passes of a batch, without reading anything from the device."""
        passes = []
        for graph in graphs:
            losses = graph.losses
            terms = {name: value.detach() for name, value in losses.terms.items()}
            passes.append(PassRecord(graph.planned, terms, losses.fault))
            finite = graph.total.detach().isfinite()
            self._finite.append(finite if losses.fault is None else torch.zeros_like(finite))
        self._records.append(BatchRecord(batch, place, tuple(passes)))

    def check_step(
        self,
        norm: Tensor,
        detector: nn.Module,
        replay: Replay,
        scaler: torch.amp.GradScaler | None = None,
    ) -> bool:
        """Return whether the step may be taken, given its gradients; the same answer in all processes.

        If not, the gradients are dropped, so that the optimizer has nothing to do.

        Args:
            norm: Norm of all gradients, without the scaler's scale.
            detector: Detector in training.
            replay: Function that runs the passes of a batch of this step again.
            scaler: Gradient scaler of float16 training.

        Raises:
            NonFiniteStepError: The step is not finite, and the policy says to stop or its limit is reached.
        """
        losses_finite, norm_finite = self._all_finite(norm)
        self.taken = losses_finite and norm_finite
        if self.taken:
            self._in_a_row = 0
        elif losses_finite and scaler is not None and _can_shrink(scaler):
            self.overflows += 1
        else:
            self._reject_step(detector, replay, losses_finite, scaler)
        if not self.taken:
            for parameter in detector.parameters():
                parameter.grad = None
        self._records.clear()
        self._finite.clear()
        return self.taken

    def end_step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """After the optimizer step, restore the scale of a scaler if the step was skipped."""
        if scaler is not None and self._scaler_before:
            scaler.load_state_dict(self._scaler_before)
        self._scaler_before = {}

    # -- checkpoints -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """Return the counts as plain values."""
        recorded = 0 if self.recorder is None else self.recorder.recorded
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "overflows": self.overflows,
            "recorded": recorded,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the counts of a checkpoint; one without counts is from a run without bad steps."""
        self.skipped = int(state.get("skipped", 0))
        self.overflows = int(state.get("overflows", 0))
        self._in_a_row = int(state.get("in_a_row", 0))
        if self.recorder is not None:
            self.recorder.recorded = int(state.get("recorded", 0))

    # -- internals ---------------------------------------------------------------------------------------

    def _all_finite(self, norm: Tensor) -> tuple[bool, bool]:
        """Return whether all losses, and the norm, are finite in all processes; the step's only host read."""
        finite = norm.isfinite()
        losses = (
            torch.stack(self._finite).all().to(finite.device) if self._finite else torch.ones_like(finite)
        )
        losses_finite, norm_finite = distributed.all_true(torch.stack([losses, finite])).tolist()
        return losses_finite, norm_finite

    def _reject_step(
        self,
        detector: nn.Module,
        replay: Replay,
        losses_finite: bool,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Diagnose and record the step, then stop or count it."""
        if scaler is not None:
            self._scaler_before = scaler.state_dict()
        diagnoses = (
            self._diagnose_gradients(detector, replay)
            if losses_finite
            else distributed.all_gather_object(diagnose_loss(self._records))
        )
        if self._statistics is not None:
            self._statistics.restore()
        message = self._message(diagnoses, scaler if losses_finite else None)
        faulty = min((found.batch for found in diagnoses if found.batch is not None), default=0)
        self.skipped += 1
        self._in_a_row += 1
        if self.recorder is not None:
            message += self.recorder.record(_to_recorded_step(self._records[faulty], message))
        self._stop_or_warn(message)

    def _diagnose_gradients(self, detector: nn.Module, replay: Replay) -> list[Diagnosis]:
        """Return what each process finds wrong with the gradients."""
        parameters = {name: p for name, p in detector.named_parameters() if p.requires_grad}
        diagnoses = distributed.all_gather_object(diagnose_gradients(self._records, parameters, replay))
        if not any(found.lines for found in diagnoses):
            diagnoses[0].lines.append(diagnose_sum(self._records, parameters))
        return diagnoses

    def _message(self, diagnoses: Sequence[Diagnosis], scaler: torch.amp.GradScaler | None) -> str:
        place = self._records[0].place
        lines = [f"step {place.step} of epoch {place.epoch} is NaN or infinite and was not taken:"]
        if scaler is not None:
            lines.append(
                f"float16 gradients overflow although the loss scale has fallen to {scaler.get_scale():g}; "
                "train with trainer.precision=bf16-mixed or 32-true"
            )
        found = [
            f"process {rank}, {line}" if len(diagnoses) > 1 else line
            for rank, diagnosis in enumerate(diagnoses)
            for line in diagnosis.lines
        ]
        more = [f"and {len(found) - _MAX_LINES} more such lines"] if len(found) > _MAX_LINES else []
        return "\n".join([*lines, *found[:_MAX_LINES], *more])

    def _stop_or_warn(self, message: str) -> None:
        policy = self.policy
        if policy.action == "stop":
            raise NonFiniteStepError(
                f"{message}\nLower the learning rate (recipe.lr), lengthen the warm-up "
                "(recipe.warmup_steps), clip gradients harder (recipe.clip_norm), or look for damaged "
                "boxes in these images. With non_finite.action=skip the run skips such steps and continues"
            )
        if self._in_a_row > policy.limit_in_a_row:
            raise NonFiniteStepError(
                f"{message}\nThe {policy.limit_in_a_row} steps before it were skipped as well "
                "(non_finite.limit_in_a_row): training has diverged. Resume from an earlier checkpoint with "
                "a lower learning rate (recipe.lr)"
            )
        if self.skipped > policy.limit:
            raise NonFiniteStepError(
                f"{message}\n{policy.limit} steps were skipped before it (non_finite.limit). Check the "
                "images named so far, or raise the limit"
            )
        if distributed.rank() == 0:
            counted = f"skipped {self.skipped} of at most {policy.limit} steps"
            print_lines(message, counted)


def _to_recorded_step(record: BatchRecord, message: str) -> RecordedStep:
    terms = {
        one.planned.name: {name: float(value) for name, value in one.terms.items()} for one in record.passes
    }
    return RecordedStep(
        batch=record.batch,
        place=record.place,
        plan=tuple(pass_to_plain(one.planned) for one in record.passes),
        terms=terms,
        message=message,
        rank=distributed.rank(),
        processes=distributed.world_size(),
    )


def _can_shrink(scaler: torch.amp.GradScaler) -> bool:
    """Return whether the scaler may still lower its scale, as it does after an overflow."""
    return scaler.get_scale() * scaler.get_backoff_factor() >= SMALLEST_LOSS_SCALE
