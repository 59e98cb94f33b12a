"""A controller that keeps the mean latency (or energy) of the frames at a target, over all depths."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anydepth.deploy.runtime.control.costs import CostTable
from anydepth.deploy.runtime.control.policy import (
    ControlError,
    ControlWarning,
    DepthPolicy,
    FrameResult,
    Rung,
    Target,
)

# A budget that moves by more than this share of the range at once is another budget, not noise of one.
_JUMP: Final = 0.05
# Share of the excess that the integrator gives back in each frame: at once would be 1, and lose what it had
# learnt at each touch of a limit.
_TRACKING: Final = 0.5


@dataclass(frozen=True)
class Gains:
    """Gains of the controller, normalised by the range between the cheapest and the dearest depth.

    Attributes:
        proportional: Correction per error of the moving average.
        integral: Correction per sum of these errors.
        smoothing: Share of the moving average that each frame keeps, in [0, 1).

    Raises:
        ControlError: Numbers outside these ranges, or a negative gain.
    """

    proportional: float = 0.5
    integral: float = 0.3
    smoothing: float = 0.75

    def __post_init__(self) -> None:
        if not (self.proportional >= 0 and self.integral >= 0 and 0 <= self.smoothing < 1):
            raise ControlError(f"got {self}, expected gains from 0 and a smoothing from 0 to below 1")


class PiLoop:
    """PI control of the moving average of what frames missed their targets by, with back-calculation.

    Target and cost are averaged alike, so that a target that moves is not mistaken for an error.

    Args:
        gains: The gains.
    """

    def __init__(self, gains: Gains) -> None:
        self.gains = gains
        self._error: float | None = None
        self._integral = 0.0

    def reset(self) -> None:
        """Forget error and integral, which belong to another budget."""
        self._error = None
        self._integral = 0.0

    def observe(self, missed: float) -> None:
        """Add a frame to the moving average: its target less its cost, as a share of the range."""
        keep = self.gains.smoothing
        self._error = missed if self._error is None else keep * self._error + (1 - keep) * missed

    def output(self, expected: float) -> float:
        """Return the control variable in [0, 1]: 0 is the cheapest, 1 the dearest depth.

        Args:
            expected: Control variable that should reach the target if the estimates of the costs were right.
        """
        error = self._error or 0.0
        raw = expected + self.gains.proportional * error + self.gains.integral * self._integral
        limited = min(max(raw, 0.0), 1.0)
        self._integral += error
        if self.gains.integral:
            self._integral += _TRACKING * (limited - raw) / self.gains.integral
        return limited


class BudgetTracker:
    """Target of a loop in the unit of its costs: what is reachable of it, and whether it jumped.

    Args:
        energy: Whether costs are millijoules instead of milliseconds.
    """

    def __init__(self, *, energy: bool) -> None:
        self.energy = energy
        self._former: float | None = None
        self._warned = False

    def cost_of(self, frame: FrameResult) -> float:
        """Return what a frame cost.

        Raises:
            ControlError: Energy is controlled, but nothing read it.
        """
        if not self.energy:
            return frame.milliseconds
        if frame.millijoules is None:
            raise ControlError("got a frame without energy, but energy is controlled: give energy=READER")
        return frame.millijoules

    def limit(self, target: Target | None, low: float, high: float) -> tuple[float, bool]:
        """Return the target within reach, and whether the budget jumped.

        Raises:
            ControlError: No target, or one of another quantity.
        """
        if target is None or (target.unit == "mj") != self.energy:
            expected = "millijoules" if self.energy else "milliseconds or frames per second"
            raise ControlError(f"got the budget {target}, expected one in {expected}")
        wanted = target.cost
        limited = min(max(wanted, low), high)
        # Estimates of the ends move by some percent, which is not worth a word.
        if abs(limited - wanted) > _JUMP * max(high - low, 0.01 * high) and not self._warned:
            self._warned = True
            unit = "mJ" if self.energy else "ms"
            warnings.warn(
                f"the budget of {wanted:.4g} {unit} a frame is outside of what the depths reach, "
                f"{low:.4g} to {high:.4g} {unit}: the nearest of these is kept instead",
                ControlWarning,
                stacklevel=5,
            )
        former, self._former = self._former, wanted
        return limited, former is not None and abs(wanted - former) > _JUMP * (high - low)


class LatencyController(DepthPolicy):
    """Keeps the mean cost of the frames at a target by mixing depths.

    A PI loop on a moving average of the measured cost (Kang et al., 2026, "Dynamic Depth Routing", for two
    depths) moves one continuous variable. Here it is a position between the cheapest and the dearest of all
    depths that are worth their cost; between two neighbours, the rounding error of each frame is carried to
    the next, so that their mix has the mean that was asked for. The position starts where the present
    estimates of the costs expect the target, and the loop corrects what they are wrong about. If the budget
    jumps, the loop starts again.

    Args:
        rungs: The depths, see :func:`anydepth.deploy.runtime.control.rungs_of`. Those without a cost run in
            the first frames, four times each.
        gains: Gains of the loop.
        energy: Whether millijoules are controlled instead of milliseconds.

    Raises:
        ControlError: Depths or gains that cannot be used.
    """

    def __init__(self, rungs: Sequence[Rung], gains: Gains | None = None, *, energy: bool = False) -> None:
        self.costs = CostTable(rungs)
        self.depths = tuple(rung.depth for rung in self.costs.rungs)
        self._loop = PiLoop(gains or Gains())
        self._budget = BudgetTracker(energy=energy)
        self._carried = 0.0
        self._spread = 1.0
        # Target of the frame that runs; None in the warm-up, whose frames the loop does not answer for.
        self._wanted: float | None = None

    def choose(self, last: FrameResult | None, target: Target | None = None) -> str:
        """Return the depth of the next frame, see :meth:`DepthPolicy.choose`."""
        if last is not None:
            cost = self._budget.cost_of(last)
            if self.costs.observe(last.depth, cost) is not None and self._wanted is not None:
                self._loop.observe((self._wanted - cost) / self._spread)
        self._wanted = None
        unmeasured = self.costs.unmeasured()
        if unmeasured is not None:
            return unmeasured
        ladder = self.costs.pareto()
        low, self._spread = ladder[0][0], ladder[-1][0] - ladder[0][0]
        wanted, jumped = self._budget.limit(target, low, ladder[-1][0])
        if len(ladder) == 1:
            return ladder[0][1]
        if jumped:
            self._loop.reset()
            self._carried = 0.0
        self._wanted = wanted
        position = self._loop.output((wanted - low) / self._spread)
        return self._mix(ladder, low + position * self._spread)

    def _mix(self, ladder: Sequence[tuple[float, str]], wanted: float) -> str:
        """Return one of the two depths around a cost; what it misses is added to the next frame's."""
        above = next((i for i, (cost, _) in enumerate(ladder) if cost >= wanted), len(ladder) - 1)
        lower, upper = ladder[max(above - 1, 0)], ladder[above]
        given = wanted + self._carried
        cost, depth = upper if given >= (lower[0] + upper[0]) / 2 else lower
        gap = upper[0] - lower[0]
        self._carried = min(max(given - cost, -gap), gap)
        return depth
