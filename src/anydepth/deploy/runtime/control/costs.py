"""Estimates of the present cost of each depth, learnt from the frames that run."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Final

from anydepth.deploy.runtime.control.policy import ControlError, Rung, check_rungs

WARM_UP: Final = 4
"""Frames of a depth whose cost is not known; the first one also pays for opening it, and does not count."""

# A time constant of ten frames: other load comes and goes within some tenths of a second.
_LOAD_RATE: Final = 0.1
# What a depth costs relative to the others changes slowly, as with the clock of the processor.
_DEPTH_RATE: Final = 0.05
# A single frame that was interrupted may move an estimate by no more than one of twice the usual cost.
_LARGEST_RATIO: Final = 2.0


class CostTable:
    """Estimates of the cost of each depth: a base of its own, times a load that all share.

    The load lets the frames of one depth tell about the others: when something else takes half of the
    processor, the depths that did not run became slower as well.

    Args:
        rungs: The depths.

    Attributes:
        rungs: The depths by ascending value.
        load: Cost of the last frames relative to the bases.
    """

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self.rungs = check_rungs(rungs)
        self.load = 1.0
        self._bases = {rung.depth: rung.cost for rung in self.rungs}
        self._first: dict[str, list[float]] = {depth: [] for depth, base in self._bases.items() if not base}

    def observe(self, depth: str, cost: float) -> float | None:
        """Learn from a frame.

        Returns:
            Its cost relative to the estimate before it; None during the warm-up of its depth.

        Raises:
            ControlError: An unknown depth, or a cost that is not a finite number above 0.
        """
        if depth not in self._bases:
            raise ControlError(f"got a frame of depth {depth!r}, expected one of {', '.join(self._bases)}")
        if not 0 < cost < math.inf:
            raise ControlError(
                f"got a frame of depth {depth} that cost {cost}, expected a finite number above 0; check the "
                "clock or the reader of energy"
            )
        base = self._bases[depth]
        if base is None:
            self._warm_up(depth, cost)
            return None
        ratio = cost / (base * self.load)
        change = min(max(ratio, 1 / _LARGEST_RATIO), _LARGEST_RATIO) - 1
        self.load *= 1 + _LOAD_RATE * change
        self._bases[depth] = base * (1 + _DEPTH_RATE * change)
        return ratio

    def estimate(self, depth: str) -> float | None:
        """Return what a frame of this depth would cost now; None before its warm-up is over."""
        base = self._bases[depth]
        return None if base is None else base * self.load

    def unmeasured(self) -> str | None:
        """Return the depth of the lowest value whose cost is not known; None: all are."""
        return next((rung.depth for rung in self.rungs if self._bases[rung.depth] is None), None)

    def pareto(self) -> list[tuple[float, str]]:
        """Return (estimate, depth) by ascending cost, without depths that another one is no worse than.

        Depths that are not measured are left out.
        """
        known = [(base * self.load, rung) for rung in self.rungs if (base := self._bases[rung.depth])]
        found: list[tuple[float, str]] = []
        best = -math.inf
        for cost, rung in sorted(known, key=lambda item: (item[0], -item[1].value)):
            if rung.value > best:
                found.append((cost, rung.depth))
                best = rung.value
        return found

    def _warm_up(self, depth: str, cost: float) -> None:
        self._first[depth].append(cost)
        if len(self._first[depth]) == WARM_UP:
            self._bases[depth] = median(self._first.pop(depth)[1:]) / self.load
