"""A policy of the two ends that a learnt router decides frame by frame."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from anydepth.deploy.runtime.control.costs import CostTable
from anydepth.deploy.runtime.control.latency import BudgetTracker, Gains, PiLoop
from anydepth.deploy.runtime.control.policy import ControlError, DepthPolicy, FrameResult, Rung, Target
from anydepth.deploy.runtime.control.router import Router
from anydepth.deploy.runtime.control.statistics import LOWEST_SCORE

# Predictions from which the threshold of a budget is taken, and how many there must be: an engine of another
# precision shifts all of them, so that those of the training say little about where the middle is.
_WINDOW: Final = 300
_ENOUGH: Final = 30


class RoutedDepth(DepthPolicy):
    """Runs full depth on the frames that it is expected to help most on, minimal depth on the others.

    The expected advantage of the next frame comes from the features of the last one, whichever depth produced
    them; the first frame is minimal. Without a budget, the threshold is fixed. With one, it is the quantile
    of the last 300 predictions that gives full depth the share of frames that the budget allows, and the PI
    loop of :class:`anydepth.deploy.runtime.control.latency.PiLoop` corrects this share by what was measured.

    Args:
        router: The router, see :func:`anydepth.deploy.runtime.control.read_router`.
        rungs: The depths; the ends in value are used.
        threshold: Advantage above which full depth runs without a budget; None: the router's own.
        gains: Gains of the loop.
        energy: Whether millijoules are controlled instead of milliseconds.

    Raises:
        ControlError: Fewer than two depths, or a threshold that is not finite.
    """

    def __init__(
        self,
        router: Router,
        rungs: Sequence[Rung],
        *,
        threshold: float | None = None,
        gains: Gains | None = None,
        energy: bool = False,
    ) -> None:
        ordered = CostTable(rungs).rungs
        if len(ordered) < 2:
            raise ControlError(f"got the depth {ordered[0].depth} alone, expected two to choose between")
        self.costs = CostTable([ordered[0], ordered[-1]])
        self.depths = (ordered[0].depth, ordered[-1].depth)
        self.statistics_threshold = None if router.needs_maps else LOWEST_SCORE
        self.features = router.maps
        self.threshold = router.threshold if threshold is None else threshold
        if not np.isfinite(self.threshold):
            raise ControlError(f"got threshold={threshold}, expected a finite number")
        self.router = router
        self._predicted: deque[float] = deque(maxlen=_WINDOW)
        self._loop = PiLoop(gains or Gains())
        self._budget = BudgetTracker(energy=energy)
        self._wanted: float | None = None
        self._spread = 1.0

    def choose(self, last: FrameResult | None, target: Target | None = None) -> str:
        """Return the depth of the next frame, see :meth:`DepthPolicy.choose`."""
        shallow, deep = self.depths
        if last is None:
            return shallow
        self._observe(last)
        advantage = self.router.advantage(last, deep=last.depth == deep)
        self._predicted.append(advantage)
        if target is None:
            return deep if advantage > self.threshold else shallow
        unmeasured = self.costs.unmeasured()
        if unmeasured is not None:
            return unmeasured
        return deep if advantage > self._threshold_for(target) else shallow

    def _observe(self, last: FrameResult) -> None:
        cost = self._budget.cost_of(last)
        if self.costs.observe(last.depth, cost) is not None and self._wanted is not None:
            self._loop.observe((self._wanted - cost) / self._spread)
        self._wanted = None

    def _threshold_for(self, target: Target) -> float:
        """Return the advantage above which a frame is among the share that the budget allows."""
        low, high = (self.costs.estimate(depth) or 0.0 for depth in self.depths)
        # If other load makes both ends equal for a moment, the range must not become 0.
        self._spread = max(high - low, 0.01 * high)
        self._wanted, jumped = self._budget.limit(target, low, max(high, low))
        if jumped:
            self._loop.reset()
        share = self._loop.output(min(max((self._wanted - low) / self._spread, 0.0), 1.0))
        if share in (0.0, 1.0):
            return -np.inf if share else np.inf
        if len(self._predicted) < _ENOUGH:
            bottom, top = self.router.band
            return float(top - share * (top - bottom))
        return float(np.quantile(self._predicted, 1 - share))
