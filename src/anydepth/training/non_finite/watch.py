"""Steps with NaN or infinite numbers: all processes find out together and stop, or leave the step out.

The losses of the paths stay on the device until the gradients are there; then one small tensor says whether
they and the norm of the gradients are finite, the processes agree on it, and the host reads it: one reading
and one exchange per optimizer step. No process leaves a step in the middle, where others would wait for it.
Which path, loss term, images and parameters are to blame is found out only once a step is known to be bad.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from rich import get_console
from torch import Tensor, nn

from anydepth import distributed
from anydepth.structures import Batch
from anydepth.training.non_finite.diagnosis import (
    Finding,
    SeenBatch,
    SeenPass,
    gradient_finding,
    loss_finding,
    sum_finding,
)
from anydepth.training.non_finite.recorder import RecordedStep, StepRecorder, plain_pass
from anydepth.training.norms import RunningStatistics
from anydepth.training.passes import PassGraph
from anydepth.training.step_context import StepPlace

Action = Literal["stop", "skip"]
# Below it, float16 gradients that overflow do so for another reason than the scale.
SMALLEST_LOSS_SCALE = 1.0
# Lines of a message about what processes found.
_SHOWN = 8

Replay = Callable[[SeenBatch], Iterator[PassGraph]]


class NonFiniteStepError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names path, term or parameter, step and images."""


