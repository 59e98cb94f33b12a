"""Figures of depth curves between full and minimal depth, of one run and over the seeds of a setting."""

from itertools import pairwise
from statistics import fmean

from anydepth.evaluation.curve_summary import Drop, ladder_rows
from anydepth.evaluation.depth_curve import DepthRow
from anydepth.report.runs import Run
from anydepth.report.settings import Setting

ENDS = ("full", "minimal")


def lower_end_ap(run: Run) -> float | None:
    """Return the lower AP of full and minimal depth; None if one was not evaluated."""
    full, minimal = run.summary.full, run.summary.minimal
    return None if full is None or minimal is None else min(full, minimal)


def inner_mean_ap(run: Run) -> float | None:
    """Return mean AP over the rungs between full and minimal; None if there are none or one is missing."""
    if run.summary.ladder_mean is None:
        return None
    inner = [row.figures["AP"] for row in ladder_rows(run.curve)[1:-1]]
    return fmean(inner) if inner else None


def depths_between(setting: Setting) -> list[str]:
    """Return the depths between full and minimal that every run of a setting evaluated.

    Depths with fewer decoder layers than minimal depth are left out, as the method does not claim that they
    work.
    """
    rows = {row.depth: row for row in setting.runs[0].curve.rows}
    if not rows.keys() >= set(ENDS):
        return []
    full, minimal = (rows[end] for end in ENDS)
    return [
        point.depth
        for point in setting.curve_mean
        if point.depth not in ENDS and _lies_between(rows[point.depth], full, minimal)
    ]


def _lies_between(row: DepthRow, full: DepthRow, minimal: DepthRow) -> bool:
    """Return whether a depth runs a superset of minimal depth, a subset of full depth, and equals neither."""
    layers = [part.decoder_layers or 0 for part in (minimal, row, full)]
    stages = all(minimal.refine[name] <= on <= full.refine[name] for name, on in row.refine.items())
    equal = any(
        (row.refine, row.decoder_layers) == (end.refine, end.decoder_layers) for end in (full, minimal)
    )
    return stages and layers == sorted(layers) and not equal


def largest_mean_drop(setting: Setting) -> Drop | None:
    """Return the largest drop between neighbouring rungs of the curve averaged over seeds.

    This is not the mean of the largest drops, which may lie between different rungs in every seed.
    """
    if "ladder_mean" not in setting.mean:
        return None
    means = {point.depth: point.ap for point in setting.curve_mean}
    rungs = [row.depth for row in ladder_rows(setting.runs[0].curve) if row.depth in means]
    drops = [
        Drop(deeper, shallower, means[deeper] - means[shallower]) for deeper, shallower in pairwise(rungs)
    ]
    return max(drops, key=lambda drop: drop.loss, default=None)
