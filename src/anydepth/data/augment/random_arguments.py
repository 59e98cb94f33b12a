"""Random draws from the generator of a sample, and checks of the arguments of augmentations."""

import torch

Range = tuple[float, float]


def draw_unit(generator: torch.Generator) -> float:
    """Draw from the uniform distribution on [0, 1)."""
    return float(torch.rand((), generator=generator))


def draw_uniform(extent: Range, generator: torch.Generator) -> float:
    """Draw uniformly from a range."""
    return extent[0] + (extent[1] - extent[0]) * draw_unit(generator)


def draw_bernoulli(probability: float, generator: torch.Generator) -> bool:
    """Draw True with this probability."""
    return draw_unit(generator) < probability


def check_probability(name: str, value: float) -> float:
    """Check and return a probability.

    Raises:
        ValueError: It is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"got {name}={value}, expected a probability from 0 to 1")
    return value


def check_between(name: str, value: float, low: float, high: float) -> float:
    """Check and return a number within limits.

    Raises:
        ValueError: It is not in [low, high].
    """
    if not low <= value <= high:
        raise ValueError(f"got {name}={value}, expected {low:g} to {high:g}")
    return value


def check_grey_level(name: str, value: int) -> int:
    """Check and return a grey level.

    Raises:
        ValueError: It is not in 0..255.
    """
    return int(check_between(name, value, 0, 255))


def check_range(name: str, extent: Range, low: float, high: float = float("inf")) -> Range:
    """Check a range and return it as floats.

    Raises:
        ValueError: Its ends are in the wrong order or outside [low, high].
    """
    if len(extent) != 2 or not low <= extent[0] <= extent[1] <= high:
        raise ValueError(f"got {name}={extent}, expected two ascending numbers between {low} and {high}")
    return float(extent[0]), float(extent[1])
