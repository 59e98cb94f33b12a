"""Comparison of two settings by few seeds.

The rule uses ranks, which assume nothing about how seeds are distributed: one setting is better than another
if all of its seeds lie above all seeds of the other, and there are at least two of each. With n and m seeds
of two settings that do not differ, this happens in either direction with probability ``2 / C(n + m, n)`` (the
two extreme orders of the permutation test): a third with two seeds each, a tenth with three. Every text
states that probability, and nothing is ever called significant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

MIN_SEEDS = 2
"""Seeds that each setting needs for a verdict: a single one has no spread."""

RESOLUTION = 0.001
"""AP by which settings must differ to be called different: a tenth of a point, the precision of the texts."""


@dataclass(frozen=True)
class Contrast:
    """One figure of two settings, by seed.

    Attributes:
        first: Figure of the first setting by seed; AP in [0, 1].
        second: Figure of the second setting by seed.
    """

    first: Mapping[str, float]
    second: Mapping[str, float]

    @property
    def difference(self) -> float:
        """Mean of the first setting minus mean of the second."""
        return fmean(self.first.values()) - fmean(self.second.values())

    @property
    def paired(self) -> tuple[float, ...]:
        """Differences by seed; empty unless both settings have the same seeds."""
        if self.first.keys() != self.second.keys():
            return ()
        return tuple(self.first[seed] - self.second[seed] for seed in sorted(self.first))

    @property
    def chance(self) -> float:
        """Probability that equal settings are separated in either direction."""
        return separation_chance(len(self.first), len(self.second))

    def direction(self, margin: float = 0.0, resolution: float = 0.0) -> int:
        """Return 1 if all seeds of the first lie above all of the second plus a margin, -1 if below, else 0.

        Args:
            margin: Margin; negative if the first may be worse by that much.
            resolution: Minimum distance of the closest seeds beyond the margin; 0 accepts any distance.
        """
        above = min(self.first.values()) - max(self.second.values()) - margin
        below = min(self.second.values()) - max(self.first.values()) + margin
        # The rounding error of 0.301 - 0.3 must not hide a difference that is printed.
        minimum = resolution - 1e-9 if resolution else 0.0
        return int(above > minimum) - int(below > minimum)

    @property
    def widest(self) -> float:
        """Largest distance between a seed of the first setting and a seed of the second."""
        first, second = self.first.values(), self.second.values()
        return max(max(first) - min(second), max(second) - min(first))


def separation_chance(first: int, second: int) -> float:
    """Return the probability that the seeds of two equal settings are separated, in either direction.

    Args:
        first: Number of seeds of the first setting.
        second: Number of seeds of the second setting.

    Example:
        >>> round(separation_chance(2, 2), 3)
        0.333
    """
    return min(1.0, 2 / comb(first + second, first))


def agreement_chance(seeds: int) -> float:
    """Return the probability that all seeds lie on one side, either one, of a limit that is their median.

    Example:
        >>> agreement_chance(2)
        0.5
    """
    return min(1.0, 2.0 / float(2**seeds))


# -- text ------------------------------------------------------------------------------------------------


def format_points(share: float, *, sign: bool = False) -> str:
    """Format AP in [0, 1] as points with one decimal; ``sign`` adds the plus sign."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * share, 1) + 0.0:{'+' if sign else ''}.1f}"


def format_percent(share: float) -> str:
    """Format a probability or ratio as whole percent."""
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def format_spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Format mean and range of seeds in AP points: ``31.2 (30.8 to 31.6 over 2 seeds)``."""
    mean = format_points(fmean(values), sign=sign)
    if len(values) == 1:
        return f"{mean} (one seed)"
    low, high = format_points(min(values), sign=sign), format_points(max(values), sign=sign)
    return f"{mean} ({low} to {high} over {len(values)} seeds)"


def format_difference(contrast: Contrast) -> str:
    """Format a difference in AP points, with its range by seed if the seeds are paired."""
    text = format_points(contrast.difference, sign=True)
    paired = contrast.paired
    if len(paired) > 1:
        low, high = format_points(min(paired), sign=True), format_points(max(paired), sign=True)
        text += f" ({low} to {high} by seed)"
    return text


def join_names(names: Sequence[str]) -> str:
    """Join names to an enumeration: ``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
