"""Paired differences with intervals, verdicts, and rungs against the line between their neighbours."""

import numpy as np
import pytest
from numpy.typing import NDArray

from anydepth.evidence.arms import BY_NAME
from anydepth.evidence.claims import CLAIMS, EFFECTS, Claim, Difference, compare, rungs, summarise

CLAIM = Claim("", ("one", "full"), ("two", "full"), -0.5)


def _ap(value: float, noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """AP on the images as they are, then on samples."""
    return np.concatenate([[value], value + noise])


def test_what_images_and_seeds_share_does_not_widen_an_interval() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0, 5, 400)
    curve = {
        ("one", "full"): {seed: _ap(50 + 9 * seed, noise) for seed in range(4)},
        ("two", "full"): {seed: _ap(49 + 9 * seed, noise) for seed in range(4)},
    }
    found = compare(curve, CLAIM)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.seeds == (0, 1, 2, 3)


def test_an_interval_has_the_spread_of_seeds_and_of_images() -> None:
    random = np.random.default_rng(0)
    values = np.array([-2.0, 0.0, 1.0, 3.0])
    apart = summarise(np.tile(values[:, None], 4001), range(4))
    # Of the mean of four values that are drawn with replacement.
    assert apart.mean == 0.5
    width = 1.96 * values.std() / 2
    assert (apart.low, apart.high) == pytest.approx((0.5 - width, 0.5 + width), abs=0.25)
    images = random.normal(0, 1, 4000)
    of_images = summarise(np.concatenate([[[0.0]], images[None]], axis=1), (7,))
    assert (of_images.low, of_images.high) == pytest.approx((-1.96, 1.96), abs=0.15)
    both = summarise(np.tile(values[:, None], 4001) + np.concatenate([[0.0], images]), range(4))
    assert both.high - both.low == pytest.approx(2 * np.hypot(width, 1.96), rel=0.1)


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    curve = {
        ("one", "full"): {0: np.full(11, 3.0), 1: np.full(11, 90.0)},
        ("two", "full"): {0: np.full(11, 1.0), 2: np.full(11, 7.0)},
    }
    assert compare(curve, CLAIM) == Difference(2.0, 2.0, 2.0, (0,))
    assert compare({("one", "full"): {0: np.zeros(3)}}, CLAIM) is None
    assert compare({**curve, ("two", "full"): {5: np.zeros(11)}}, CLAIM) is None


def test_samples_without_an_object_are_left_out() -> None:
    values = np.full((2, 101), 4.0)
    values[:, 1:40] = np.nan
    assert summarise(values, (0, 1)) == Difference(4.0, 4.0, 4.0, (0, 1))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 3.0, "holds"), (-0.6, 3.0, "open"), (-3.0, -0.5, "open"), (-3.0, -0.51, "fails")],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Difference(0.0, low, high, (0,)).verdict(-0.5) == verdict


def test_a_rung_is_compared_with_the_line_over_operations() -> None:
    gflops = {"full": 10.0, "a": 9.0, "b": 5.0, "minimal": 4.0}
    ap = {"full": 50.0, "a": 48.0, "b": 44.0, "minimal": 45.0}
    curve = {("arm", depth): {0: np.full(6, value)} for depth, value in ap.items()}
    curve["other", "full"] = {0: np.full(6, 99.0)}
    found = {rung.depth: rung.gap.mean for rung in rungs(curve, "arm", gflops)}
    # Between 50 at 10 and 44 at 5, the line has 48.8 at 9; between 48 at 9 and 45 at 4, 45.6 at 5.
    assert found == pytest.approx({"a": 48 - 48.8, "b": 44 - 45.6})


def test_claims_and_effects_name_arms_of_the_study() -> None:
    for claim in (*CLAIMS, *EFFECTS):
        for arm, depth in (claim.first, claim.second):
            assert arm in BY_NAME
            assert depth in ("full", "minimal")
        assert claim.first != claim.second
    assert all(claim.limit is not None for claim in CLAIMS)
