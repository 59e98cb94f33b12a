"""Any-depth detectors out of the weights of fixed ones."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anydepth import zoo
from anydepth.detector import Detector
from anydepth.detr.weights.load import read_sizes as read_detr_sizes
from anydepth.utils.messages import join_few, short_repr
from anydepth.weights.files import StateDict, WeightsError, locate, read_state_dict
from anydepth.weights.plan import UnknownLayoutError, plain_names, skip_source
from anydepth.weights.report import LoadReport
from anydepth.yolo.weights.load import read_sizes as read_yolo_sizes


class ConversionError(WeightsError):
    """Weights out of which no any-depth detector can be made as asked; the message says why."""


@dataclass(frozen=True)
class Conversion:
    """An any-depth detector that computes at full depth what its source computes.

    Attributes:
        detector: The detector, in eval mode. Below full depth it must be trained first.
        report: What came from the source, and what was filled in.
    """

    detector: Detector
    report: LoadReport


def convert(
    source: str | Path | Mapping[str, Tensor],
    detector: str = "auto",
    *,
    class_names: Sequence[str] | None = None,
    **settings: object,
) -> Conversion:
    """Make an any-depth detector out of the weights of a fixed one.

    Its full depth runs the source's own weights. What only shallower depths use starts from them: skip norms
    as copies of the full norms, skip fusion kernels as the part of the full kernel that sees the same
    channels.

    Args:
        source: A file, a folder, a repository of the hub or a state dict, of a whole detector in any layout
            that :func:`anydepth.load_weights` reads.
        detector: Name of the any-depth detector to make; ``auto``: the one whose sizes the source has.
        class_names: Names of the source's classes in their order; None: those in the file, or else their
            numbers.
        settings: Settings of the detector that differ from its preset, e.g. ``input_size=[512, 512]``.

    Raises:
        ZooError: An unknown detector or setting.
        ConversionError: No detector has the source's sizes, the source is an any-depth detector already or
            only a part of a detector, or it has another number of classes than ``class_names``.
        WeightsError: The source cannot be read or does not fit the detector.
        HubError: A repository cannot be read, or holds no weights.

    Example:
        >>> fixed = zoo.build("yolo_tiny", num_classes=2, any_depth=False)
        >>> made = convert(fixed.state_dict())
        >>> made.detector.config["name"], made.detector.class_names
        ('yolo_tiny', ('0', '1'))
    """
    if isinstance(source, str | Path):
        source = locate(source)
    state = read_state_dict(source)
    best = _choose(state, detector, settings)
    names = _class_names(class_names, state, best.report.file_classes)
    made = zoo.build(best.name, num_classes=len(names), **best.settings)
    made.reset_classes(names)
    # From the file: what lies beside it may tell of a network that computes something else.
    report = zoo.load_weights(made, source)
    return Conversion(made.eval(), report)


def convert_into(
    detector: Detector, source: str | Path | Mapping[str, Tensor], *, new_classes: bool = False
) -> LoadReport:
    """Fill an any-depth detector with the weights of a fixed one, as :func:`convert` does.

    Class heads hold the source's values where both have as many classes, and those of the classes that both
    name alike where they have not.

    Args:
        detector: The detector to fill, with the class names of its data.
        source: See :func:`convert`.
        new_classes: Whether class heads keep their initial values if the source's classes fit neither by
            number nor by name.

    Returns:
        What came from the source, and what was filled in.

    Raises:
        ConversionError: The detector has a fixed depth, or blocks that the source lacks, the source is of
            another architecture, an any-depth detector already or only a part of a detector, or its classes
            fit neither by number nor by name. The detector is not changed.
        WeightsError: The source cannot be read.
        HubError: A repository cannot be read, or holds no weights.
    """
    if isinstance(source, str | Path):
        source = locate(source)
    state = read_state_dict(source)
    name = str(detector.config["name"])
    remedy = _remedy(state, name)
    if not detector.depth_space.stages:
        raise ConversionError(
            f"got detector={name}, which has a fixed depth; {remedy or 'give the any-depth detector to make'}"
        )
    sketch = copy.deepcopy(detector).to("meta")
    try:
        report = zoo.load_weights(sketch, source)
    except WeightsError as error:
        raise ConversionError(f"{error}{remedy and f'. For conversion, {remedy}'}") from error
    fit = _Fit(name, {}, report)
    _check_fixed(fit, state)
    if not fit.is_complete:
        raise ConversionError(f"{_incomplete(fit, state)}{remedy and f'. For conversion, {remedy}'}")
    if report.reinitialised and not new_classes:
        raise ConversionError(_other_classes(detector, state, report))
    return zoo.load_weights(detector, source)


@dataclass(frozen=True)
class _Fit:
    """A detector that the source loads into.

    Attributes:
        name: Name of its preset.
        settings: Settings that differ from the preset.
        report: What is loaded.
    """

    name: str
    settings: Mapping[str, object]
    report: LoadReport

    @property
    def is_complete(self) -> bool:
        """Whether every weight of the source has a place, and every place a weight."""
        return not self.report.missing and not self.report.unused


def _choose(state: StateDict, detector: str, settings: Mapping[str, object]) -> _Fit:
    """Return the any-depth detector that the source fills.

    Raises:
        ConversionError: There is none.
    """
    sizes = _read_sizes(state)
    incomplete: list[_Fit] = []
    refusals: dict[str, str] = {}
    for name, own in _candidates(detector, sizes):
        # A stem with the same shapes elsewhere: its form follows from the source unless it is given.
        known = {key: sizes[key] for key in {"stem"} & sizes.keys() & own.keys()}
        fit = _try(state, name, {**known, **settings}, refusals)
        if fit is not None and fit.is_complete:
            return _check_fixed(fit, state)
        incomplete += [fit] if fit is not None else []
    if not incomplete:
        raise ConversionError(f"{state.origin}: {_refusal(state, sizes, refusals)}")
    nearest = min(incomplete, key=lambda fit: len(fit.report.missing) + len(fit.report.unused))
    raise ConversionError(_incomplete(nearest, state))


def _read_sizes(state: StateDict) -> Mapping[str, object]:
    """Return what is known of the sizes of a source; nothing of one of another family."""
    for read in (read_detr_sizes, read_yolo_sizes):
        try:
            return read(state)
        except UnknownLayoutError:
            continue
    return {}


def _candidates(detector: str, sizes: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the any-depth detectors that may have these sizes, with their settings."""
    for name in zoo.names() if detector == "auto" else (detector,):
        own = zoo.settings_of(name)
        same = all(own.get(key) == value for key, value in sizes.items() if key != "stem")
        if detector == name or (same and own.get("any_depth", True)):
            yield name, own


