"""Chart of a depth curve."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.curve_summary import ladder_rows
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow
from anydepth.utils.files import atomic_path

METRICS = {"AP50": "#c8553d", "AP": "#1f5a92"}
"""Metrics of the chart and their colours."""

MAX_LABELS = 12
"""Points labelled per panel: labels of more points would overlap."""

MAX_LABEL_CHARACTERS = 8
"""Length of a depth up to which it labels its point; if one is longer, points are numbered and get a key."""

_GREY = "#555555"

Cost = Callable[[DepthRow], float]


def save_depth_chart(curve: DepthCurve, path: str | Path) -> None:
    """Draw AP and AP50 against GFLOPs, and against latency if it was measured, as a PNG.

    A thin line joins the ladder from full to minimal (all depths, where no ladder was evaluated). Dark
    points, joined by a thick line, are Pareto-optimal: no other depth is at least as accurate for less. Up to
    12 depths are all labelled; of more, only some that are Pareto-optimal.
    """
    panels: list[tuple[str, Cost]] = [("GFLOPs (2 x MACs)", _gflops)]
    if curve.protocol is not None:
        panels.append((f"median latency in ms, batch {curve.protocol.batch_size}", _median_ms))
    labels = _labels(curve.rows)
    key = _key(labels)
    # Not pyplot, which would choose a window system and keep every figure alive.
    figure = Figure(figsize=(6.6 * len(panels) + (2.6 if key else 0.4), 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    height, width = curve.input_size
    title = f"{curve.detector}: one set of weights, {len(curve.rows)} depths"
    # Names from outside may hold dollar signs, between which Matplotlib reads formulas.
    figure.suptitle(title, fontsize=13, parse_math=False)
    for position, (title, cost) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), position + 1)
        _draw(axes, curve.rows, ladder_rows(curve) or curve.rows, cost, labels)
        axes.set_xlabel(title)
        axes.set_ylabel(f"AP in percent, {curve.images} images at {height}x{width}")
    if key:
        axes.text(1.03, 0.98, key, transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.6)
    if curve.protocol is not None:
        figure.supxlabel(f"latency: {curve.protocol}", fontsize=7.5, color="#555555", parse_math=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


def _draw(
    axes: Axes, rows: Sequence[DepthRow], joined: Sequence[DepthRow], cost: Cost, labels: Mapping[str, str]
) -> None:
    for metric, colour in METRICS.items():
        measured = [row for row in rows if row.figures[metric] != NO_GROUND_TRUTH]
        points = sorted((cost(row), 100 * row.figures[metric], row.depth) for row in measured)
        front = _pareto_front(points)
        line = sorted((cost(row), 100 * row.figures[metric]) for row in joined if row in measured)
        axes.plot([p[0] for p in line], [p[1] for p in line], "-", color=colour, alpha=0.4, linewidth=1)
        axes.scatter([p[0] for p in points], [p[1] for p in points], s=20, color=colour, alpha=0.4)
        axes.plot(
            [p[0] for p in front], [p[1] for p in front], "o-", color=colour, label=metric, markersize=5
        )
        for x, y, depth in points:
            if depth in labels:
                axes.annotate(
                    labels[depth],
                    (x, y),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=colour,
                )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08, y=0.15)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    shades = [
        Line2D([], [], color=_GREY, marker="o", markersize=5, label="no other depth is better for less"),
        Line2D([], [], color=_GREY, marker="o", markersize=4, linewidth=1, alpha=0.4, label="other depths"),
    ]
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*handles, *shades], loc="best", frameon=False, fontsize=9)


def _pareto_front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the Pareto-optimal points of (cost, accuracy, depth), which must be sorted by cost."""
    front: list[tuple[float, float, str]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _labels(rows: Sequence[DepthRow]) -> dict[str, str]:
    """Return the labels of points by depth: the depth itself, or a number if one is too long."""
    labelled = sorted(rows, key=_gflops, reverse=True)
    if len(rows) > MAX_LABELS:
        points = sorted((row.gflops, row.figures["AP"], row.depth) for row in rows)
        depths = [depth for _, _, depth in reversed(_pareto_front(points))]
        count = min(MAX_LABELS, len(depths))
        selected = {depths[round(i * (len(depths) - 1) / max(count - 1, 1))] for i in range(count)}
        labelled = [row for row in labelled if row.depth in selected | {"full", "minimal"}]
    if all(len(row.depth) <= MAX_LABEL_CHARACTERS for row in labelled):
        return {row.depth: row.depth for row in labelled}
    return {row.depth: str(number) for number, row in enumerate(labelled, 1)}


def _key(labels: Mapping[str, str]) -> str:
    """Return the text that explains numbered labels; empty if the labels are the depths themselves."""
    return "\n".join(f"{label}   {depth}" for depth, label in labels.items() if label != depth)


def _gflops(row: DepthRow) -> float:
    return row.gflops


def _median_ms(row: DepthRow) -> float:
    return 0.0 if row.latency is None else row.latency.median_ms