@dataclass(frozen=True, kw_only=True)
class NonFinitePolicy:
    """What becomes of a run in which a step is not finite.

    Attributes:
        action: ``stop`` ends it; ``skip`` leaves the optimizer step out: weights, averaged weights, running
            statistics and the optimizer stay as they were bit for bit, while the learning rate, the depths
            and the sizes go on with the step's number as if it had been taken.
        limit: Skipped steps in all; one more ends the run.
        limit_in_a_row: Likewise of steps one after the other: weights that have diverged do not recover.

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
    """Finds steps that are not finite and keeps them from the weights; counts them.

    Args:
        policy: What is done about them.
        recorder: Writes them to files; None: nothing is written.

    Attributes:
        taken: Whether the last optimizer step was taken; averages of weights leave the others out.
        skipped: Steps left out so far, over all resumed parts.
        overflows: Steps that float16's scaler left out, to go on with a smaller scale; no failures.
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
        self._seen: list[SeenBatch] = []
        self._finite: list[Tensor] = []
        self._scaler_before: dict[str, Any] = {}

    # -- during a step -----------------------------------------------------------------------------------

    def restart(self) -> None:
        """Before a fit: norms and devices may be others than before."""
        self._statistics = None
        self._seen.clear()
        self._finite.clear()

    def begin(self, detector: nn.Module) -> None:
        """Before a batch runs: keep the running statistics as they were before the step."""
        if self._statistics is None:
            self._statistics = RunningStatistics(detector)
        if not self._seen:
            self._statistics.keep()

    def see(self, batch: Batch, place: StepPlace, graphs: Sequence[PassGraph]) -> None:
        """After the paths of a batch ran; nothing is read from the device."""
        paths = []
        for graph in graphs:
            losses = graph.losses
            terms = {name: value.detach() for name, value in losses.terms.items()}
            paths.append(SeenPass(graph.path, terms, losses.fault))
            finite = graph.total.detach().isfinite()
            self._finite.append(finite if losses.fault is None else torch.zeros_like(finite))
        self._seen.append(SeenBatch(batch, place, tuple(paths)))

    def judge(
        self,
        norm: Tensor,
        detector: nn.Module,
        replay: Replay,
        scaler: torch.amp.GradScaler | None = None,
    ) -> bool:
        """Whether the step may be taken, once its gradients are there; the same answer in all processes.

        Gradients of a step that may not are dropped, so that an optimizer finds nothing to do.

        Args:
            norm: Of all gradients, without the scaler's scale.
            detector: Whose gradients these are.
            replay: Runs the paths of a batch of this step again.
            scaler: Of float16.

        Raises:
            NonFiniteStepError: The step is not finite and the policy says to stop.
        """
        losses_finite, norm_finite = self._agree(norm)
        self.taken = losses_finite and norm_finite
        if self.taken:
            self._in_a_row = 0
        elif losses_finite and scaler is not None and _can_shrink(scaler):
            self.overflows += 1
        else:
            self._refuse(detector, replay, losses_finite, scaler)
        if not self.taken:
            for parameter in detector.parameters():
                parameter.grad = None
        self._seen.clear()
        self._finite.clear()
        return self.taken

    def end(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """After the optimizer's turn: a scaler takes its scale back if the step was skipped."""
        if scaler is not None and self._scaler_before:
            scaler.load_state_dict(self._scaler_before)
        self._scaler_before = {}

    # -- checkpoints -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """The counts, as plain values."""
        recorded = 0 if self.recorder is None else self.recorder.recorded
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "overflows": self.overflows,
            "recorded": recorded,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from a checkpoint; one without counts is of a run without bad steps."""
        self.skipped = int(state.get("skipped", 0))
        self.overflows = int(state.get("overflows", 0))
        self._in_a_row = int(state.get("in_a_row", 0))
        if self.recorder is not None:
            self.recorder.recorded = int(state.get("recorded", 0))

    # -- internals ---------------------------------------------------------------------------------------

    def _agree(self, norm: Tensor) -> tuple[bool, bool]:
        """Whether all losses, and the norm, are finite in all processes; the only reading of the step."""
        finite = norm.isfinite()
        losses = (
            torch.stack(self._finite).all().to(finite.device) if self._finite else torch.ones_like(finite)
        )
        losses_finite, norm_finite = distributed.all_true(torch.stack([losses, finite])).tolist()
        return losses_finite, norm_finite

    def _refuse(
        self,
        detector: nn.Module,
        replay: Replay,
        losses_finite: bool,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Say why, write the step down, and stop or count."""
        if scaler is not None:
            self._scaler_before = scaler.state_dict()
        findings = (
            self._find(detector, replay)
            if losses_finite
            else distributed.all_gather_object(loss_finding(self._seen))
        )
        if self._statistics is not None:
            self._statistics.restore()
        message = self._message(findings, scaler if losses_finite else None)
        blamed = min((found.batch for found in findings if found.batch is not None), default=0)
        self.skipped += 1
        self._in_a_row += 1
        if self.recorder is not None:
            message += self.recorder.record(_recorded(self._seen[blamed], message))
        self._stop_or_warn(message)

    def _find(self, detector: nn.Module, replay: Replay) -> list[Finding]:
        """What each process finds wrong with the gradients."""
        parameters = {name: p for name, p in detector.named_parameters() if p.requires_grad}
        findings = distributed.all_gather_object(gradient_finding(self._seen, parameters, replay))
        if not any(found.lines for found in findings):
            findings[0].lines.append(sum_finding(self._seen, parameters))
        return findings

    def _message(self, findings: Sequence[Finding], scaler: torch.amp.GradScaler | None) -> str:
        place = self._seen[0].place
        lines = [f"step {place.step} of epoch {place.epoch} is NaN or infinite and was not taken:"]
        if scaler is not None:
            lines.append(
                f"float16 gradients overflow although the loss scale has fallen to {scaler.get_scale():g}; "
                "train with trainer.precision=bf16-mixed or 32-true"
            )
        found = [
            f"process {rank}, {line}" if len(findings) > 1 else line
            for rank, finding in enumerate(findings)
            for line in finding.lines
        ]
        more = [f"and {len(found) - _SHOWN} more such lines"] if len(found) > _SHOWN else []
        return "\n".join([*lines, *found[:_SHOWN], *more])

    def _stop_or_warn(self, message: str) -> None:
        policy = self.policy
        if policy.action == "stop":
            raise NonFiniteStepError(
                f"{message}\nLower the learning rate (recipe.lr), lengthen the warm-up "
                "(recipe.warmup_steps), clip gradients harder (recipe.clip_norm), or look for damaged "
                "boxes in these images. non_finite.action=skip leaves such steps out and goes on"
            )
        if self._in_a_row > policy.limit_in_a_row:
            raise NonFiniteStepError(
                f"{message}\nThe {policy.limit_in_a_row} steps before it were skipped as well "
                "(non_finite.limit_in_a_row): training has diverged. Go on from a checkpoint before with a "
                "lower learning rate (recipe.lr)"
            )
        if self.skipped > policy.limit:
            raise NonFiniteStepError(
                f"{message}\n{policy.limit} steps were skipped before it (non_finite.limit). Look at the "
                "images named so far, or raise the limit"
            )
        if distributed.rank() == 0:
            counted = f"skipped {self.skipped} of at most {policy.limit} steps"
            get_console().print(f"{message}\n{counted}", highlight=False, markup=False, soft_wrap=True)


def _recorded(seen: SeenBatch, message: str) -> RecordedStep:
    terms = {
        path.path.name: {name: float(value) for name, value in path.terms.items()} for path in seen.paths
    }
    return RecordedStep(
        batch=seen.batch,
        place=seen.place,
        plan=tuple(plain_pass(path.path) for path in seen.paths),
        terms=terms,
        message=message,
        rank=distributed.rank(),
        processes=distributed.world_size(),
    )


def _can_shrink(scaler: torch.amp.GradScaler) -> bool:
    """Whether the scale may still be lowered as the scaler does after an overflow."""
    return scaler.get_scale() * scaler.get_backoff_factor() >= SMALLEST_LOSS_SCALE
