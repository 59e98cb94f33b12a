"""A policy for live video: the deepest depth that is done before the next frame arrives."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from anydepth.deploy.runtime.control.costs import CostTable
from anydepth.deploy.runtime.control.policy import (
    ControlError,
    DepthPolicy,
    FrameResult,
    Rung,
    Target,
)

# Frames whose disturbance is expected again in full, so that the first late frame already has an effect.
_RECENT: Final = 5
# A depth that never ran is taken to need twice what the next cheaper one needs, until it runs.
_UNKNOWN: Final = 2.0


class DeadlinePolicy(DepthPolicy):
    """Chooses the deepest depth of which even a slow frame fits into the time that is left.

    What a slow frame takes is learnt while the video runs: the high quantile of the last frames relative to
    the estimates of their depths (or the worst of the last five, if that is more), with a margin. Other load
    therefore makes all depths slower at once, also those that did not run. If nothing fits, the cheapest
    depth runs; the time that a late frame took is missing for the next one, which is then shallower, so that
    the lag does not grow as long as the cheapest depth fits into a period.

    Args:
        rungs: The depths, see :func:`anydepth.deploy.runtime.control.rungs_of`. Those without a cost are
            tried as soon as twice the time of the next cheaper one fits.
        quantile: Share of the last frames that was at most as slow as what is expected, above 0 and up to 1.
        margin: Addition to it, as a share, from 0.
        window: Number of the last frames, from 1.

    Raises:
        ControlError: Depths or numbers that cannot be used.
    """

    def __init__(
        self, rungs: Sequence[Rung], *, quantile: float = 0.99, margin: float = 0.1, window: int = 300
    ) -> None:
        if not (0 < quantile <= 1 and margin >= 0 and window >= 1):
            raise ControlError(
                f"got quantile={quantile}, margin={margin}, window={window}, expected a quantile above 0 and "
                "up to 1, a margin from 0 and a window from 1"
            )
        self.costs = CostTable(rungs)
        self.depths = tuple(rung.depth for rung in self.costs.rungs)
        self._quantile = quantile
        self._margin = margin
        self._ratios: deque[float] = deque(maxlen=window)

    def choose(self, last: FrameResult | None, target: Target | None = None) -> str:
        """Return the depth of the next frame, see :meth:`DepthPolicy.choose`.

        Args:
            last: The frame before.
            target: The time that is left until the deadline of the next frame.
        """
        if target is None or target.unit == "mj":
            raise ControlError(
                f"got the budget {target}, expected the time that is left: give run_video period_ms=..., or "
                "the budget in ms or fps"
            )
        if last is not None:
            ratio = self.costs.observe(last.depth, last.milliseconds)
            if ratio is not None:
                self._ratios.append(ratio)
        return self._deepest(target.cost)

    def slow_frame(self, depth: str) -> float | None:
        """Return the milliseconds that a slow frame of a depth would take now; None: it never ran."""
        estimate = self.costs.estimate(depth)
        return None if estimate is None else estimate * self._slowness()

    def _deepest(self, left: float) -> str:
        slowness = self._slowness()
        ladder = self.costs.pareto()
        if ladder and not self._ratios:
            # A benchmark times the network alone; what reading and resizing add is known after a frame.
            return ladder[0][1]
        fitting = [depth for cost, depth in ladder if cost * slowness <= left]
        unmeasured = self.costs.unmeasured()
        if unmeasured is not None:
            dearest = max((cost for cost, _ in ladder), default=0.0)
            if not ladder or (len(fitting) == len(ladder) and _UNKNOWN * dearest * slowness <= left):
                return unmeasured
        return fitting[-1] if fitting else ladder[0][1]

    def _slowness(self) -> float:
        if not self._ratios:
            return 1 + self._margin
        recent = list(self._ratios)
        # Ratios are relative to the estimates of their time; one below 1 tells nothing about slow frames.
        high = sorted(recent)[math.ceil(self._quantile * len(recent)) - 1]
        worst = max(high, *recent[-_RECENT:], 1.0)
        return worst * (1 + self._margin)
