"""Checks of numbers that callers from Python give."""

import math
from numbers import Integral, Real
from typing import cast


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


def check_count(name: str, value: object) -> int:
    """Return a whole number from 1.

    Raises:
        ValueError: Anything else.
    """
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"got {name}={value}, expected a whole number from 1")
    return int(value)
