"""Depth curves and compatibility of a comparison as plain data for the charts of the page."""

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.compatibility import Compatibility
from anydepth.evaluation.curve_summary import ladder_rows, pareto_front
from anydepth.report.comparison import Comparison
from anydepth.report.runs import Run
from anydepth.report.settings import Setting

Json = dict[str, Any]

CURVE_FIGURES = ("AP", "AP50", "AP75")

MEASURE_LABELS: Mapping[str, str] = {
    "cka": "linear CKA",
    "cosine": "cosine similarity",
    "l2": "relative L2 distance",
}
"""Labels of compatibility measures, by the last part of their name."""


def curves(comparison: Comparison) -> Json:
    """Return the points of all settings, in percent, and the Pareto fronts over all of them.

    Returns:
        ``settings``: label, seeds and points per setting; ``fronts``: by metric and cost, positions (setting,
        point) of the Pareto-optimal means, by ascending cost, or None if the cost is unknown.
    """
    settings = [
        {
            "label": setting.label,
            "seeds": setting.seeds,
            "points": _points(setting),
        }
        for setting in comparison.settings
    ]
    return {
        "settings": settings,
        "fronts": {
            figure: {cost: _front(settings, cost, figure) for cost in ("gflops", "latency")}
            for figure in CURVE_FIGURES
        },
        "latency_title": _latency_title(comparison),
    }


def compatibility(comparison: Comparison) -> Json | None:
    """Return maps of stage x depth per setting, from its first run with a measurement; None without any."""
    found: list[tuple[Setting, Compatibility]] = []
    for setting in comparison.settings:
        tables = [run.compatibility for run in setting.runs if run.compatibility is not None]
        found += [(setting, table) for table in tables[:1]]
    if not found:
        return None
    measures = list(dict.fromkeys(name for _, table in found for row in table.rows for name in row.values))
    maps = []
    for setting, table in found:
        known = {(row.stage, row.depth): row.values for row in table.rows}
        values = [
            [[_round(known.get((s, d), {}).get(name)) for d in table.depths] for s in table.stages]
            for name in measures
        ]
        maps.append(
            {
                "label": setting.label,
                "stages": list(table.stages),
                "depths": list(table.depths),
                "values": values,
            }
        )
    return {"measures": [_measure(name, index, maps) for index, name in enumerate(measures)], "maps": maps}


def to_percent(share: float) -> float | None:
    """Return AP in percent with two decimals; None if the images hold no object."""
    return None if share == NO_GROUND_TRUTH else round(100 * share, 2)


def _points(setting: Setting) -> list[Json]:
    rungs = {row.depth for row in ladder_rows(setting.runs[0].curve)}
    points = []
    for point in setting.curve_mean:
        latency = point.latency_ms
        points.append(
            {
                "depth": point.depth,
                "gflops": round(point.gflops, 4),
                "latency": None if latency is None else round(latency, 4),
                # Without a complete ladder, the line joins all evaluated depths.
                "rung": not rungs or point.depth in rungs,
                **{figure: _over_seeds(setting, point.depth, figure) for figure in CURVE_FIGURES},
            }
        )
    return points


def _over_seeds(setting: Setting, depth: str, figure: str) -> list[float] | None:
    """Return mean, lowest and highest over seeds in percent; None if a run lacks the metric."""
    shares = {run.name: _metric(run, depth, figure) for run in setting.runs}
    if None in shares.values():
        return None
    seeds = setting.by_seed(lambda run: shares[run.name]).values()
    return [round(100 * value, 2) for value in (fmean(seeds), min(seeds), max(seeds))]


def _metric(run: Run, depth: str, figure: str) -> float | None:
    for row in run.curve.rows:
        if row.depth == depth and row.figures.get(figure, NO_GROUND_TRUTH) != NO_GROUND_TRUTH:
            return row.figures[figure]
    return None


def _front(settings: Sequence[Json], cost: str, figure: str) -> list[list[int]] | None:
    """Return positions (setting, point) of the Pareto front; None if no point has the cost and the metric."""
    positions, points = [], []
    for setting_index, setting in enumerate(settings):
        for point_index, point in enumerate(setting["points"]):
            if point[cost] is not None and point[figure] is not None:
                positions.append([setting_index, point_index])
                points.append((point[cost], point[figure][0]))
    return [positions[index] for index in pareto_front(points)] or None


def _latency_title(comparison: Comparison) -> str:
    protocols = {
        str(run.curve.protocol): None
        for setting in comparison.settings
        for run in setting.runs
        if run.curve.protocol is not None
    }
    return "Accuracy against median latency: " + "; or ".join(protocols)


def _measure(name: str, index: int, maps: Sequence[Json]) -> Json:
    """Return the label of a measure, its value for equal features, and a colour scale for all maps."""
    kind, _, short = name.rpartition("_")
    cells = [cell for table in maps for row in table["values"][index] for cell in row if cell is not None]
    label = f"{MEASURE_LABELS.get(short, short)} of {kind} features" if kind else name
    if short == "l2":
        return {"label": f"{label} (0: equal)", "best": 0, "scale": [0.0, max([*cells, 0.01])]}
    return {"label": f"{label} (1: equal)", "best": 1, "scale": [min([*cells, 0.99]), 1.0]}


def _round(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 4)
