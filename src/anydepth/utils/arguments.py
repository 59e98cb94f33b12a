"""Checks of numbers that callers from Python give."""

import math
from numbers import Integral, Real
from typing import Final, cast


def check_share(name: str, value: object) -> float:
    """Return a number from 0 to 1; arrays and tensors of one value are numbers, too.

    Raises:
        ValueError: Anything else.

    Example:
        >>> check_share("threshold", 0.5)
        0.5
    """
    is_number = isinstance(value, Real) or getattr(value, "ndim", None) == 0
    share = float(cast(float, value)) if is_number else math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"got {name}={value!r}, expected a number from 0 to 1")
    return share


MAX_THREADS: Final = 1024
"""Most threads of one pass, far above any use: ONNX Runtime starts all that it is told to, for minutes."""


def check_threads(value: object) -> int:
    """Return a number of threads of one pass.

    Raises:
        ValueError: Anything but a whole number from 1 to :data:`MAX_THREADS`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= MAX_THREADS:
        raise ValueError(f"got threads={value!r}, expected a whole number from 1 to {MAX_THREADS}, or None")
    return int(value)


def check_count(name: str, value: object) -> int:
    """Return a whole number from 1.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"got {name}={value}, expected a whole number from 1")
    return int(value)
