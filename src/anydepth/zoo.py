"""Detectors by name: build them from the configuration, save their weights, load them ready to use.

A weights file is one safetensors file whose metadata holds the detector's configuration, the class names and
the version of this layout, so that :func:`load` needs nothing else; it holds no code and runs none.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from anydepth import hub
from anydepth.config.compose import compose, instantiate, option_names
from anydepth.config.targets import find_target
from anydepth.config.value_types import check_arguments
from anydepth.data.coco.packing import MAX_CATEGORIES
from anydepth.detector import Detector, Objective
from anydepth.utils.files import atomic_path
from anydepth.utils.messages import short_repr
from anydepth.weights.files import WeightsError
from anydepth.weights.plan import check_finite
from anydepth.weights.report import LoadReport

FORMAT = "anydepth"
FORMAT_VERSION = 1

# Limits of what a weights file may ask for beyond the shapes of its tensors, far above any detector here: the
# file is untrusted, and a number costs nothing to write.
_LARGEST = {
    "input_size": 8192,
    "num_queries": 10_000,
    "denoising_queries": 10_000,
    "nms_candidates": 1_000_000,
}
_LARGEST_OTHER = 65_536
# How often parts are repeated: each repetition has weights of its own.
_REPETITIONS = ("blocks", "backbone_units", "neck_units", "neck_blocks", "decoder_layers")


_GIVE = "give the weights.safetensors of a run"


class ZooError(ValueError):
    """A detector name, override or weights file that cannot be used; the message says what to change."""


def names() -> tuple[str, ...]:
    """Return the names of the detectors that :func:`build` knows: presets, also of installed packages."""
    return option_names("detector")


def build(name: str, num_classes: int = 80, **overrides: object) -> Detector:
    """Build a detector with fresh weights: the one that ``detector=NAME`` composes.

    Args:
        name: One of :func:`names`, e.g. ``detr_r50``.
        num_classes: K.
        overrides: Values that differ from ``conf/detector/NAME.yaml``, e.g. ``stem="deep"``.

    Returns:
        A detector in training mode; ``build(**detector.config)`` builds an equal one.

    Raises:
        ZooError: An unknown name or override; the message lists the allowed ones.
        ValueError: A value that the detector refuses.

    Example:
        >>> detector = build("detr_tiny", num_classes=1)
        >>> detector.num_classes, str(detector.depth_space.full)
        (1, 'full')
    """
    return _named(name, num_classes, overrides).build()


def settings_of(name: str) -> Mapping[str, object]:
    """Return the settings of a preset, of which ``num_classes`` may be null.

    Raises:
        ZooError: An unknown name.
    """
    return _named(name, 80, {}).keywords


def build_configured(name: str, settings: Mapping[str, object], num_classes: int) -> Detector:
    """Build the detector of a composed configuration, wherever its preset lies.

    Args:
        name: Name of the preset, under which the detector is saved.
        settings: Node ``detector`` of the configuration with its ``_target_``; plain values.
        num_classes: K.

    Raises:
        TargetError: The target must not be built, or does not exist.
        ZooError: The target does not return a detector.
        ValueError: A value that the detector refuses.
    """
    keywords = {key: value for key, value in settings.items() if key != "_target_"}
    keywords["num_classes"] = num_classes
    return _Blueprint(name, str(settings["_target_"]), keywords).build()


@dataclass(frozen=True)
class _Blueprint:
    """Builder and arguments of a detector.

    Attributes:
        name: Name of its preset.
        target: Full name of the function or class that builds it.
        keywords: Arguments of the target.
    """

    name: str
    target: str
    keywords: Mapping[str, Any]

    def build(self) -> Detector:
        builder = find_builder(self.target)
        check_arguments(builder, self.keywords, "detector.")
        detector = builder(**deepcopy(dict(self.keywords)))
        if not isinstance(detector, Detector):
            raise ZooError(f"{self.target} returned a {type(detector).__name__}, expected a Detector")
        detector.config = {"name": self.name, **self.keywords}
        detector.builder = self.target
        return detector


def find_builder(target: str) -> Callable[..., Detector]:
    """Return the function or class that builds a detector, if a configuration or a weights file may name it.

    Args:
        target: Full name, e.g. ``anydepth.detr.build.build_detr``; see
            :func:`anydepth.config.targets.find_target` for how other packages allow theirs.

    Raises:
        TargetError: It must not be built, or does not exist.
        ZooError: It does not say that it returns a detector, so that it is not called.
    """
    found = find_target(target)
    try:
        returned = found if isinstance(found, type) else get_type_hints(found).get("return")
    except (NameError, TypeError) as error:
        raise ZooError(
            f"{target}: its annotations cannot be read ({error}); import what they name"
        ) from error
    if not (isinstance(returned, type) and issubclass(returned, Detector)):
        raise ZooError(
            f"{target} does not return a Detector by its annotation: give it one, as in `def build(...) -> "
            "MyDetector`, or name a subclass of anydepth.detector.Detector"
        )
    return found


def _named(name: str, num_classes: int, overrides: Mapping[str, object]) -> _Blueprint:
    """Return the blueprint of a preset, after checking that its overrides exist."""
    if name not in names():
        raise ZooError(f"unknown detector {short_repr(name)}: known are {', '.join(names())}")
    keywords = deepcopy(_settings(name))
    target = str(keywords.pop("_target_"))
    unknown = sorted(set(overrides) - set(keywords))
    if unknown:
        allowed = ", ".join(sorted(set(keywords) - {"num_classes"}))
        raise ZooError(f"detector {name!r} has no setting {', '.join(unknown)}: allowed are {allowed}")
    return _Blueprint(name, target, {**keywords, **overrides, "num_classes": num_classes})


@cache
def _settings(name: str) -> dict[str, Any]:
    """Compose ``detector=NAME``; cached, because composing takes as long as building a small network."""
    try:
        config = compose(None, [f"+detector={name}"])
    except ConfigCompositionException:
        # A preset that overrides losses or recipe composes only with them around it, which takes longer.
        config = compose("train", [f"detector={name}"])
    settings = OmegaConf.to_container(config.detector, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def build_losses(name: str, overrides: Sequence[str] = ()) -> Objective:
    """Build the losses that ``losses=NAME`` composes.

    Args:
        name: One of the options of the group, e.g. ``detr`` or ``yolo_none``.
        overrides: Settings below ``losses``, e.g. ``["distillation.neck_weight=0"]``.

    Raises:
        ZooError: An unknown name; the message lists the known ones.
        HydraException: An unknown setting.
        ValueError: A value that its part does not allow.

    Example:
        >>> sorted(build_losses("detr", ["distillation.neck_weight=0"]).distilled_levels)
        ['features', 'predictions']
    """
    known = option_names("losses")
    if name not in known:
        raise ZooError(f"unknown losses {short_repr(name)}: known are {', '.join(known)}")
    config = compose(None, [f"+losses={name}", *(f"losses.{text}" for text in overrides)])
    objective: Objective = instantiate(config.losses)
    return objective


def save(detector: Detector, path: str | Path) -> Path:
    """Write the weights with everything :func:`load` needs; the file appears complete or not at all.

    Args:
        detector: Built by :func:`build` or :func:`load`.
        path: File to write, by convention ``weights.safetensors``; missing folders are created.

    Raises:
        ZooError: The detector was assembled by hand, so that no configuration describes it, or it was
            specialised.
        WeightsError: The weights hold NaN or infinity. Nothing was written.
    """
    if detector.specialised_for is not None:
        raise ZooError(
            f"got a detector that was specialised for '{detector.specialised_for}': save the original, from "
            "which every depth can be specialised again"
        )
    config = getattr(detector, "config", None)
    if not isinstance(config, Mapping) or "name" not in config:
        raise ZooError(f"{type(detector).__name__} was not built by anydepth.build: no configuration to save")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps({**config, "num_classes": detector.num_classes}),
        "builder": detector.builder,
        "class_names": json.dumps(list(detector.class_names)),
    }
    # torch.compile, of the whole or of parts, puts its name into the keys.
    weights = {
        key.replace("_orig_mod.", ""): value.cpu().contiguous()
        for key, value in detector.state_dict().items()
    }
    check_finite(weights, "the detector")
    with atomic_path(path) as partial:
        # Not save_file, which lets nobody but the writer read the file.
        partial.write_bytes(serialize(weights, metadata))
    return Path(path)


def load(path: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Detector:
    """Load the detector that :func:`save` wrote, on the CPU, in eval mode, with its class names.

    The file is untrusted: the detector that it describes is first built without memory, and for real only if
    the file holds its weights.

    Args:
        path: A file, or the folder of a training run, which win; or as a text the name ``OWNER/NAME`` of a
            repository of the Hugging Face hub, from which ``weights.safetensors`` is downloaded (extra
            ``hub``).
        revision: Branch, tag or commit of the repository; None: the main branch.
        cache_dir: Folder for downloads; None: that of ``huggingface_hub``.

    Raises:
        FileNotFoundError: There is no such file, nor such a repository
            (:class:`~anydepth.hub.HubError`).
        ValueError: A revision or a folder for downloads of a local path.
        ZooError: The file is cut short, was not written by :func:`save`, is of a newer layout, describes a
            detector that cannot be built, or its weights do not fit that detector or hold NaN.
    """
    path = hub.find_file(path, hub.WEIGHTS, revision=revision, cache_dir=cache_dir)
    contents = _read(path)
    _check_sizes(contents, path)
    try:
        blueprint = _blueprint_of(contents)
        with torch.device("meta"):
            sketch = blueprint.build()
    # Builders check values, not types: which exception a list in place of a number raises is Python's affair.
    except Exception as error:
        raise ZooError(f"{path}: its detector cannot be built: {error}") from error
    _check_fit(sketch, contents.weights, path)
    try:
        check_finite(contents.weights, str(path))
    except WeightsError as error:
        raise ZooError(str(error)) from None
    detector = blueprint.build()
    detector.load_state_dict(dict(contents.weights))
    detector.reset_classes(contents.class_names)
    detector.weights_file = Path(path)
    return detector.eval()


def load_for_evaluation(weights: str | Path | None, input_size: Sequence[int] | None = None) -> Detector:
    """Load the detector that :func:`save` wrote, at the input size that an entry point asks for.

    Args:
        weights: File of weights, or what else :func:`load` takes; None is an error that says how to give one.
        input_size: (height, width) in pixels; None: the one the detector was trained for.

    Raises:
        ValueError: No file, or an input size of another form; see :func:`load` for damaged files.
    """
    if not weights:
        raise ValueError("no weights: give weights=FILE, the weights.safetensors of a training run")
    detector = load(weights)
    if input_size is not None:
        if len(input_size) != 2:
            raise ValueError(f"got input_size={input_size}, expected [height, width] in pixels")
        detector.input_size = (int(input_size[0]), int(input_size[1]))
    return detector


def load_weights(detector: Detector, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Adapt weights of any layout that the detector knows, and load what fits.

    Args:
        detector: The detector to fill; weights without a counterpart keep their values.
        source: A checkpoint file, a folder or a repository of the hub that holds one, or a state dict; see
            :func:`~anydepth.weights.files.read_state_dict`.

    Returns:
        The load report: what was loaded, kept as initialised and left over; prints as text.

    Raises:
        ValueError: A file or layout that cannot be used; the message says why.
    """
    report = detector.load_weights(source)
    # What is known of the depths lies beside the file of other weights.
    detector.weights_file = None
    return report


