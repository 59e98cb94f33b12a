"""Schedules of budgets to test a controller with, and how closely it followed them.

The schedules and the error are those of Kang et al. (2026), "Dynamic Depth Routing".
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

STEPS: Final = (0.30, 0.80, 0.50)
"""Budgets of the step schedule, as shares of the range between the cheapest and the dearest depth."""
PERIODS: Final = 4
"""Periods of the saw-tooth."""
WINDOW: Final = 30
"""Frames of the centred moving average."""


def step_schedule(frames: int, low: float, high: float) -> NDArray[np.float64]:
    """Return the budget of each frame [T]: three levels of the range from ``low`` to ``high``."""
    levels = np.repeat(STEPS, -(-frames // len(STEPS)))[:frames]
    return np.asarray(low + levels * (high - low), np.float64)


def sawtooth_schedule(frames: int, low: float, high: float) -> NDArray[np.float64]:
    """Return the budget of each frame [T]: four ramps from 10 to 90 % of the range, each with a fall."""
    phase = np.arange(frames) * PERIODS / frames % 1
    return np.asarray(low + (0.1 + 0.8 * phase) * (high - low), np.float64)


def centred_average(values: Sequence[float], window: int = WINDOW) -> NDArray[np.float64]:
    """Return the centred moving average [T]; at both ends the window is cut off.

    Example:
        >>> centred_average([0, 3, 6, 9], window=3).tolist()
        [1.5, 3.0, 6.0, 7.5]
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])  # [T + 1]
    first = np.arange(len(values)) - window // 2
    start, end = first.clip(0), (first + window).clip(max=len(values))
    averages: NDArray[np.float64] = (sums[end] - sums[start]) / (end - start)
    return averages


def tracking_error(
    costs: Sequence[float], targets: Sequence[float], spread: float, window: int = WINDOW
) -> float:
    """Return the mean distance of the centred moving average to the target, as a share of the range.

    Args:
        costs: [T] cost of each frame.
        targets: [T] its budget.
        spread: Cost of the dearest depth less that of the cheapest.
        window: Frames of the average.
    """
    return float(np.abs(centred_average(costs, window) - np.asarray(targets, np.float64)).mean() / spread)
