"""Comparison of runs: groups of comparable runs, their differences, findings and limitations."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anydepth.report.claims.arms import detector_of, lacks_counterpart
from anydepth.report.claims.evidence import MIN_SEEDS, format_percent, join_names, separation_chance
from anydepth.report.claims.questions import Finding, answer_questions
from anydepth.report.flat_config import canonical, flatten
from anydepth.report.runs import ReportError, Run, UnusableRun
from anydepth.report.settings import CurvePoint, Setting, group_settings
from anydepth.utils.messages import join_few

__all__ = ["Comparison", "CurvePoint", "Finding", "Report", "Setting", "compare"]

# Names in one sentence: enough for most studies, few enough to read.
_MAX_NAMES = 6
# Probability of separation by chance from which a comparison gets a warning: the usual significance level.
_CHANCE_WARNING = 0.05


@dataclass(frozen=True)
class Comparison:
    """Comparable runs: of the same data and the same classes.

    Attributes:
        title: Title with data, number of validation images, classes and detectors.
        settings: Settings, at least one, sorted by label.
        findings: Findings on the claims, per detector.
        warnings: Limitations of the comparison, e.g. different input sizes or a single seed.
    """

    title: str
    settings: tuple[Setting, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Content of a comparison page.

    Attributes:
        comparisons: Comparisons; more than one if data or class lists differ, which ``notes`` states.
        unusable: Run folders that are not part of any comparison.
        notes: Notes on the report as a whole.
    """

    comparisons: tuple[Comparison, ...]
    unusable: tuple[UnusableRun, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run], unusable: Sequence[UnusableRun] = ()) -> Report:
    """Compare runs, in separate comparisons if their data or classes differ.

    Args:
        runs: Runs, at least one, with unique names, in any order.
        unusable: Run folders without a curve, which the report names.

    Raises:
        ReportError: No run has a depth curve.
    """
    if not runs:
        reasons = "; ".join(f"{run.folder}: {run.reason}" for run in unusable) or "no run is given"
        raise ReportError(f"got no run with a depth curve: {reasons}")
    groups: dict[_Data, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.name):
        groups[_Data.of(run)].append(run)
    # The largest comparison comes first.
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[1][0].name))
    return Report(
        comparisons=tuple(_comparison(data, members) for data, members in ordered),
        unusable=tuple(sorted(unusable, key=lambda run: run.folder)),
        notes=tuple(_notes([data for data, _ in ordered])),
    )


