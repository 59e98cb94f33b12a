"""Evidence of few seeds: probabilities are counted by enumeration, orders are written out by hand."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.report.claims.evidence import (
    Contrast,
    agreement_chance,
    format_difference,
    format_percent,
    format_points,
    format_spread,
    join_names,
    separation_chance,
)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (4, 4)])
def test_chance_of_separation_is_that_of_all_orders(first: int, second: int):
    # All choices of ranks for the seeds of the first setting are equally likely.
    ranks = range(first + second)
    orders = list(combinations(ranks, first))
    apart = sum(
        max(order) < min(set(ranks) - set(order)) or min(order) > max(set(ranks) - set(order))
        for order in orders
    )
    assert separation_chance(first, second) == pytest.approx(apart / len(orders))


def test_chances_of_few_seeds_are_large():
    assert separation_chance(2, 2) == pytest.approx(1 / 3)
    assert separation_chance(3, 3) == pytest.approx(1 / 10)
    assert [agreement_chance(seeds) for seeds in (1, 2, 3)] == [1.0, 0.5, 0.25]


def test_direction_needs_all_seeds_on_one_side():
    low, high = {"0": 0.30, "1": 0.32}, {"0": 0.33, "1": 0.35}
    assert Contrast(high, low).direction() == 1
    assert Contrast(low, high).direction() == -1
    assert Contrast({"0": 0.30, "1": 0.34}, high).direction() == 0
    assert Contrast(low, low).direction() == 0


def test_a_negative_margin_tolerates_a_loss():
    first, second = {"0": 0.30}, {"0": 0.304}
    assert Contrast(first, second).direction(-0.005) == 1
    assert Contrast(first, {"0": 0.306}).direction(-0.005) == -1


SEEDS = st.dictionaries(st.sampled_from("0123"), st.floats(0, 1), min_size=1)


@given(SEEDS, SEEDS)
def test_swapping_the_settings_swaps_the_direction(first: dict[str, float], second: dict[str, float]):
    forward, backward = Contrast(first, second), Contrast(second, first)
    assert forward.direction() == -backward.direction()
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.chance == backward.chance


def test_differences_are_paired_only_where_all_seeds_are():
    contrast = Contrast({"0": 0.30, "1": 0.34}, {"0": 0.31, "1": 0.32})
    assert contrast.paired == (pytest.approx(-0.01), pytest.approx(0.02))
    assert format_difference(contrast) == "+0.5 (-1.0 to +2.0 by seed)"
    unpaired = Contrast({"0": 0.30, "1": 0.34}, {"0": 0.31, "2": 0.31})
    assert unpaired.paired == ()
    assert format_difference(unpaired) == "+1.0"


def test_figures_are_written_in_points():
    assert format_spread([0.312]) == "31.2 (one seed)"
    assert format_spread([0.30, 0.32]) == "31.0 (30.0 to 32.0 over 2 seeds)"
    assert (format_points(-0.0001), format_points(-0.0001, sign=True), format_points(0.005, sign=True)) == (
        "0.0",
        "+0.0",
        "+0.5",
    )
    assert [format_percent(share) for share in (0.004, 1 / 3, 1.0, 0.0)] == [
        "under 1 %",
        "33 %",
        "100 %",
        "0 %",
    ]
    assert [join_names(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
