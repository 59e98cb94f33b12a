"""Analysis of the curve of ALL depth configurations: best ladder, cliffs and Pareto front."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH, EvaluationError
from anydepth.evaluation.curve_summary import pareto_front
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow

DECODER_LAYER = "decoder layer"
"""Name of the removed part if it is a decoder layer; other parts go by the name of their stage."""


@dataclass(frozen=True)
class Rung:
    """One depth of a ladder.

    Attributes:
        depth: Text of the depth.
        removed: Part that the rung above runs and this one does not; empty for full depth.
        gflops: GFLOPs of one image (2 x GMACs).
        ap: AP in [0, 1].
    """

    depth: str
    removed: str
    gflops: float
    ap: float


@dataclass(frozen=True)
class Cliff:
    """Accuracy lost by removing one part.

    Attributes:
        removed: Stage whose refinement path is removed, or ``decoder layer``.
        deeper: Text of the configuration with the part.
        shallower: Text of the configuration without it.
        loss: AP of the deeper configuration minus AP of the shallower one, in [-1, 1].
    """

    removed: str
    deeper: str
    shallower: str
    loss: float


@dataclass(frozen=True)
class CurveAnalysis:
    """Analysis of all depth configurations of a detector.

    Attributes:
        detector: Name of the detector.
        images: Number of images evaluated.
        configurations: Number of configurations, all of the depth space.
        measured_ladder: Rungs from full to minimal, each removing the part that loses the least AP per MAC.
        stage_ladder: Rungs from full to minimal, earliest stage removed first and decoder layers last.
        largest_cliff: Largest loss of all pairs of configurations that differ in one part.
        largest_cliff_in_range: Largest loss of the pairs with at least the decoder layers of minimal depth;
            fewer layers were not trained. Equal to ``largest_cliff`` for detectors without decoder layers.
        cliffs: Largest cliff of each part in that range, largest first.
        pareto: Texts of the Pareto-optimal configurations, by ascending cost.
    """

    detector: str
    images: int
    configurations: int
    measured_ladder: tuple[Rung, ...]
    stage_ladder: tuple[Rung, ...]
    largest_cliff: Cliff
    largest_cliff_in_range: Cliff
    cliffs: tuple[Cliff, ...]
    pareto: tuple[str, ...]


def analyze_curve(curve: DepthCurve, space: DepthSpace) -> CurveAnalysis:
    """Analyze the curve of all configurations.

    Args:
        curve: Curve of ``depths=all``.
        space: Depth space of the same detector, with its costs.

    Raises:
        EvaluationError: A configuration is missing, the images hold no object, or the detector has one depth.
        DepthError: The curve is of a detector with different stages.
    """
    ap = curve.measured_ap(space)
    rows = dict(zip(ap, curve.rows, strict=True))
    missing = [str(config) for config in space.all() if config not in rows]
    if missing:
        raise EvaluationError(
            f"got a curve without {len(missing)} configurations, e.g. {missing[0]}; evaluate depths=all"
        )
    if min(ap.values()) == NO_GROUND_TRUTH:
        raise EvaluationError("the images hold no object, so there is no AP to compare; use annotated images")
    cliffs = list(_cliffs(rows, space))
    if not cliffs:
        raise EvaluationError("got a detector with a single depth, expected several depths to compare")
    min_layers = space.minimal_decoder_layers or 0
    in_range = list(_cliffs({c: r for c, r in rows.items() if (c.decoder_layers or 0) >= min_layers}, space))
    by_part: dict[str, Cliff] = {}
    for cliff in sorted(in_range, key=_loss, reverse=True):
        by_part.setdefault(cliff.removed, cliff)
    front = pareto_front([(row.gflops, row.figures["AP"]) for row in curve.rows])
    return CurveAnalysis(
        detector=curve.detector,
        images=curve.images,
        configurations=len(rows),
        measured_ladder=_rungs(space.ladder(measured_ap=ap), rows, space),
        stage_ladder=_rungs(space.ladder(), rows, space),
        largest_cliff=max(cliffs, key=_loss),
        largest_cliff_in_range=max(in_range or cliffs, key=_loss),
        cliffs=tuple(by_part.values()),
        pareto=tuple(curve.rows[position].depth for position in front),
    )


def _loss(cliff: Cliff) -> float:
    return cliff.loss


def _cliffs(rows: dict[DepthConfig, DepthRow], space: DepthSpace) -> Iterator[Cliff]:
    """Yield the cliff of every pair of configurations that differ in one part."""
    for deeper, row in rows.items():
        for removed, shallower in _neighbours(deeper, space):
            if shallower in rows:
                other = rows[shallower]
                loss = row.figures["AP"] - other.figures["AP"]
                yield Cliff(removed, row.depth, other.depth, loss)


def _neighbours(config: DepthConfig, space: DepthSpace) -> Iterator[tuple[str, DepthConfig]]:
    """Yield each part that a configuration can lose, with the configuration without it."""
    for stage, name in enumerate(space.stages):
        if config.refine[stage]:
            refine = [runs and other != stage for other, runs in enumerate(config.refine)]
            yield name, space.config(refine, config.decoder_layers)
    if config.decoder_layers is not None and config.decoder_layers > 1:
        yield DECODER_LAYER, space.config(config.refine, config.decoder_layers - 1)


def _rungs(
    ladder: Sequence[DepthConfig], rows: dict[DepthConfig, DepthRow], space: DepthSpace
) -> tuple[Rung, ...]:
    rungs = []
    for position, config in enumerate(ladder):
        above = ladder[position - 1] if position else None
        parts = [] if above is None else [name for name, near in _neighbours(above, space) if near == config]
        row = rows[config]
        rungs.append(Rung(row.depth, "".join(parts), row.gflops, row.figures["AP"]))
    return tuple(rungs)