def _blueprint_of(contents: "_Contents") -> _Blueprint:
    """Return the blueprint in a weights file; older files name no builder, but a preset of this package."""
    num_classes = len(contents.class_names)
    if contents.builder is None or contents.name in names():
        # The preset adds what an older file lacks.
        named = _named(contents.name, num_classes, contents.overrides)
        if contents.builder in (None, named.target):
            return named
    keywords = {**contents.overrides, "num_classes": num_classes}
    return _Blueprint(contents.name, str(contents.builder), keywords)


@dataclass(frozen=True)
class _Contents:
    """Contents of a weights file."""

    name: str
    builder: str | None
    overrides: Mapping[str, object]
    class_names: tuple[str, ...]
    weights: Mapping[str, Tensor]


def _read(path: Path) -> _Contents:
    if (path / hub.BUNDLE).is_file():
        raise FileNotFoundError(
            f"{path}: a bundle, which inference engines run (anydepth.deploy.load); {_GIVE}"
        )
    if path.is_dir():
        raise FileNotFoundError(
            f"{path}: a folder without {hub.WEIGHTS}, which a training writes when it ends; {_GIVE}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; {_GIVE}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    # Safetensors' own error, or what numbers in its header lead to.
    except Exception as error:
        raise ZooError(
            f"{path}: no complete safetensors file ({error}). If it was cut short, copy it again; weights in "
            "another format are read by anydepth.load_weights(detector, path)"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ZooError(
            f"{path}: not written by anydepth.save, so it names no detector; build the right one and use "
            "anydepth.load_weights(detector, path)"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ZooError(
            f"{path}: layout version {str(metadata.get('format_version'))[:20]}, this anydepth reads "
            f"{FORMAT_VERSION}; install the version of anydepth that wrote it"
        )
    try:
        config, class_names = json.loads(metadata["config"]), json.loads(metadata["class_names"])
        name = config.pop("name")
        del config["num_classes"]
        if not isinstance(class_names, list) or not all(isinstance(text, str) for text in class_names):
            raise ValueError(f"class names {short_repr(class_names)}")
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ZooError(
            f"{path}: its description of the detector is damaged ({short_repr(error)}); copy it again"
        ) from error
    return _Contents(str(name), metadata.get("builder"), config, tuple(class_names), weights)


def _check_sizes(contents: _Contents, path: Path) -> None:
    """Refuse numbers that would take more memory or time than the weights in the file account for.

    Raises:
        ZooError: Names the setting.
    """
    if not 1 <= len(contents.class_names) <= MAX_CATEGORIES:
        raise ZooError(f"{path}: {len(contents.class_names)} classes; allowed are 1 to {MAX_CATEGORIES}")
    for key, value in contents.overrides.items():
        largest = _LARGEST.get(key, _LARGEST_OTHER)
        if isinstance(value, list) and len(value) > 64:
            raise ZooError(
                f"{path}: its detector has {len(value)} values of {short_repr(key)}; at most 64 are read"
            )
        for number in _numbers(value):
            if not -largest <= number <= largest:  # so that NaN is refused, too
                raise ZooError(
                    f"{path}: its detector has {short_repr(key)}={short_repr(value)}; "
                    f"at most {largest} is read"
                )
    repeated = sum(sum(_numbers(contents.overrides.get(key))) for key in _REPETITIONS)
    if repeated > len(contents.weights):
        raise ZooError(
            f"{path}: its detector would have {repeated:g} repeated parts ({', '.join(_REPETITIONS)}), but "
            f"the file holds only {len(contents.weights)} tensors"
        )


def _numbers(value: object) -> Iterator[float]:
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, int | float) and not isinstance(part, bool):
            yield part


def _check_fit(detector: Detector, weights: Mapping[str, Tensor], path: Path) -> None:
    expected = {key: _form(value) for key, value in detector.state_dict().items()}
    found = {key: _form(value) for key, value in weights.items()}
    if expected == found:
        return
    missing = sorted(expected.keys() - found.keys())
    left_over = sorted(found.keys() - expected.keys())
    reshaped = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    parts = [
        f"{len(keys)} {what} (e.g. {keys[0]})"
        for what, keys in (("missing", missing), ("left over", left_over), ("of another form", reshaped))
        if keys
    ]
    raise ZooError(
        f"{path}: its weights do not fit the detector it describes, {detector.config['name']!r}: "
        f"{', '.join(parts)}. They are of another architecture or version; "
        "anydepth.load_weights(detector, path) loads what fits"
    )


def _form(tensor: Tensor) -> tuple[tuple[int, ...], bool, bool]:
    """Shape, and which kind of numbers: a copy would quietly turn one kind into another."""
    return tuple(tensor.shape), tensor.is_floating_point(), tensor.is_complex()
