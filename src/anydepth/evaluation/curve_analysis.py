"""What the curve of ALL configurations of a detector says: its best ladder, its cliffs, its Pareto front."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anydepth.depth import DepthConfig, DepthSpace
from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH, EvaluationError
from anydepth.evaluation.curve_summary import undominated
from anydepth.evaluation.depth_curve import DepthCurve, DepthRow

DECODER_LAYER = "decoder layer"


@dataclass(frozen=True)
class Rung:
    """One depth of a ladder.

    Attributes:
        depth: Its text.
        removed: The part that the rung above has and this one has not; empty for full depth.
        gflops: Of one image.
        ap: In [0, 1].
    """

    depth: str
    removed: str
    gflops: float
    ap: float


@dataclass(frozen=True)
class Cliff:
    """Accuracy that removing one part costs.

    Attributes:
        removed: A stage of which the refinement path goes, or ``decoder layer``.
        deeper: The configuration with the part, as text.
        shallower: The same without it.
        loss: AP of the deeper one minus AP of the shallower one, in [-1, 1].
    """

    removed: str
    deeper: str
    shallower: str
    loss: float


@dataclass(frozen=True)
class CurveAnalysis:
    """Figures over all configurations.

    Attributes:
        detector: Name of the detector.
        images: How many were evaluated.
        configurations: How many were compared: all there are.
        measured_ladder: From full to minimal, each step the removal that loses the least AP per MAC saved.
        stage_ladder: From full to minimal, the earliest stage first and decoder layers last.
        largest_cliff: Of all pairs of configurations that differ in one part.
        largest_cliff_in_range: Of the pairs that keep at least the decoder layers of minimal depth; fewer
            layers than these were not trained for. The same where a detector has no decoder layers.
        cliffs: The largest one of each part in that range, largest first.
        pareto: Configurations that no cheaper or equally cheap one matches, by ascending cost.
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
        curve: Of ``depths=all``.
        space: Of the detector that the curve is of, with its costs.

    Raises:
        EvaluationError: A configuration is missing, the images hold no object, or the detector has one depth.
        DepthError: The curve is of a detector with other stages.
    """
    ap = curve.measured_ap(space)
    rows = dict(zip(ap, curve.rows, strict=True))
    missing = [str(config) for config in space.all() if config not in rows]
    if missing:
        raise EvaluationError(f"the curve lacks {len(missing)} configurations, e.g. {missing[0]}")
    if min(ap.values()) == NO_GROUND_TRUTH:
        raise EvaluationError("the images hold no object to find, so there is no AP to compare")
    cliffs = list(_cliffs(rows, space))
    if not cliffs:
        raise EvaluationError("this detector has a single depth: there is nothing to compare")
    least = space.minimal_decoder_layers or 0
    inside = list(_cliffs({c: r for c, r in rows.items() if (c.decoder_layers or 0) >= least}, space))
    by_part: dict[str, Cliff] = {}
    for cliff in sorted(inside, key=_loss, reverse=True):
        by_part.setdefault(cliff.removed, cliff)
    front = undominated([(row.gflops, row.figures["AP"]) for row in curve.rows])
    return CurveAnalysis(
        detector=curve.detector,
        images=curve.images,
        configurations=len(rows),
        measured_ladder=_rungs(space.ladder(measured_ap=ap), rows, space),
        stage_ladder=_rungs(space.ladder(), rows, space),
        largest_cliff=max(cliffs, key=_loss),
        largest_cliff_in_range=max(inside or cliffs, key=_loss),
        cliffs=tuple(by_part.values()),
        pareto=tuple(curve.rows[position].depth for position in front),
    )


def _loss(cliff: Cliff) -> float:
    return cliff.loss


def _cliffs(rows: dict[DepthConfig, DepthRow], space: DepthSpace) -> Iterator[Cliff]:
    """Every pair of configurations that differ in one part."""
    for deeper, row in rows.items():
        for removed, shallower in _neighbours(deeper, space):
            if shallower in rows:
                other = rows[shallower]
                loss = row.figures["AP"] - other.figures["AP"]
                yield Cliff(removed, row.depth, other.depth, loss)


def _neighbours(config: DepthConfig, space: DepthSpace) -> Iterator[tuple[str, DepthConfig]]:
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
