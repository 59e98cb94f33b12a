"""What every entry point needs around its work: the configuration directory, provenance, readable errors."""

import hashlib
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from anydepth import provenance, sweep_names
from anydepth.hydra_boundary import checked_composition
from anydepth.targets import check_targets, find_target

PACKAGE_DIR = Path(__file__).resolve().parent
VERSION_BASE = "1.3"

# What neither decides nor describes a result: where it is written, logged and gone on from, and the console.
# Equal settings apart from these give the same result bit for bit, so that a finished job is not repeated.
# NOT_TRAINING in report/flat_config.py is longer: it tells which runs are of one setting and may be averaged,
# though their seeds, devices or curves differ.
WITHOUT_EFFECT = (
    "paths",
    "output",
    "ckpt_path",
    "logger",
    "callbacks.progress",
    "callbacks.last",
    "callbacks.gradient_conflict",
    "non_finite.files",
    "non_finite.weights",
)

sweep_names.register()


def config_dir() -> Path:
    """The folder of the configuration groups: inside an installed wheel, or beside ``src`` in a clone.

    Raises:
        FileNotFoundError: Neither place holds it; the installation is damaged.
    """
    places = _config_places()
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise FileNotFoundError(
        f"no configuration directory in {' or '.join(str(place) for place in places)}: install anydepth again"
    )


def _config_places() -> tuple[Path, Path]:
    return PACKAGE_DIR / "conf", PACKAGE_DIR.parent.parent / "conf"


def config_names(group: str) -> tuple[str, ...]:
    """The options of a configuration group, e.g. of ``detector``, in alphabetical order."""
    return tuple(sorted(path.stem for path in (config_dir() / group).glob("*.yaml")))


def compose(
    config_name: str | None, overrides: Sequence[str] = (), *, hydra_config: bool = False
) -> DictConfig:
    """The configuration that an entry point would get, composed from Python, also inside a Hydra job.

    Args:
        config_name: A file of :func:`config_dir` without its suffix, e.g. ``train``; None starts empty.
        overrides: As on the command line.
        hydra_config: Keep the node ``hydra`` and make it the one that ``${hydra:...}`` reads, as a job does.

    Raises:
        HydraException: An unknown file, key or group option.
    """
    hydra_state = GlobalHydra.instance()
    running, hydra_state.hydra = hydra_state.hydra, None
    try:
        with hydra.initialize_config_dir(
            str(config_dir()), version_base=VERSION_BASE, job_name=config_name or "app"
        ):
            config = hydra.compose(config_name, list(overrides), return_hydra_config=hydra_config)
    finally:
        GlobalHydra.instance().hydra = running
    if hydra_config:
        HydraConfig.instance().set_config(config)
    return config


