"""What few seeds can say about the difference of two settings, and no more.

The rule is that of ranks, which assumes nothing about how seeds scatter: one setting is better than another
when all of its seeds lie above all seeds of the other, and there are at least two of each. Of n and m seeds
of two settings that do not differ at all, ``2 / C(n + m, n)`` lie apart like this, one way or the other (the
two extreme orders of the permutation test): a third of the cases with two seeds each, a tenth with three.
Every text says that number, and nothing is ever called significant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

FEWEST_SEEDS = 2
"""Of each setting, below which nothing is decided."""

RESOLUTION = 0.001
"""AP by which settings have to differ to be called different: what the texts print, a tenth of a point."""


@dataclass(frozen=True)
class Contrast:
    """One figure of two settings, by seed.

    Attributes:
        first: Figure of the first setting by seed; AP as a share in [0, 1].
        second: Of the second.
    """

    first: Mapping[str, float]
    second: Mapping[str, float]

    @property
    def difference(self) -> float:
        """Mean of the first minus mean of the second."""
        return fmean(self.first.values()) - fmean(self.second.values())

    @property
    def paired(self) -> tuple[float, ...]:
        """Differences of the seeds that both have; empty unless all seeds are."""
        if self.first.keys() != self.second.keys():
            return ()
        return tuple(self.first[seed] - self.second[seed] for seed in sorted(self.first))

    @property
    def chance(self) -> float:
        """Share of cases in which equal settings lie apart one way or the other."""
        return separation_chance(len(self.first), len(self.second))

    def direction(self, margin: float = 0.0, resolution: float = 0.0) -> int:
        """1: all seeds of the first lie above all of the second plus a margin; -1: all below; 0: neither.

        Args:
            margin: Negative where the first may be worse by so much.
            resolution: Least distance, beyond the margin, of the closest seeds; 0 asks for any.
        """
        above = min(self.first.values()) - max(self.second.values()) - margin
        below = min(self.second.values()) - max(self.first.values()) + margin
        # Rounding of 0.301 - 0.3 must not take away a distance that is printed.
        least = resolution - 1e-9 if resolution else 0.0
        return int(above > least) - int(below > least)

    @property
    def widest(self) -> float:
        """The largest distance between a seed of the first and one of the second."""
        first, second = self.first.values(), self.second.values()
        return max(max(first) - min(second), max(second) - min(first))


def separation_chance(first: int, second: int) -> float:
    """How often so many seeds of two equal settings lie apart by chance, in either direction.

    Example:
        >>> round(separation_chance(2, 2), 3)
        0.333
    """
    return min(1.0, 2 / comb(first + second, first))


def agreement_chance(seeds: int) -> float:
    """How often all seeds fall on one side of a limit that is their median, on either side.

    Example:
        >>> agreement_chance(2)
        0.5
    """
    return min(1.0, 2.0 / float(2**seeds))


# -- words -----------------------------------------------------------------------------------------------


def points(share: float, *, sign: bool = False) -> str:
    """A share as AP points with one decimal; ``sign`` writes the plus, too."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * share, 1) + 0.0:{'+' if sign else ''}.1f}"


def percent(share: float) -> str:
    """A probability or ratio in words that do not claim a precision it lacks."""
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def spread_of(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and range of seeds, in AP points: ``31.2 (30.8 to 31.6 over 2 seeds)``."""
    mean = points(fmean(values), sign=sign)
    if len(values) == 1:
        return f"{mean} (one seed)"
    low, high = points(min(values), sign=sign), points(max(values), sign=sign)
    return f"{mean} ({low} to {high} over {len(values)} seeds)"


def difference_of(contrast: Contrast) -> str:
    """The difference of a contrast, in AP points, with those of its seeds where they are paired."""
    text = points(contrast.difference, sign=True)
    paired = contrast.paired
    if len(paired) > 1:
        low, high = points(min(paired), sign=True), points(max(paired), sign=True)
        text += f" ({low} to {high} by seed)"
    return text


def listed(names: Sequence[str]) -> str:
    """Names as an enumeration: ``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
