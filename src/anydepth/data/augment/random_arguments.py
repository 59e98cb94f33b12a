"""Random numbers of one sample, and the checks of the numbers that say how to draw them."""

import torch

Range = tuple[float, float]


def unit(generator: torch.Generator) -> float:
    """Uniform in [0, 1)."""
    return float(torch.rand((), generator=generator))


def uniform(extent: Range, generator: torch.Generator) -> float:
    """Uniform between the two ends."""
    return extent[0] + (extent[1] - extent[0]) * unit(generator)


def happens(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return unit(generator) < probability


def probability(name: str, value: float) -> float:
    """The value.

    Raises:
        ValueError: It is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: allowed are probabilities from 0 to 1")
    return value


def between(name: str, value: float, low: float, high: float) -> float:
    """The value.

    Raises:
        ValueError: It is not in [low, high].
    """
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: allowed are {low:g} to {high:g}")
    return value


def grey_level(name: str, value: int) -> int:
    """The value.

    Raises:
        ValueError: It is not in 0..255.
    """
    return int(between(name, value, 0, 255))


def rising(name: str, extent: Range, low: float, high: float = float("inf")) -> Range:
    """The range as floats.

    Raises:
        ValueError: It falls, or leaves [low, high].
    """
    if len(extent) != 2 or not low <= extent[0] <= extent[1] <= high:
        raise ValueError(f"{name}={extent}: give two rising numbers between {low} and {high}")
    return float(extent[0]), float(extent[1])