def instantiate(config: DictConfig | Mapping[str, Any], **kwargs: object) -> Any:
    """Build what ``_target_`` names from plain values; an error keeps its own type and says where it arose.

    Args:
        config: A node with ``_target_``; nested nodes with one are built too.
        kwargs: Further arguments of the target, already built.

    Raises:
        TargetError: One of the targets does not exist, or must not be built; see
            :func:`anydepth.targets.find_target`. Nothing was built.
        Exception: What the target raised, with the configuration key as a note.
    """
    if not OmegaConf.is_config(config):
        config = OmegaConf.create(dict(config), flags={"allow_objects": True})
    check_targets(OmegaConf.to_container(config, resolve=True))
    try:
        return hydra.utils.instantiate(config, **kwargs, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is None:
            raise
        key = str(error).rpartition("full_key: ")[2]
        if "full_key: " in str(error):
            error.__cause__.add_note(f"(in the configuration key `{key.strip()}`)")
        raise error.__cause__ from None


def builder_of(target: str) -> Callable[..., Any]:
    """The callable that a ``_target_`` names.

    Raises:
        TargetError: There is no such callable, or it must not be built.
    """
    return find_target(target)


def checked(config: DictConfig) -> dict[str, Any]:
    """:func:`plain`, where every ``_target_`` may be built: what an entry point begins with.

    Raises:
        TargetError: One must not; nothing was built.
        ValueError: A setting that only the user can give is missing.
    """
    resolved = plain(config)
    check_targets(resolved)
    return resolved


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a function of a configuration a command: ``hydra.main``, with all that is composed checked first.

    Args:
        config_name: A file of :func:`config_dir` without its suffix.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        hydra_main = hydra.main(
            version_base=VERSION_BASE, config_path=str(config_dir()), config_name=config_name
        )
        command = hydra_main(task)

        @wraps(task)
        def main(*arguments: Any) -> Any:
            if any(text.startswith("--experimental-rerun") for text in sys.argv[1:]):
                # Hydra would read a pickle, which may run any code.
                sys.stderr.write(
                    "\nError: --experimental-rerun is not supported: repeat the command instead\n"
                )
                raise SystemExit(1)
            with checked_composition():
                return command(*arguments)

        return main

    return decorate


def is_sweep() -> bool:
    """Whether this process runs a job of ``--multirun``."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """A name to group the runs of a sweep by: its folder, after the study's name; None for a single run."""
    if not is_sweep():
        return None
    hydra_config = HydraConfig.get()
    study = sweep_names.chosen_study(hydra_config.runtime.choices, hydra_config.overrides.task)
    return "/".join([*([study] if study else []), Path(hydra_config.sweep.dir).name])


def run_name(folder: str | None, *, swept: Sequence[str] = ()) -> str:
    """A readable name: what is special to a job of a sweep, or detector, data and folder of a single run.

    Args:
        folder: The run's; None where it is not known yet.
        swept: Keys that the sweep varies; none: its jobs are named by their folders.
    """
    name = Path(folder).name if folder else ""
    if not HydraConfig.initialized():
        return name or "run"
    hydra_config = HydraConfig.get()
    if not is_sweep():
        choices = hydra_config.runtime.choices
        return f"{choices.get('detector')} {choices.get('data')} {name}".strip()
    varied = [text for text in hydra_config.overrides.task if text.partition("=")[0].lstrip("+") in swept]
    # A job that is composed apart from its sweep has no number.
    number = None if OmegaConf.is_missing(hydra_config.job, "num") else hydra_config.job.num
    return " ".join([*([] if number is None else [str(number)]), *(varied or [name])]).strip()[:120]


def output_folder(single: str) -> str:
    """Where an entry point other than training writes: in a sweep, to the folder of the job.

    Args:
        single: The folder of a single run.
    """
    return str(HydraConfig.get().runtime.output_dir) if is_sweep() else single


OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
OmegaConf.register_new_resolver(
    "run_name",
    lambda folder, *, _root_: run_name(folder, swept=sweep_names.remembered_keys(_root_)),
    replace=True,
)
OmegaConf.register_new_resolver("output_folder", output_folder, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, interpolations resolved, without the node ``hydra``.

    Raises:
        ValueError: A setting that only the user can give is missing.
    """
    copy = config.copy()
    with open_dict(copy):
        copy.pop("hydra", None)
    # ${hydra:...} is answered by HydraConfig, so it resolves without the node.
    try:
        resolved = OmegaConf.to_container(copy, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no value: give {error.full_key}=VALUE") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def config_hash(config: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> str:
    """A fingerprint of a plain configuration, equal in every process that trains the same thing.

    Args:
        config: What :func:`plain` returned.
        ignore: Top-level keys that may differ, e.g. the output folder.
    """
    kept = {key: value for key, value in config.items() if key not in ignore}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def result_hash(config: Mapping[str, Any]) -> str:
    """A fingerprint of the settings that decide the result of a run, wherever it is written.

    Args:
        config: What :func:`plain` returned.
    """
    folder = (config.get("paths") or {}).get("output_dir")
    return config_hash(_of_effect(config, folder))


def _of_effect(value: Any, folder: str | None, key: str = "") -> Any:
    """The settings without those of no effect, and with the run's own folder left out of paths."""
    if isinstance(value, Mapping):
        inner = {name: f"{key}.{name}" if key else str(name) for name in value}
        return {
            name: _of_effect(item, folder, inner[name])
            for name, item in value.items()
            if inner[name] not in WITHOUT_EFFECT
        }
    if isinstance(value, list):
        return [_of_effect(item, folder, key) for item in value]
    return value.replace(folder, "RUN") if folder and isinstance(value, str) else value


def goes_on(config: Mapping[str, Any]) -> bool:
    """Whether a run goes on from a checkpoint in its own folder.

    Args:
        config: What :func:`plain` returned.
    """
    checkpoint, folder = config.get("ckpt_path"), (config.get("paths") or {}).get("output_dir")
    if not checkpoint or not folder:
        return False
    return Path(checkpoint).resolve().is_relative_to(Path(folder).resolve())


def is_first_process() -> bool:
    """Whether this process is the first one of the run, also before it has joined the others."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    )


# -- provenance ----------------------------------------------------------------------------------------


def write_provenance(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Write what was run into a run folder, creating it if needed; see :mod:`anydepth.provenance`.

    The record of a run that goes on keeps what the earlier parts ran with.
    """
    repository = PACKAGE_DIR.parent.parent
    command, overrides = _command()
    description = provenance.describe(
        command=command,
        overrides=overrides,
        seed=config.get("seed"),
        config_hash=result_hash(config),
        repository=repository,
    )
    provenance.write(Path(folder), config, description, repository, goes_on=goes_on(config))


def _command() -> tuple[str, list[str]]:
    """The command line that repeats this run, or this job of a sweep alone, and its settings."""
    if not HydraConfig.initialized():
        return shlex.join(sys.argv), []
    hydra_config = HydraConfig.get()
    overrides = [str(text) for text in hydra_config.overrides.task]
    program = f"anydepth-{hydra_config.job.name}"
    return shlex.join([program, *_flags(hydra_config), *overrides, *_of_hydra(hydra_config)]), overrides


def _flags(hydra_config: Any) -> list[str]:
    """The options that chose other configuration files than those of the entry point."""
    places = {source.provider: str(source.path) for source in hydra_config.runtime.config_sources}
    flags = []
    if places.get("main", "") not in ("", *map(str, _config_places())):
        flags.append(f"--config-path={places['main']}")
    if "command-line" in places:
        flags.append(f"--config-dir={places['command-line']}")
    name = hydra_config.job.config_name
    return flags if name in (None, hydra_config.job.name) else [*flags, f"--config-name={name}"]


def _of_hydra(hydra_config: Any) -> list[str]:
    """Hydra's settings that a run depends on: not where it was written, nor who started it."""
    without = ("run", "sweep", "launcher", "sweeper", "mode")
    return [
        str(text)
        for text in hydra_config.overrides.hydra
        if re.split(r"[./@=]", str(text).lstrip("+~"))[1] not in without
    ]


# -- errors --------------------------------------------------------------------------------------------


@contextmanager
def friendly_errors() -> Iterator[None]:
    """End the user's mistakes as one readable message on stderr and exit code 1; also usable as a decorator.

    A mistake of the user is: an error class of this package, a built-in error raised by this package's own
    checks, a file that is missing or refused, and a wrong configuration. A worker process that the system
    killed ends as such a message too. Anything else is a defect and keeps its traceback, as does everything
    while the environment variable ANYDEPTH_TRACEBACK is 1.
    """
    try:
        yield
    except Exception as error:
        message = explain(error)
        if os.environ.get("ANYDEPTH_TRACEBACK") == "1" or message is None:
            raise
        sys.stdout.flush()
        sys.stderr.write(f"\nError: {message}\n")
        sys.stderr.write("(ANYDEPTH_TRACEBACK=1 shows where it was raised.)\n")
        raise SystemExit(1) from error


def explain(error: Exception) -> str | None:
    """What :func:`friendly_errors` tells the user about an error; None for a defect of the program."""
    return _message(error) if _is_users_mistake(error) or _is_lost_worker(error) else None


def _is_users_mistake(error: Exception) -> bool:
    # Lightning's class is recognised by its name because this layer does not import Lightning.
    if type(error).__name__ == "MisconfigurationException":
        return True
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return True
    if type(error).__module__.partition(".")[0] == "anydepth":
        return True
    return isinstance(error, ValueError) and _raised_by_this_package(error)


def _is_lost_worker(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _raised_by_this_package(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE_DIR)


def _message(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if _is_lost_worker(error):
        return (
            f"a process that loads images is gone: {text} Most often memory ran out: lower data.num_workers, "
            "data.batch_size or data.partner_pool. Training goes on from ckpt_path=RUN/checkpoints/last.ckpt"
        )
    if "Original Traceback (most recent call last)" in text:
        # A data loader's worker process sends its traceback as part of the message.
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, FileNotFoundError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return "\n".join([text, *getattr(error, "__notes__", [])])
