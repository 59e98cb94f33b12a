"""Settings: runs that differ in nothing but their seed, and what their seeds come to together."""

from collections.abc import Mapping
from dataclasses import dataclass

from anydepth.report.runs import Run


@dataclass(frozen=True)
class CurvePoint:
    """One depth of a setting over its seeds.

    Attributes:
        depth: Its text.
        gflops: 2 x GMACs of one image.
        latency_ms: Mean over the runs of the median latency; None where a run did not measure it.
        ap: Mean AP over seeds, a share in [0, 1].
        low: Lowest AP of a seed.
        high: Highest AP of a seed.
    """

    depth: str
    gflops: float
    latency_ms: float | None
    ap: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: Unique within a comparison: the ablation's arm, or what differs from the other settings.
        runs: At least one, by seed.
        differing: By flattened config key (``a.b.c``), this setting's value of what differs between the
            settings of the comparison; None where this setting does not have the key.
        mean: Over seeds, by the names of :meth:`anydepth.evaluation.curve_summary.CurveSummary.figures`.
        spread: Half the range over seeds of the same figures; 0 with one seed.
        curve_mean: One point per depth that every run evaluated, by falling cost.
    """

    label: str
    runs: tuple[Run, ...]
    differing: Mapping[str, object]
    mean: Mapping[str, float]
    spread: Mapping[str, float]
    curve_mean: tuple[CurvePoint, ...]

    @property
    def seeds(self) -> int:
        """Number of different seeds; a run whose seed is not known counts as one of its own."""
        known = {run.seed for run in self.runs if run.seed is not None}
        return len(known) + sum(run.seed is None for run in self.runs)
