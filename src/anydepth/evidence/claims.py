"""Differences between arms with intervals, and what they say of each claim.

Arms are compared in pairs: of one seed, on the same images. An interval is a bootstrap over both: each sample
draws images with replacement, the same for all arms and seeds of a data set, and then seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["holds", "fails", "open"]
Curve = Mapping[tuple[str, str], Mapping[int, NDArray[np.float64]]]
"""AP in percent by arm and depth, then by seed: [1 + S], on the images as they are and on S samples."""

FULL: Final = "full"
MINIMAL: Final = "minimal"
LEVEL: Final = 0.95
_METHOD: Final = "any_depth"


@dataclass(frozen=True)
class Claim:
    """A claim on the difference of two arms.

    Attributes:
        text: What is claimed.
        first: Arm and depth whose AP is claimed to be high enough.
        second: Arm and depth that it is compared with.
        limit: Least difference in points of AP; None: the difference is reported without a verdict.
    """

    text: str
    first: tuple[str, str]
    second: tuple[str, str]
    limit: float | None = None


@dataclass(frozen=True)
class Difference:
    """A measured difference in points of AP.

    Attributes:
        mean: Mean over the seeds, on the images as they are.
        low: Lower end of the 95 % interval.
        high: Upper end of it.
        seeds: Seeds that have both arms.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]

    def verdict(self, limit: float) -> Verdict:
        """Return whether the whole interval is at or above a limit, below it, or neither."""
        if self.low >= limit:
            return "holds"
        return "fails" if self.high < limit else "open"


CLAIMS: Final = (
    Claim(
        "Converted, full depth keeps the AP of the source",
        (f"converted-{_METHOD}", FULL),
        ("base", FULL),
        -0.5,
    ),
    Claim(
        "Converted, minimal depth is close to full depth",
        (f"converted-{_METHOD}", MINIMAL),
        (f"converted-{_METHOD}", FULL),
        -2.0,
    ),
    Claim(
        "Converted, minimal depth matches the minimal network trained alone for as many steps in all",
        (f"converted-{_METHOD}", MINIMAL),
        ("scratch-minimal", MINIMAL),
        -0.5,
    ),
    Claim(
        "Converted, full depth matches the source that is trained as much longer",
        (f"converted-{_METHOD}", FULL),
        ("converted-full", FULL),
        -0.5,
    ),
    Claim(
        "From scratch, full depth matches the fixed full network",
        (f"scratch-{_METHOD}", FULL),
        ("scratch-full", FULL),
        -0.5,
    ),
    Claim(
        "From scratch, minimal depth matches the fixed minimal network",
        (f"scratch-{_METHOD}", MINIMAL),
        ("scratch-minimal", MINIMAL),
        -0.5,
    ),
)
"""What has to hold, each in every data set and family."""

EFFECTS: Final = tuple(
    Claim(f"{what}, at {depth} depth", (first, depth), (second, depth))
    for what, first, second in (
        ("Training both depths, against skipping without training", f"converted-{_METHOD}", "naive"),
        ("Both distillations, against none", f"converted-{_METHOD}", "converted-no_distillation"),
        ("Distillation of predictions, against none", "converted-prediction", "converted-no_distillation"),
        ("Distillation of features, against none", "converted-feature", "converted-no_distillation"),
        (
            "Both distillations from scratch, against none",
            f"scratch-{_METHOD}",
            "scratch-no_distillation",
        ),
        (
            "A third depth per step (sandwich), against the extremes",
            "converted-sandwich",
            f"converted-{_METHOD}",
        ),
        ("A random depth per step, against the extremes", "converted-random", f"converted-{_METHOD}"),
    )
    for depth in (FULL, MINIMAL)
)
"""What each part brings, without a limit."""


def compare(curve: Curve, claim: Claim, *, seed: int = 0) -> Difference | None:
    """Return the difference of a claim's arms; None if no seed has both.

    Args:
        curve: AP of one data set and detector.
        claim: The claim.
        seed: Seed of the samples of seeds.
    """
    first, second = curve.get(claim.first, {}), curve.get(claim.second, {})
    shared = tuple(sorted(first.keys() & second.keys()))
    if not shared:
        return None
    return summarise(np.stack([first[one] - second[one] for one in shared]), shared, seed=seed)


def summarise(values: NDArray[np.float64], seeds: Sequence[int], *, seed: int = 0) -> Difference:
    """Return mean and interval of values [seeds, 1 + S], whose first column is on the images as they are.

    Samples whose images lack every object are left out.
    """
    random = np.random.default_rng(seed)
    samples = values.shape[1] - 1
    drawn = random.integers(len(seeds), size=(samples, len(seeds)))
    means = values[:, 1:].T[np.arange(samples)[:, None], drawn].mean(axis=1)
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Difference(float(values[:, 0].mean()), float(low), float(high), tuple(seeds))


@dataclass(frozen=True)
class Rung:
    """A depth of the ladder between its two neighbours.

    Attributes:
        depth: Text of the depth.
        gap: AP less that of the line between the neighbours over operations, in points.
    """

    depth: str
    gap: Difference


def rungs(curve: Curve, arm: str, gflops: Mapping[str, float], *, seed: int = 0) -> Iterator[Rung]:
    """Yield the rungs between the ends of an arm's ladder, from the most operations to the fewest.

    Args:
        curve: AP of one data set and detector.
        arm: Name of the arm.
        gflops: Operations by depth of the ladder.
        seed: Seed of the samples of seeds.
    """
    ladder = sorted(
        (depth for one, depth in curve if one == arm and depth in gflops), key=lambda d: -gflops[d]
    )
    for (above, depth), (_, below) in pairwise(pairwise(ladder)):
        seeds = tuple(sorted(curve[arm, above].keys() & curve[arm, depth].keys() & curve[arm, below].keys()))
        if not seeds:
            continue
        share = (gflops[depth] - gflops[below]) / (gflops[above] - gflops[below])
        gaps = [
            curve[arm, depth][one] - share * curve[arm, above][one] - (1 - share) * curve[arm, below][one]
            for one in seeds
        ]
        yield Rung(depth, summarise(np.stack(gaps), seeds, seed=seed))
