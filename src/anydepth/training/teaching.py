"""When and how strongly a pass learns from its teacher: a ramp, a gate, and shares of the gradient.

The published method distils from the first step on, with fixed weights. Early in training a teacher is no
better than its student, and a term whose gradient is large drowns the ground truth.
"""

import math
from collections.abc import Mapping
from typing import Any

from anydepth.detector import WHOLE_TEACHING, Teaching

_LARGEST_FACTOR = 100.0
"""Bound of what a share may multiply or divide the configured weights by."""


class TeachingControl:
    """Strength of the teaching in each step.

    All of it is a function of the step and of what was observed before: an interrupted run continues as it
    would have gone on. In distributed training all processes have to observe the same values.

    Args:
        ramp_steps: Optimizer steps over which the strength grows from 0 to 1; 0: it is 1 from the first one.
        gate: Whether nothing is learnt from a teacher whose moving average of the loss against ground truth
            is not below that of the student.
        gate_steps: Steps of the moving average, as the time constant of its memory.
        shares: Share of the gradient that the terms of a level shall have, by level, on the parameters that
            all passes share; None or missing: the configured weights stay as they are.
        measure_every: Optimizer steps from one measurement of the gradients to the next.

    Raises:
        ValueError: A value that is not allowed.
    """

    def __init__(
        self,
        *,
        ramp_steps: int = 0,
        gate: bool = False,
        gate_steps: int = 100,
        shares: Mapping[str, float | None] | None = None,
        measure_every: int = 50,
    ) -> None:
        wanted = {level: share for level, share in (shares or {}).items() if share is not None}
        for name, value, least in (
            ("ramp_steps", ramp_steps, 0),
            ("gate_steps", gate_steps, 1),
            ("measure_every", measure_every, 1),
        ):
            if value < least:
                raise ValueError(f"teaching.{name}={value}: allowed are {least} and above")
        if any(not 0 < share < 1 for share in wanted.values()) or sum(wanted.values()) >= 1:
            raise ValueError(
                f"teaching.shares={wanted}: allowed are shares above 0 that leave something to the ground "
                "truth, such as 0.2; null keeps the configured weights"
            )
        self.ramp_steps = ramp_steps
        self.gate = gate
        self.gate_steps = gate_steps
        self.shares = wanted
        self.measure_every = measure_every
        self._factors: dict[str, float] = dict.fromkeys(wanted, 1.0)
        # By student: moving averages of the loss of teacher and student, and how much of them is known.
        self._averages: dict[str, tuple[float, float, float]] = {}
        # Of the micro-batches of the current step: sums and their number.
        self._pending: dict[str, tuple[float, float, int]] = {}
        self._step = -1

    @property
    def is_active(self) -> bool:
        """Whether anything differs from the published method."""
        return bool(self.ramp_steps or self.gate or self.shares)

    def teaching(self, student: str, step: int) -> Teaching:
        """Return how a pass learns in a step.

        Args:
            student: Name of the pass.
            step: Optimizer steps done so far.
        """
        if not self.is_active:
            return WHOLE_TEACHING
        self._begin(step)
        strength = min(step / self.ramp_steps, 1.0) if self.ramp_steps else 1.0
        if self.gate and not self.is_open(student):
            strength = 0.0
        return Teaching(strength, dict(self._factors), self.gate)

    def is_open(self, student: str) -> bool:
        """Return whether a student's teacher has been better than it, on average."""
        teacher, own, _ = self._averages.get(student, (0.0, 0.0, 0.0))
        return teacher < own

    def losses(self, student: str) -> tuple[float, float] | None:
        """Return the moving averages of the losses of teacher and student; None before the first step."""
        teacher, own, known = self._averages.get(student, (0.0, 0.0, 0.0))
        return (teacher / known, own / known) if known else None

    def observe_losses(self, student: str, teacher_loss: float, student_loss: float, step: int) -> None:
        """Take the losses of a micro-batch against ground truth; they count from the next step on.

        Values that are not finite are left out.
        """
        self._begin(step)
        if math.isfinite(teacher_loss) and math.isfinite(student_loss):
            first, second, count = self._pending.get(student, (0.0, 0.0, 0))
            self._pending[student] = (first + teacher_loss, second + student_loss, count + 1)

    def observe_norms(self, levels: Mapping[str, float], others: float) -> None:
        """Set the factors by which the terms of each level get their share of the gradient.

        Args:
            levels: Sum of the gradient norms of the terms of each level, with the present factors.
            others: Sum of the gradient norms of all other terms.
        """
        if not math.isfinite(others) or others <= 0:
            return
        left = 1 - sum(self.shares.values())
        for level, share in self.shares.items():
            norm = levels.get(level, 0.0)
            if not math.isfinite(norm) or norm <= 0:
                continue
            wanted = self._factors[level] * share / left * others / norm
            # Half of the way in the logarithm: one batch says little.
            moved = math.sqrt(self._factors[level] * wanted)
            self._factors[level] = min(max(moved, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)

    def state_dict(self) -> dict[str, Any]:
        """Return what was observed, as plain values."""
        return {
            "factors": dict(self._factors),
            "averages": {name: list(values) for name, values in self._averages.items()},
            "pending": {name: list(values) for name, values in self._pending.items()},
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what was observed; factors of levels that have no share any more are left out."""
        self._factors |= {
            level: float(value) for level, value in state["factors"].items() if level in self._factors
        }
        self._averages = {name: (*map(float, values),) for name, values in state["averages"].items()}  # type: ignore[misc]
        self._pending = {
            name: (float(first), float(second), int(count))
            for name, (first, second, count) in state["pending"].items()
        }
        self._step = int(state["step"])

    def _begin(self, step: int) -> None:
        """Add what the step before has observed to the moving averages."""
        if step == self._step:
            return
        keep = 1 - 1 / self.gate_steps
        for student, (teacher, own, count) in self._pending.items():
            old = self._averages.get(student, (0.0, 0.0, 0.0))
            new = (teacher / count, own / count, 1.0)
            first, second, known = (keep * a + (1 - keep) * b for a, b in zip(old, new, strict=True))
            self._averages[student] = (first, second, known)
        self._pending.clear()
        self._step = step
