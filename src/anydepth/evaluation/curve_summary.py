"""Summary of a depth curve in a few figures by which runs are sorted and compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from anydepth.depth import DepthConfig, DepthError, DepthSpace
from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow


@dataclass(frozen=True)
class Drop:
    """Accuracy lost from one rung of the ladder to the next shallower one.

    Attributes:
        deeper: Text of the deeper rung.
        shallower: Text of the shallower rung.
        loss: AP of the deeper rung minus AP of the shallower one; negative if the shallower one is better.
    """

    deeper: str
    shallower: str
    loss: float


@dataclass(frozen=True)
class CurveSummary:
    """Summary figures of one depth curve. AP is in [0, 1]; None if the curve lacks the depths for a figure.

    Attributes:
        full: AP at full depth.
        minimal: AP at minimal depth.
        ladder_mean: Mean AP over the rungs of the ladder, earliest stage removed first.
        area: Mean AP over cost between minimal and full: the integral of the ladder's AP over GFLOPs by the
            trapezoidal rule, divided by its width. Unlike the mean over rungs, it stays the same
            if a rung on the line between two others is added.
        hypervolume: Area that the ladder dominates, with cost as a share of full's GFLOPs: the integral over
            shares in [0, 1] of the best AP that costs at most that share (0 below the cheapest depth).
            Other depths could only add to it, so they are ignored; without the ladder, all depths count.
        saving: GFLOPs of full divided by those of minimal.
        largest_drop: Largest drop between neighbouring rungs of the ladder.
    """

    full: float | None
    minimal: float | None
    ladder_mean: float | None
    area: float | None
    hypervolume: float | None
    saving: float | None
    largest_drop: Drop | None

    def figures(self) -> dict[str, float]:
        """Return the figures that are not None, by name; ``largest_drop`` as its loss."""
        plain = asdict(self) | {"largest_drop": self.largest_drop.loss if self.largest_drop else None}
        return {name: float(value) for name, value in plain.items() if value is not None}


def summarize(curve: DepthCurve, figure: str = "AP") -> CurveSummary:
    """Summarize a depth curve.

    Args:
        curve: Curve of any depths; figures of the ladder need all of its rungs.
        figure: Name of one of the 12 COCO metrics, used in place of AP.
    """
    known = {row.depth: row for row in curve.rows if row.figures[figure] != NO_GROUND_TRUTH}
    full, minimal = known.get("full"), known.get("minimal")
    ladder = ladder_rows(curve) if len(known) == len(curve.rows) else ()
    accuracy = [row.figures[figure] for row in ladder]
    drops = [
        Drop(deeper.depth, shallower.depth, deeper.figures[figure] - shallower.figures[figure])
        for deeper, shallower in pairwise(ladder)
    ]
    return CurveSummary(
        full=full.figures[figure] if full else None,
        minimal=minimal.figures[figure] if minimal else None,
        ladder_mean=sum(accuracy) / len(accuracy) if ladder else None,
        area=_mean_over_cost(ladder, figure),
        hypervolume=_hypervolume(ladder or [*known.values()], full.gflops, figure) if full else None,
        saving=full.gflops / minimal.gflops if full and minimal else None,
        largest_drop=max(drops, key=lambda drop: drop.loss, default=None),
    )


def ladder_rows(curve: DepthCurve) -> tuple[DepthRow, ...]:
    """Return the rungs from full to minimal, earliest stage removed first; empty if one is missing."""
    rows = {DepthConfig(tuple(row.refine.values()), row.decoder_layers): row for row in curve.rows}
    named = {row.depth: row for row in curve.rows}
    if not {"full", "minimal"} <= named.keys():
        return ()
    full, minimal = named["full"], named["minimal"]
    try:
        space = DepthSpace(
            stages=tuple(full.refine),
            decoder_layers=full.decoder_layers,
            minimal_decoder_layers=minimal.decoder_layers,
        )
        return tuple(rows[config] for config in space.ladder())
    except (DepthError, KeyError):
        return ()


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return positions of the Pareto-optimal points of (cost, accuracy), by ascending cost."""
    order = sorted(range(len(points)), key=lambda position: (points[position][0], -points[position][1]))
    best: list[int] = []
    for position in order:
        if not best or points[position][1] > points[best[-1]][1]:
            best.append(position)
    return best


def _mean_over_cost(ladder: Sequence[DepthRow], figure: str) -> float | None:
    if not ladder:
        return None
    width = ladder[0].gflops - ladder[-1].gflops
    if width <= 0:
        return ladder[0].figures[figure]
    pairs = pairwise(ladder)
    area = sum((a.gflops - b.gflops) * (a.figures[figure] + b.figures[figure]) / 2 for a, b in pairs)
    return area / width


def _hypervolume(rows: Sequence[DepthRow], full_gflops: float, figure: str) -> float:
    points = [(row.gflops / full_gflops, row.figures[figure]) for row in rows]
    front = [points[position] for position in pareto_front(points)]
    ends = [*(cost for cost, _ in front[1:]), 1.0]
    return sum((min(end, 1.0) - cost) * value for (cost, value), end in zip(front, ends, strict=True))