# -- data -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """Data that runs must share to be compared.

    Attributes:
        fingerprint: Fingerprint of images and annotations; None for runs of versions that did not record it.
        source: Location of the data by the configuration, for runs without a fingerprint; else empty.
        class_names: Class names by label; those of the curve if the provenance lists none.
    """

    fingerprint: str | None
    source: str
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> "_Data":
        """Return the data of a run."""
        recorded = run.provenance.get("data")
        recorded = recorded if isinstance(recorded, Mapping) else {}
        fingerprint = recorded.get("fingerprint")
        names = recorded.get("class_names")
        if not isinstance(names, list):
            names = list(run.curve.rows[0].per_class)
        return cls(
            fingerprint=str(fingerprint) if fingerprint else None,
            source="" if fingerprint else canonical(_source(run)),
            class_names=tuple(map(str, names)),
        )


def _source(run: Run) -> dict[str, object]:
    """Return the configuration keys that identify the data set."""
    data = run.config.get("data")
    flat = flatten(data) if isinstance(data, Mapping) else {}
    prefixes = ("_target_", "root", "root.", "train_", "val_", "test_")
    return {key: value for key, value in flat.items() if key.startswith(prefixes)}


def _data_name(run: Run) -> str:
    """Return a short name of the data set: that of its folder, or of a public or embedded data set."""
    source = _source(run)
    name = source.get("root.name") or source.get("root") or source.get("train_json")
    if isinstance(name, str):
        return Path(name).name or name
    target = str(source.get("root._target_", ""))
    return "embedded sample" if target.endswith(".sample_root") else "data set"


# -- one comparison --------------------------------------------------------------------------------------


def _comparison(data: _Data, runs: Sequence[Run]) -> Comparison:
    settings = group_settings(runs)
    return Comparison(
        title=_title(data, runs, settings),
        settings=settings,
        findings=answer_questions(settings),
        warnings=tuple(_warnings(data, runs, settings)),
    )


def _title(data: _Data, runs: Sequence[Run], settings: Sequence[Setting]) -> str:
    images = sorted({run.curve.images for run in runs})
    image_counts = " or ".join(map(str, images))
    classes = len(data.class_names)
    named = f" ({', '.join(data.class_names)})" if 0 < classes <= _MAX_NAMES else ""
    names = join_names(sorted({_data_name(run) for run in runs}))
    detectors = join_names(sorted({detector_of(setting) for setting in settings}))
    return (
        f"{detectors} on {names}: {image_counts} validation images, {classes} "
        f"class{'' if classes == 1 else 'es'}{named}"
    )


def _warnings(data: _Data, runs: Sequence[Run], settings: Sequence[Setting]) -> Iterator[str]:
    if data.fingerprint is None and len(runs) > 1:
        yield (
            "these runs recorded no fingerprint of their data: they are compared because their "
            "configurations name the same location and their curves the same classes"
        )
    fixed = [setting.label for setting in settings if lacks_counterpart(setting)]
    if fixed:
        yield (
            "not part of any claim, as these fixed-depth networks have no published any-depth counterpart: "
            f"{join_few(fixed, _MAX_NAMES)}"
        )
    yield from _seed_warnings(settings)
    for warning, condition_of in _CONDITIONS.items():
        conditions = sorted({text for run in runs if (text := condition_of(run))})
        if len(conditions) > 1:
            yield f"{warning}: {join_few(conditions, _MAX_NAMES)}"
    partial = [run.name for run in runs if not {"full", "minimal"} <= {row.depth for row in run.curve.rows}]
    if partial:
        yield f"curves without full or minimal depth: {join_few(partial, _MAX_NAMES)}"


def _seed_warnings(settings: Sequence[Setting]) -> Iterator[str]:
    single = [setting.label for setting in settings if setting.seeds == 1]
    if single:
        yield (
            f"one seed only, so the spread is unknown and nothing is decided (at least {MIN_SEEDS} are "
            f"needed): {join_few(single, _MAX_NAMES)}"
        )
    counts = {setting.seeds for setting in settings}
    if len(counts) > 1:
        yield f"settings have between {min(counts)} and {max(counts)} seeds"
    seed_sets = {frozenset(run.seed for run in setting.runs) for setting in settings}
    if len(counts) == 1 and len(seed_sets) > 1:
        yield "settings were trained with different seeds, so they cannot be paired"
    fewest = min(counts)
    chance = separation_chance(fewest, fewest)
    if fewest >= MIN_SEEDS and chance >= _CHANCE_WARNING:
        yield (
            f"few seeds: with {fewest} and {fewest} seeds of two equal settings, all of one lie above all of "
            f"the other by chance in {format_percent(chance)} of cases"
        )
    for setting in settings:
        if setting.seeds < len(setting.runs):
            yield f"{setting.label} repeats seeds: runs with the same seed count once, by their mean"


def _input_size(run: Run) -> str:
    height, width = run.curve.input_size
    return f"{height}x{width}"


def _clipping(run: Run) -> str:
    # Versions that did not record it clipped all boxes.
    return "not clipped" if run.curve.boxes_clipped is False else "clipped"


def _device(run: Run) -> str:
    return run.curve.protocol.device if run.curve.protocol else ""


def _commit(run: Run) -> str:
    git = run.provenance.get("git")
    return str(git.get("commit", ""))[:12] if isinstance(git, Mapping) else ""


def _torch(run: Run) -> str:
    versions = run.provenance.get("versions")
    return str(versions.get("torch", "")) if isinstance(versions, Mapping) else ""


_CONDITIONS: Mapping[str, Callable[[Run], str]] = {
    "AP was measured at different input sizes": _input_size,
    "AP was measured at different precisions": lambda run: run.curve.precision,
    "boxes were clipped to the image before AP, or not, as families and versions differ": _clipping,
    "AP was measured on different numbers of images, as some could not be read": lambda run: str(
        run.curve.images
    ),
    "latency is not comparable, as it was measured on different devices": _device,
    "trained by different commits of the code": _commit,
    "trained with different versions of torch": _torch,
}


# -- the report as a whole -------------------------------------------------------------------------------


def _notes(data_sets: Sequence[_Data]) -> Iterator[str]:
    if len(data_sets) < 2:
        return
    reasons = []
    if len({(data.fingerprint, data.source) for data in data_sets}) > 1:
        reasons.append("data")
    if len({data.class_names for data in data_sets}) > 1:
        reasons.append("class lists")
    yield (
        f"The runs have different {join_names(reasons)}, so their AP cannot be compared: they are shown "
        f"separately, in {len(data_sets)} comparisons."
    )
    if any(data.fingerprint is None for data in data_sets) and any(data.fingerprint for data in data_sets):
        yield (
            "Some runs recorded no fingerprint of their data, as earlier versions did not: they are separate "
            "from the others, even if the data is the same."
        )
