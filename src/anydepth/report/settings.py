"""Settings: groups of runs that differ in nothing but their seed, with means and ranges over seeds."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from anydepth.evaluation.coco_eval import NO_GROUND_TRUTH
from anydepth.evaluation.depth_curve import DepthRow
from anydepth.report.flat_config import canonical, differing_keys, training_config
from anydepth.report.labels import label_settings
from anydepth.report.runs import Run


@dataclass(frozen=True)
class CurvePoint:
    """One depth of a setting over its seeds.

    Attributes:
        depth: Text of the depth.
        gflops: GFLOPs of one image (2 x GMACs).
        latency_ms: Mean over runs of the median latency in ms; None if a run did not measure it.
        ap: Mean AP over seeds, in [0, 1].
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
        label: Label, unique within a comparison: the arm of an ablation, or what differs between settings.
        runs: Runs, at least one, sorted by seed.
        differing: Values of the keys that differ between the settings of the comparison, by flat key
            (``a.b.c``); None if this setting lacks the key.
        mean: Mean over seeds by the names of
            :meth:`anydepth.evaluation.curve_summary.CurveSummary.figures`; only figures that every run has.
        spread: Half the range over seeds of the same figures; 0 with one seed.
        curve_mean: Points of the mean curve, one per depth that every run evaluated, by descending cost.
    """

    label: str
    runs: tuple[Run, ...]
    differing: Mapping[str, object]
    mean: Mapping[str, float]
    spread: Mapping[str, float]
    curve_mean: tuple[CurvePoint, ...]

    @property
    def seeds(self) -> int:
        """Number of different seeds; each run of unknown seed counts as one."""
        return len(self.by_seed(lambda run: 0.0))

    @property
    def config(self) -> dict[str, object]:
        """Flat training configuration, see :func:`anydepth.report.flat_config.training_config`."""
        return training_config(self.runs[0].config)

    def by_seed(self, figure: Callable[[Run], float | None]) -> dict[str, float]:
        """Return a figure by seed, averaged over runs of the same seed.

        Two runs of one seed repeat each other; counted separately, they would pass for evidence.

        Args:
            figure: Function that returns the figure of a run, or None to leave the run out.

        Returns:
            Figures by the seed as text, or by the name of a run without a seed.
        """
        values: dict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            value = figure(run)
            if value is not None:
                values[run.name if run.seed is None else str(run.seed)].append(value)
        return {seed: fmean(found) for seed, found in values.items()}


def group_settings(runs: Sequence[Run]) -> tuple[Setting, ...]:
    """Group runs into settings, sorted by label; the order of the runs does not matter."""
    grouped: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.name):
        grouped[canonical(training_config(run.config))].append(run)
    members = [tuple(sorted(group, key=_seed_order)) for _, group in sorted(grouped.items())]
    configs = [training_config(group[0].config) for group in members]
    differing = differing_keys(configs)
    labels = label_settings([group[0] for group in members], configs)
    settings = [
        _make_setting(label, group, {key: config.get(key) for key in differing})
        for label, group, config in zip(labels, members, configs, strict=True)
    ]
    return tuple(sorted(settings, key=lambda setting: setting.label))


def select_runs(setting: Setting, runs: Sequence[Run]) -> Setting:
    """Return a setting restricted to some of its runs, at least one, with their means."""
    return _make_setting(setting.label, tuple(runs), setting.differing)


def ap_of(run: Run, depth: str) -> float | None:
    """Return AP of a run at a depth; None if it was not evaluated or the images hold no object."""
    for row in run.curve.rows:
        if row.depth == depth:
            ap = row.figures["AP"]
            return None if ap == NO_GROUND_TRUTH else ap
    return None


def half_range(values: Sequence[float]) -> float:
    """Return half the distance between the largest and the smallest value."""
    return (max(values) - min(values)) / 2


def _seed_order(run: Run) -> tuple[bool, int, str]:
    return (run.seed is None, run.seed or 0, run.name)


def _make_setting(label: str, runs: tuple[Run, ...], differing: Mapping[str, object]) -> Setting:
    bare = Setting(label, runs, differing, {}, {}, ())
    shared = set.intersection(*(set(run.summary.figures()) for run in runs))
    seeds = {
        name: list(bare.by_seed(partial(_figure, name)).values())
        for name in runs[0].summary.figures()
        if name in shared
    }
    return Setting(
        label=label,
        runs=runs,
        differing=differing,
        mean={name: fmean(values) for name, values in seeds.items()},
        spread={name: half_range(values) for name, values in seeds.items()},
        curve_mean=_curve_mean(bare),
    )


def _curve_mean(setting: Setting) -> tuple[CurvePoint, ...]:
    points = []
    for row in setting.runs[0].curve.rows:
        rows = [_find_row(run, row.depth) for run in setting.runs]
        present = [row for row in rows if row is not None]
        if len(present) == len(setting.runs):
            aps = list(setting.by_seed(partial(ap_of, depth=row.depth)).values())
            points.append(_make_point(present, aps))
    return tuple(sorted(points, key=lambda point: (-point.gflops, point.depth)))


def _figure(name: str, run: Run) -> float:
    return run.summary.figures()[name]


def _find_row(run: Run, depth: str) -> DepthRow | None:
    """Return the row of a depth if it has an AP, else None."""
    rows = [row for row in run.curve.rows if row.depth == depth and row.figures["AP"] != NO_GROUND_TRUTH]
    return rows[0] if rows else None


def _make_point(rows: Sequence[DepthRow], aps: Sequence[float]) -> CurvePoint:
    latencies = [row.latency.median_ms for row in rows if row.latency is not None]
    return CurvePoint(
        depth=rows[0].depth,
        gflops=rows[0].gflops,
        latency_ms=fmean(latencies) if len(latencies) == len(rows) else None,
        ap=fmean(aps),
        low=min(aps),
        high=max(aps),
    )
