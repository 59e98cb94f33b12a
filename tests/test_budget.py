"""A depth by a budget."""

import pytest

from anydepth.budget import (
    Budget,
    BudgetError,
    DepthFigures,
    choose_depth,
    figures_table,
    parse_budget,
)

# AP does not always fall with the depth: 1/2 is better than 3/4 here, and cheaper.
ROWS = (
    DepthFigures("full", 40.0, 0.40, 10.0, 200.0),
    DepthFigures("3/4", 35.0, 0.35, 8.0, 190.0),
    DepthFigures("1/2", 30.0, 0.38, 7.0, 180.0),
    DepthFigures("minimal", 20.0, 0.36, 5.0, 120.0),
)


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("<=10ms", "full"),
        ("<=9.99ms", "1/2"),
        ("<=5ms", "minimal"),
        ("<= 40 GFLOPs", "full"),
        ("<=39gflops", "1/2"),
        ("<=20gflops", "minimal"),
        ("<=185mb", "1/2"),
        (">=100%ap", "full"),
        # 95 % of 0.40 is 0.38.
        (">=95%ap", "1/2"),
        (">=90%ap", "minimal"),
        (">=0%ap", "minimal"),
    ],
)
def test_the_best_depth_within_a_budget_is_chosen(text: str, depth: str):
    budget = parse_budget(text)
    assert budget is not None
    assert choose_depth(budget, ROWS) == depth


def test_without_ap_the_deepest_within_the_budget_is_chosen():
    rows = [DepthFigures(row.depth, row.gflops, None, row.milliseconds) for row in ROWS]
    assert choose_depth(Budget(9, "ms"), rows) == "3/4"
    # A single AP that is not known makes the others no order.
    assert choose_depth(Budget(9, "ms"), [*ROWS[:1], rows[1], *ROWS[2:]]) == "3/4"


def test_without_latency_the_fewest_operations_are_cheapest():
    rows = [DepthFigures(row.depth, row.gflops, row.ap) for row in ROWS]
    assert choose_depth(Budget(95, "%ap"), rows) == "1/2"


def test_a_budget_that_nothing_meets_shows_the_depths():
    with pytest.raises(BudgetError, match="no depth is within the budget <=4ms") as caught:
        choose_depth(Budget(4, "ms"), ROWS)
    assert str(caught.value).splitlines()[1:] == [
        "depth    GFLOPs    AP    ms     MB",
        "full      40.00  40.0  10.0  200.0",
        "3/4       35.00  35.0   8.0  190.0",
        "1/2       30.00  38.0   7.0  180.0",
        "minimal   20.00  36.0   5.0  120.0",
    ]
    with pytest.raises(BudgetError, match=r"within the budget >=101%ap"):
        choose_depth(Budget(101, "%ap"), ROWS)


def test_what_was_not_measured_is_said():
    rows = [DepthFigures("full", 40.0)]
    with pytest.raises(BudgetError, match="budget <=4ms: the latency of the depths is not known; measure it"):
        choose_depth(Budget(4, "ms"), rows, remedy="measure it")
    assert figures_table(rows).splitlines()[1].split() == ["full", "40.00", "-", "-", "-"]


@pytest.mark.parametrize("text", ["full", "minimal", "1/2", "stage3+neck@5", "", 5, None])
def test_what_is_no_comparison_is_no_budget(text: object):
    assert parse_budget(text) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<=.5GFLOPs", Budget(0.5, "gflops")),
        ("≤ 8. ms", Budget(8, "ms")),
        (" ≥95 % ap ", Budget(95, "%ap")),
        ("<=0.25MB", Budget(0.25, "mb")),
    ],
)
def test_a_budget_may_be_written_in_several_ways(text: str, wanted: Budget):
    assert parse_budget(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "<=.ms",
        "<=1.2.3ms",
        "≤=8ms",
        "<8ms",
        ">=8ms",
        "<=95%ap",
        "<=8",
        "<=ms",
        "<=-3ms",
        "<=8fps",
        "<=nanms",
        "<=8ms+1",
    ],
)
def test_comparisons_that_are_no_budget_are_refused(text: str):
    with pytest.raises(BudgetError, match="expected one of <=8ms, <=120mb, <=40gflops or >=95%ap"):
        parse_budget(text)
