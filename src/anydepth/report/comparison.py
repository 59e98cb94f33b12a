"""Runs put side by side: which may be compared, in what they differ, and what they show."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anydepth.report.claims.arms import detector_of, unused
from anydepth.report.claims.evidence import FEWEST_SEEDS, listed, percent, separation_chance
from anydepth.report.claims.questions import Finding, findings_of
from anydepth.report.flat_config import canonical, flatten
from anydepth.report.runs import ReportError, Run, UnusableRun
from anydepth.report.settings import CurvePoint, Setting, group_settings

__all__ = ["Comparison", "CurvePoint", "Finding", "Report", "Setting", "compare"]

# Names in one sentence.
_MOST = 6
# Share of cases from which the play of chance is worth a warning of its own.
_OFTEN = 0.05


@dataclass(frozen=True)
class Comparison:
    """Runs that may be compared: of the same data and the same classes.

    Attributes:
        title: Names data, number of validation images, classes and detectors.
        settings: At least one, sorted by label.
        findings: What they say about the claims, per detector.
        warnings: What limits the comparison, e.g. other input sizes or a single seed.
    """

    title: str
    settings: tuple[Setting, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything that a comparison page shows.

    Attributes:
        comparisons: More than one where data or class lists differ; ``notes`` says so.
        unusable: Run folders that are not part of any comparison.
        notes: What holds for the report as a whole.
    """

    comparisons: tuple[Comparison, ...]
    unusable: tuple[UnusableRun, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run], unusable: Sequence[UnusableRun] = ()) -> Report:
    """Put runs side by side, apart where their data or classes differ.

    Args:
        runs: At least one, with unique names, in any order.
        unusable: Run folders without a curve, to be named.

    Raises:
        ReportError: No run has a depth curve.
    """
    if not runs:
        reasons = "; ".join(f"{run.folder}: {run.reason}" for run in unusable) or "no run is given"
        raise ReportError(f"no run with a depth curve: {reasons}")
    groups: dict[_Data, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.name):
        groups[_Data.of(run)].append(run)
    # The larger comparison comes first.
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[1][0].name))
    return Report(
        comparisons=tuple(_comparison(data, members) for data, members in ordered),
        unusable=tuple(sorted(unusable, key=lambda run: run.folder)),
        notes=tuple(_notes([data for data, _ in ordered])),
    )


