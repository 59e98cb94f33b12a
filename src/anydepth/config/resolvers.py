"""OmegaConf resolvers of ``conf/``: names of sweeps, jobs and runs, the same for the same command.

``${study:}`` names the folder of a sweep, ``${job:}`` that of one of its jobs; ``${sweep_name:}`` and
``${run_name:}`` name runs for loggers, ``${output_folder:}`` is the output folder of an entry point.
The swept keys are known only where the sweep starts. They stay in OmegaConf's cache, which Hydra passes on to
the jobs, as it does with the time of ``${now:}``.
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

T = TypeVar("T")

_NAMED = ("experiment", "detector", "data", "seed")
"""Settings that the folder path of a study names, and the seed, so that a study may get more seeds later."""

_NOT_CHOSEN = ("family", "dataset_kind", "hydra")
"""Groups whose option the detector or the data set chooses, and Hydra's own."""

TRAINING_GROUPS = ("losses", "recipe", "augmentation")
"""Groups of training that data presets may override, so that other commands have them too, without effect."""

_WIRING = ("hydra:", "data:", "defaults:")
"""Nodes of a command's file that nobody sets by hand."""

_MAX_NAME_LENGTH = 120
"""Characters of a job's folder before its hash; file systems allow 255 bytes."""


def swept_overrides(config: DictConfig) -> list[Override]:
    """Return the settings that a sweep varies, those of its configuration first.

    Args:
        config: Configuration that Hydra composed for the sweep, with its node ``hydra``.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    chosen = _parse([f"{key}={value}" for key, value in params.items()])
    given = _parse(config.hydra.overrides.task)
    keys = {override.key_or_group for override in given}
    swept = [override for override in given if override.is_sweep_override()]
    return [override for override in chosen if override.key_or_group not in keys] + swept


def study_name(config: DictConfig) -> str:
    """Return experiment, then detector and data, then a hash of the other settings that all jobs share.

    Args:
        config: Configuration that Hydra composed for the sweep, with its node ``hydra``.
    """
    choices, given = config.hydra.runtime.choices, _parse(config.hydra.overrides.task)
    swept = _swept_keys(config)
    common = [
        str(override.input_line)
        for override in given
        if override.key_or_group not in (*_NAMED, *swept) and not override.is_sweep_override()
    ]
    values = {
        override.key_or_group: str(override.input_line).partition("=")[2].replace(",", "+")
        for override in given
    }
    parts = [values.get(group, str(choices[group])) for group in ("detector", "data")]
    study = choices.get("experiment") or "sweep"
    return f"{study}/{'_'.join([*map(_clean, parts), *([_digest(common, 6)] if common else [])])}"


def job_name(overrides: Sequence[str], swept: Iterable[str]) -> str:
    """Return the settings that distinguish this job, in readable form, then a hash of all its settings.

    Args:
        overrides: All settings of the job.
        swept: Keys that the sweep varies; empty: all settings are named.

    Example:
        >>> job_name(["recipe.lr=0.1", "data=bccd"], swept=["recipe.lr"])
        'lr_0.1-17ec9afb'
    """
    keys = set(swept)
    named = [
        f"{key.rpartition('.')[2].rpartition('/')[2]}_{value}"
        for key, _, value in (text.partition("=") for text in overrides)
        if not keys or key.lstrip("+") in keys
    ]
    readable = "-".join(_clean(text) for text in named)[:_MAX_NAME_LENGTH].rstrip("-.")
    return f"{readable or 'default'}-{_digest(overrides, 8)}"


def register() -> None:
    """Register the resolvers with OmegaConf; repeated calls have no effect."""
    OmegaConf.register_new_resolver("study", lambda *, _root_: _cached(_root_, study_name), replace=True)
    OmegaConf.register_new_resolver("job", _resolve_job, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("run_name", _resolve_run_name, replace=True)
    OmegaConf.register_new_resolver("output_folder", output_folder, replace=True)
    OmegaConf.register_new_resolver("option_list", option_list, replace=True)
    OmegaConf.register_new_resolver("setting_list", setting_list, replace=True)


def record_sweep(config: DictConfig) -> None:
    """Record the swept keys for the jobs; to be called where a sweep starts."""
    if "detector" in config.hydra.runtime.choices:  # Only training names studies.
        _cached(config, study_name)
    _cached(config, _swept_keys)
    # Each start of a sweep gets a new id, also within one process.
    _cache(config)["sweep_id"] = uuid.uuid4().hex


def recorded_keys(config: DictConfig) -> list[str]:
    """Return the swept keys that :func:`record_sweep` recorded; empty if it was not called."""
    return list(_cache(config).get(_swept_keys.__name__, ()))


def sweep_id(config: DictConfig) -> str | None:
    """Return the id of this start of a sweep, the same in all its jobs; None outside a sweep."""
    found = _cache(config).get("sweep_id")
    return None if found is None else str(found)


def is_sweep() -> bool:
    """Return whether this process runs a job of ``--multirun``."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """Return a name that groups the runs of a sweep, ``STUDY/FOLDER``; None for a single run."""
    if not is_sweep():
        return None
    hydra_config = HydraConfig.get()
    study = hydra_config.runtime.choices.get("experiment")
    return "/".join([*([study] if study else []), Path(hydra_config.sweep.dir).name])


def run_name(folder: str | None, *, swept: Sequence[str] = ()) -> str:
    """Return a readable name: the swept settings of a job, or detector, data and folder of a single run.

    Args:
        folder: Folder of the run; None if it is not known yet.
        swept: Keys that the sweep varies; empty: its jobs are named by their folders.
    """
    name = Path(folder).name if folder else ""
    if not HydraConfig.initialized():
        return name or "run"
    hydra_config = HydraConfig.get()
    if not is_sweep():
        choices = hydra_config.runtime.choices
        return f"{choices.get('detector')} {choices.get('data')} {name}".strip()
    varied = [text for text in hydra_config.overrides.task if text.partition("=")[0].lstrip("+") in swept]
    # A job that is composed outside its sweep has no number.
    number = None if OmegaConf.is_missing(hydra_config.job, "num") else hydra_config.job.num
    return " ".join([*([] if number is None else [str(number)]), *(varied or [name])]).strip()[:120]


def output_folder(single: str) -> str:
    """Return the output folder of an entry point other than training: in a sweep, that of the job.

    Args:
        single: Folder of a single run.
    """
    return str(HydraConfig.get().runtime.output_dir) if is_sweep() else single


def option_list(*, _root_: DictConfig) -> str:
    """Return the groups of a command with the options that a user may choose, a line each, for its help.

    Parts of other options, pointers and groups that detector or data set choose are left out. Presets in a
    folder given with ``--config-dir`` and those of installed packages are included.
    """
    if not GlobalHydra.instance().is_initialized():
        return ""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    used = [str(group) for group in _root_.hydra.runtime.choices]
    if _root_.hydra.job.config_name != "train":
        used = [group for group in used if group not in TRAINING_GROUPS]
    groups = [group for group in loader.list_groups("") if group in used]
    for group in [*groups, "hydra/launcher", "hydra/sweeper"]:
        options = [name for name in loader.get_group_options(group) if not name.startswith("_")]
        if options and group not in _NOT_CHOSEN:
            lines.append(f"{group}: {', '.join(options)}")
    return "\n".join(lines)


def setting_list(*, _root_: DictConfig) -> str:
    """Return the settings of a command with the comments and examples of its file in ``conf/``, for its help.

    Training has too many files for that: Hydra's placeholder for the composed values, which it fills in.
    """
    name = str(_root_.hydra.job.config_name)
    places = [
        Path(str(source.path)) for source in _root_.hydra.runtime.config_sources if source.schema == "file"
    ]
    found = [place / f"{name}.yaml" for place in places if (place / f"{name}.yaml").is_file()]
    if name == "train" or not found:
        return "$CONFIG"
    blocks = re.split(r"\n{2,}", found[0].read_text(encoding="utf-8").strip())
    first, *others = blocks
    # Examples stand above the list of defaults.
    shown = [first.partition("\ndefaults:")[0], *(part for part in others if not part.startswith(_WIRING))]
    return "\n\n".join(shown).replace("$", "$$")  # Hydra fills in what follows a single one.


def _resolve_run_name(folder: str | None, *, _root_: DictConfig) -> str:
    return run_name(folder, swept=recorded_keys(_root_))


def _resolve_job(*, _root_: DictConfig) -> str:
    return job_name(_root_.hydra.overrides.task, _cached(_root_, _swept_keys))


def _cached(config: DictConfig, compute: Callable[[DictConfig], T]) -> T:
    """Compute a value once per configuration; jobs share the values of their sweep."""
    cache = _cache(config)
    if compute.__name__ not in cache:
        cache[compute.__name__] = compute(config)
    found: T = cache[compute.__name__]
    return found


def _cache(config: DictConfig) -> dict[str, Any]:
    cache: dict[str, Any] = OmegaConf.get_cache(config)["anydepth.sweep"]
    return cache


def _swept_keys(config: DictConfig) -> list[str]:
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return sorted({*map(str, params), *(override.key_or_group for override in swept_overrides(config))})


def _parse(overrides: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides([str(text) for text in overrides])


def _clean(text: str) -> str:
    # A folder with "=" or "," in its name would have to be quoted as a value on the command line.
    return re.sub(r"[^A-Za-z0-9_.+-]+", ".", text).strip(".")


def _digest(texts: Iterable[str], length: int) -> str:
    return hashlib.sha256("\n".join(sorted(map(str, texts))).encode()).hexdigest()[:length]