def _try(
    state: StateDict, name: str, settings: Mapping[str, object], refusals: dict[str, str]
) -> _Fit | None:
    """Return how a source fits a detector, which is built without memory, or add why it does not."""
    with torch.device("meta"):
        sketch = zoo.build(name, num_classes=len(state.class_names) or 80, **settings)
    if not sketch.depth_space.stages:
        refusals[name] = f"got detector={name}, which has a fixed depth; give the any-depth detector to make"
        return None
    try:
        return _Fit(name, settings, sketch.load_weights(dict(state.tensors)))
    except WeightsError as error:
        refusals[name] = str(error).removeprefix(f"{state.origin}: ")
        return None


def _check_fixed(fit: _Fit, state: StateDict) -> _Fit:
    """Return a fit whose source is of a fixed detector.

    Raises:
        ConversionError: The source holds weights that only shallower depths use.
    """
    skip = [plain for plain in plain_names(fit.report.loaded).values() if skip_source(plain) is not None]
    # One whose norms are shared between depths has no other mark than the names of its paths.
    skip = skip or [key for key in state.tensors if ".refinement." in key]
    if skip:
        raise ConversionError(
            f"{state.origin}: an any-depth detector already ({len(skip)} tensors such as {skip[0]} are for "
            "depths of an any-depth detector); train it further with anydepth-train weights=FILE, also with "
            "the settings of recipe=convert and convert=false"
        )
    return fit


def _remedy(state: StateDict, name: str) -> str:
    """Return which detector a source becomes; empty if that is the detector of this name, or unknown."""
    try:
        found = _choose(state, "auto", {}).name
    except WeightsError:
        return ""
    return "" if found == name else f"give detector={found}, whose sizes the weights have"


def _other_classes(detector: Detector, state: StateDict, report: LoadReport) -> str:
    known = f" ({join_few([short_repr(name) for name in state.class_names], 3)})" if state.class_names else ""
    names = join_few([short_repr(name) for name in detector.class_names], 3)
    return (
        f"{state.origin}: its {report.file_classes} classes{known or ', which it does not name,'} fit the "
        f"{detector.num_classes} of the data ({names}) neither by number nor by name: "
        f"{len(report.reinitialised)} tensors of class heads ({join_few(report.reinitialised, 3)}) would "
        "start anew. Give new_classes=true if they should"
    )


def _incomplete(fit: _Fit, state: StateDict) -> str:
    parts = [
        f"{len(keys)} tensors {what} ({join_few(keys, 3)})"
        for what, keys in (
            (f"of {fit.name} are not in it", fit.report.missing),
            (f"in it have no place in {fit.name}", fit.report.unused),
        )
        if keys
    ]
    return (
        f"{state.origin}: not the weights of a whole detector of known sizes: {' and '.join(parts)}. "
        "A backbone alone is no detector: start training with anydepth-train weights=FILE; for other sizes, "
        "give detector=NAME and its settings"
    )


def _refusal(state: StateDict, sizes: Mapping[str, object], refusals: dict[str, str]) -> str:
    if not refusals:
        # Any detector of the family knows why there is none of these sizes.
        relatives = (name for name, own in _candidates("auto", {}) if sizes and sizes.keys() <= own.keys())
        for name in relatives:
            _try(state, name, {}, refusals)
            break
    return next(iter(refusals.values()), "weights of no known family; give detector=NAME")


def _class_names(given: Sequence[str] | None, state: StateDict, count: int | None) -> tuple[str, ...]:
    """Return the names of the source's classes.

    Raises:
        ConversionError: There are more or fewer than the source has.
    """
    if given is None and not state.class_names:
        return tuple(map(str, range(count or 0)))
    names = state.class_names if given is None else tuple(given)
    if len(names) != count:
        raise ConversionError(
            f"got {len(names)} class names, expected {count}, the number of classes in {state.origin}"
        )
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConversionError(f"got the class names {join_few(twice, 3)} twice, expected different ones")
    return names
