"""Summary of a depth curve: expected figures are computed by hand from four rungs."""

import pytest

from anydepth.evaluation.coco_eval import FIGURES, NO_GROUND_TRUTH
from anydepth.evaluation.curve_summary import ladder_rows, pareto_front, summarize
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow


def _row(depth: str, refine: tuple[bool, bool], layers: int, gflops: float, ap: float) -> DepthRow:
    figures = {**dict.fromkeys(FIGURES, 0.9), "AP": ap}
    return DepthRow(
        depth, dict(zip(("stage1", "neck"), refine, strict=True)), layers, 1000, gflops, None, figures, {}
    )


def _curve(*rows: DepthRow) -> DepthCurve:
    return DepthCurve("d", 1000, (64, 64), "fp32", 10, None, rows)


FULL = _row("full", (True, True), 3, 10.0, 0.50)
NECK = _row("neck@3", (False, True), 3, 8.0, 0.40)
NONE = _row("none@3", (False, False), 3, 5.0, 0.42)
MINIMAL = _row("minimal", (False, False), 2, 4.0, 0.30)


def test_figures_of_a_ladder_are_those_computed_by_hand():
    summary = summarize(_curve(FULL, NECK, NONE, MINIMAL))
    assert (summary.full, summary.minimal) == (0.50, 0.30)
    assert summary.ladder_mean == pytest.approx((0.5 + 0.4 + 0.42 + 0.3) / 4)
    # Trapezoids: 2 x 0.45 + 3 x 0.41 + 1 x 0.36 = 2.49, over a width of 6 GFLOPs.
    assert summary.area == pytest.approx(2.49 / 6)
    # Best AP up to shares of cost 0.4, 0.5, 1.0: 0.1 x 0.30 + 0.5 x 0.42 (neck@3 is dominated).
    assert summary.hypervolume == pytest.approx(0.1 * 0.30 + 0.5 * 0.42)
    assert summary.saving == 2.5
    drop = summary.largest_drop
    assert drop is not None
    assert (drop.deeper, drop.shallower) == ("none@3", "minimal")
    assert drop.loss == pytest.approx(0.12)


def test_further_depths_do_not_change_the_figures_of_a_ladder():
    # It costs 6 GFLOPs and would lift the area that is dominated by 0.4 x (0.48 - 0.42).
    extra = _row("stage1@3", (True, False), 3, 6.0, 0.48)
    ladder = summarize(_curve(FULL, NECK, NONE, MINIMAL))
    assert summarize(_curve(FULL, NECK, NONE, MINIMAL, extra)) == ladder


def test_without_the_ladder_all_depths_count_for_the_hypervolume():
    # Best AP up to shares of cost 0.4 and 0.8: 0.4 x 0.30 + 0.2 x 0.40.
    assert summarize(_curve(FULL, NECK, MINIMAL)).hypervolume == pytest.approx(0.4 * 0.30 + 0.2 * 0.40)


def test_order_of_rows_does_not_matter():
    rows = (FULL, NECK, NONE, MINIMAL)
    assert summarize(_curve(*rows)) == summarize(_curve(*reversed(rows)))
    assert [row.depth for row in ladder_rows(_curve(*reversed(rows)))] == [row.depth for row in rows]


def test_a_curve_without_a_rung_has_no_figures_of_the_ladder():
    summary = summarize(_curve(FULL, NONE, MINIMAL))
    assert (summary.ladder_mean, summary.area, summary.largest_drop) == (None, None, None)
    assert summary.figures().keys() == {"full", "minimal", "hypervolume", "saving"}
    assert ladder_rows(_curve(NECK, NONE)) == ()


def test_images_without_ground_truth_give_no_figures():
    rows = [_row(row.depth, (True, True), 3, row.gflops, NO_GROUND_TRUTH) for row in (FULL, MINIMAL)]
    assert summarize(_curve(*rows)).figures() == {}


def test_a_fixed_depth_detector_has_one_rung():
    row = DepthRow("full", {}, None, 1000, 10.0, None, {**dict.fromkeys(FIGURES, 0.0), "AP": 0.4}, {})
    summary = summarize(_curve(row))
    assert (summary.full, summary.ladder_mean, summary.saving) == (0.4, None, None)


def test_the_pareto_front_keeps_the_better_of_equal_cost():
    assert pareto_front([(2.0, 0.3), (1.0, 0.1), (1.0, 0.2), (3.0, 0.3)]) == [2, 0]
