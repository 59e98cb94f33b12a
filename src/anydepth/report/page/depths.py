"""Tables of depths for the page: which depth fits a budget, and AP of each class."""

from collections.abc import Mapping
from functools import partial
from statistics import fmean

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.curve_summary import pareto_front
from anydepth.report.comparison import Comparison, CurvePoint, Setting
from anydepth.report.page.tables import Cell, Column, Table
from anydepth.report.runs import Run

ENDS = ("full", "minimal")
"""Depths whose AP per class is shown."""

MAX_LOSS = 0.01
"""Loss of AP, in [0, 1], up to which the page recommends a cheaper depth than full."""


def budget_table(comparison: Comparison) -> Table | None:
    """Return the depths that none beats for less, by ascending cost; None with several settings."""
    front = _front(comparison)
    if not front:
        return None
    most = max(point.gflops for point in comparison.settings[0].curve_mean)
    best = max(point.ap for point in front)
    timed = all(point.latency_ms is not None for point in front)
    columns = [Column("depth", False), Column("GFLOPs", True), Column("of the deepest", True)]
    columns += [Column("ms", True, "median latency")] if timed else []
    columns += [Column("AP", True, "percent"), Column("below the best", True, "AP points")]
    rows = [
        (
            Cell(point.depth),
            Cell(f"{point.gflops:.2f}"),
            Cell(f"{100 * point.gflops / most:.0f} %"),
            *([Cell(f"{point.latency_ms:.2f}")] if timed else []),
            Cell(f"{100 * point.ap:.1f}"),
            Cell(f"{100 * (best - point.ap):.1f}"),
        )
        for point in front
    ]
    return Table(tuple(columns), tuple(rows))


def budget_hint(comparison: Comparison) -> str:
    """Return how to read :func:`budget_table`, and the cheapest depth that is almost as good as the best."""
    front = _front(comparison)
    if not front:
        return ""
    best = front[-1]
    cheapest = next(point for point in front if point.ap >= best.ap - MAX_LOSS)
    read = "Depths that no other beats for less, the cheapest first: take the last one within your budget. "
    if len(front) == 1:
        return f"{read}Here {best.depth} is the best of all and the cheapest."
    if cheapest is best:
        return f"{read}None of the cheaper ones comes within {100 * MAX_LOSS:.0f} AP point of {best.depth}."
    return (
        f"{read}The cheapest within {100 * MAX_LOSS:.0f} AP point of the best ({best.depth}) is "
        f"{cheapest.depth}, with {100 * (1 - cheapest.gflops / best.gflops):.0f} % fewer GFLOPs."
    )


def class_table(comparison: Comparison) -> Table | None:
    """Return AP of each class at full and minimal depth per setting; None with fewer than two classes."""
    names = list(dict.fromkeys(name for setting in comparison.settings for name in _classes(setting)))
    if len(names) < 2:
        return None
    columns = [Column("class", False)]
    cells: dict[str, list[Cell]] = {name: [Cell(name, name)] for name in names}
    for setting in comparison.settings:
        prefix = f"{setting.label}, " if len(comparison.settings) > 1 else ""
        values = {depth: _ap_by_class(setting, depth) for depth in ENDS}
        present = [depth for depth in ENDS if values[depth]]
        columns += [Column(f"{prefix}{depth}", True) for depth in present]
        columns += [Column(f"{prefix}change", True)] if len(present) == len(ENDS) else []
        for name in names:
            found = [values[depth].get(name) for depth in present]
            cells[name] += [_ap_cell(ap) for ap in found]
            if len(present) == len(ENDS):
                full, minimal = found
                change = None if full is None or minimal is None else minimal - full
                cells[name].append(_ap_cell(change, sign="+"))
    return Table(tuple(columns), tuple(tuple(row) for row in cells.values()))


def _front(comparison: Comparison) -> list[CurvePoint]:
    """Return the Pareto-optimal points of the only setting by ascending cost; none with several settings."""
    if len(comparison.settings) != 1:
        return []
    points = comparison.settings[0].curve_mean
    return [points[position] for position in pareto_front([(point.gflops, point.ap) for point in points])]


def _classes(setting: Setting) -> list[str]:
    return [name for run in setting.runs for row in run.curve.rows for name in row.per_class]


def _ap_by_class(setting: Setting, depth: str) -> Mapping[str, float]:
    """Return the mean over seeds of AP by class at a depth, of the classes that have objects in every run."""
    rows = {run.name: row for run in setting.runs for row in run.curve.rows if row.depth == depth}
    if len(rows) < len(setting.runs):
        return {}
    found: dict[str, float] = {}
    for name in dict.fromkeys(_classes(setting)):
        values = {run: row.per_class.get(name, NO_GROUND_TRUTH) for run, row in rows.items()}
        if NO_GROUND_TRUTH not in values.values():
            found[name] = fmean(setting.by_seed(partial(_value_of, values)).values())
    return found


def _value_of(values: Mapping[str, float], run: Run) -> float:
    return values[run.name]


def _ap_cell(share: float | None, sign: str = "") -> Cell:
    return Cell("-") if share is None else Cell(f"{100 * share:{sign}.1f}", repr(100 * share))