# -- which data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """What runs must share to be compared.

    Attributes:
        fingerprint: Of images and annotations; None in runs from before it was recorded.
        source: Where the data comes from by the configuration, for these runs alone.
        class_names: In the order of the classes; as the curve lists them where nothing else does.
    """

    fingerprint: str | None
    source: str
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> "_Data":
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
    """The keys of the configuration that say which data set it is."""
    data = run.config.get("data")
    flat = flatten(data) if isinstance(data, Mapping) else {}
    kept = ("_target_", "root", "root.", "train_", "val_", "test_")
    return {key: value for key, value in flat.items() if key.startswith(kept)}


def _data_name(run: Run) -> str:
    """A short name of the data set: the last part of where it lies, or that of a public or embedded one."""
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
        findings=findings_of(settings),
        warnings=tuple(_warnings(data, runs, settings)),
    )


def _title(data: _Data, runs: Sequence[Run], settings: Sequence[Setting]) -> str:
    images = sorted({run.curve.images for run in runs})
    counted = " or ".join(map(str, images))
    classes = len(data.class_names)
    named = f" ({', '.join(data.class_names)})" if 0 < classes <= _MOST else ""
    names = listed(sorted({_data_name(run) for run in runs}))
    detectors = listed(sorted({detector_of(setting) for setting in settings}))
    return (
        f"{detectors} on {names}: {counted} validation images, {classes} "
        f"class{'' if classes == 1 else 'es'}{named}"
    )


def _warnings(data: _Data, runs: Sequence[Run], settings: Sequence[Setting]) -> Iterator[str]:
    if data.fingerprint is None and len(runs) > 1:
        yield (
            "these runs recorded no fingerprint of their data: they are compared because their "
            "configurations name the same place and their curves the same classes"
        )
    fixed = [setting.label for setting in settings if unused(setting)]
    if fixed:
        yield (
            "of a fixed-depth network that is published against no any-depth detector, and so part of no "
            f"claim: {_some(fixed)}"
        )
    yield from _seed_warnings(settings)
    for what, of in _CONDITIONS.items():
        found = sorted({text for run in runs if (text := of(run))})
        if len(found) > 1:
            yield f"{what}: {listed(found[:_MOST])}{' and others' if len(found) > _MOST else ''}"
    partial = [run.name for run in runs if not {"full", "minimal"} <= {row.depth for row in run.curve.rows}]
    if partial:
        yield f"without full or minimal depth in their curve: {_some(partial)}"


def _seed_warnings(settings: Sequence[Setting]) -> Iterator[str]:
    single = [setting.label for setting in settings if setting.seeds == 1]
    if single:
        yield (
            f"one seed only, so that no spread is known and nothing is decided: {_some(single)}; "
            f"at least {FEWEST_SEEDS} are needed"
        )
    counts = {setting.seeds for setting in settings}
    if len(counts) > 1:
        yield f"settings have between {min(counts)} and {max(counts)} seeds"
    sets = {frozenset(run.seed for run in setting.runs) for setting in settings}
    if len(counts) == 1 and len(sets) > 1:
        yield "settings were trained with different seeds, so that none can be paired"
    fewest = min(counts)
    if fewest >= FEWEST_SEEDS and separation_chance(fewest, fewest) >= _OFTEN:
        yield (
            f"few seeds: of {fewest} and {fewest} of two equal settings, all of one lie above all of the "
            f"other by chance in {percent(separation_chance(fewest, fewest))} of cases"
        )
    for setting in settings:
        if setting.seeds < len(setting.runs):
            yield f"{setting.label} repeats seeds: runs of one seed count once, with their mean"


def _input_size(run: Run) -> str:
    height, width = run.curve.input_size
    return f"{height}x{width}"


def _device(run: Run) -> str:
    return run.curve.protocol.device if run.curve.protocol else ""


def _commit(run: Run) -> str:
    git = run.provenance.get("git")
    return str(git.get("commit", ""))[:12] if isinstance(git, Mapping) else ""


def _torch(run: Run) -> str:
    versions = run.provenance.get("versions")
    return str(versions.get("torch", "")) if isinstance(versions, Mapping) else ""


_CONDITIONS: Mapping[str, Callable[[Run], str]] = {
    "AP is of different input sizes": _input_size,
    "AP is of different precisions": lambda run: run.curve.precision,
    "AP is of different numbers of images, as some could not be read": lambda run: str(run.curve.images),
    "latency is not comparable, as it was measured on different devices": _device,
    "trained by different commits of the code": _commit,
    "trained with different versions of torch": _torch,
}


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST
    return f"{', '.join(names[:_MOST])} and {more} more" if more > 0 else listed(names)


# -- the report as a whole -------------------------------------------------------------------------------


def _notes(found: Sequence[_Data]) -> Iterator[str]:
    if len(found) < 2:
        return
    reasons = []
    if len({(data.fingerprint, data.source) for data in found}) > 1:
        reasons.append("data")
    if len({data.class_names for data in found}) > 1:
        reasons.append("class lists")
    yield (
        f"The runs are of different {listed(reasons)}, so that their AP cannot be compared: they are shown "
        f"apart, in {len(found)} comparisons."
    )
    if any(data.fingerprint is None for data in found) and any(data.fingerprint for data in found):
        yield (
            "Some runs recorded no fingerprint of their data, as earlier versions did not: they are apart "
            "from those that did, even if it is the same data."
        )
