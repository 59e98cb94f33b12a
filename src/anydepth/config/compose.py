"""Composing and instantiating configurations: where they lie, what they resolve to, and entry points."""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import InstantiationException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from anydepth.config import presets, resolvers
from anydepth.config.errors import readable_errors
from anydepth.config.hydra_node import checked_composition
from anydepth.config.targets import check_targets
from anydepth.config.value_types import ValueTypeError, check_types
from anydepth.utils.command_line import name_positional, quote_comparisons
from anydepth.utils.interrupt import readable_interrupt
from anydepth.utils.version import package_version

PACKAGE_DIR = Path(__file__).resolve().parents[1]
VERSION_BASE = "1.3"
_PRINTING = frozenset({"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"})
"""Options of Hydra that only print."""

# What Hydra keeps once per process and overwrites when it is initialized: the running job, its name, which
# the next jobs of a sweep take for theirs, and the version whose defaults it follows.
_PROCESS_STATE: tuple[type, ...] = (GlobalHydra, JobRuntime, VersionBase)
_PROCESS_STATE_LOCK = threading.RLock()

resolvers.register()
presets.register()


def config_dir() -> Path:
    """Return the folder of the configuration groups: inside an installed wheel, or beside ``src`` in a clone.

    Raises:
        FileNotFoundError: Neither place holds it; the installation is damaged.
    """
    places = config_places()
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise FileNotFoundError(
        f"no configuration directory in {' or '.join(str(place) for place in places)}: install anydepth again"
    )


def config_places() -> tuple[Path, Path]:
    """Return where the configuration may lie: in an installed wheel, then in a clone."""
    return PACKAGE_DIR / "conf", PACKAGE_DIR.parent.parent / "conf"


def option_names(group: str) -> tuple[str, ...]:
    """Return the options of a configuration group, e.g. of ``detector``, in alphabetical order.

    They are those of ``conf/`` and of installed packages. Files that begin with ``_`` are parts of others.
    """
    folders = (config_dir(), *presets.preset_folders())
    return tuple(
        sorted(
            {
                path.stem
                for folder in folders
                for path in (folder / group).glob("*.yaml")
                if not path.stem.startswith("_")
            }
        )
    )


def compose(
    config_name: str | None, overrides: Sequence[str] = (), *, hydra_config: bool = False
) -> DictConfig:
    """Compose the configuration that an entry point would get, without effect on a Hydra job that is running.

    Threads may call this at the same time; they wait for each other.

    Args:
        config_name: A file of :func:`config_dir` without its suffix, e.g. ``train``; None starts empty.
        overrides: As on the command line.
        hydra_config: Keep the node ``hydra`` and make it the one that ``${hydra:...}`` reads, as a job does.

    Raises:
        HydraException: An unknown file, key or group option.
    """
    name = config_name or "app"
    with (
        _fresh_hydra(),
        hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE, job_name=name),
        checked_composition(),
    ):
        config = hydra.compose(
            config_name, [quote_comparisons(text) for text in overrides], return_hydra_config=hydra_config
        )
    if hydra_config:
        HydraConfig.instance().set_config(config)
    return config


@contextmanager
def _fresh_hydra() -> Iterator[None]:
    """Within the block, Hydra is as in a new process; afterwards it is the one of before, job and all."""
    with _PROCESS_STATE_LOCK:
        instances: dict[type, Any] = Singleton._instances
        former = {kind: instances.pop(kind) for kind in _PROCESS_STATE if kind in instances}
        try:
            yield
        finally:
            for kind in _PROCESS_STATE:
                instances.pop(kind, None)
            instances.update(former)


def instantiate(config: DictConfig | Mapping[str, Any], **kwargs: object) -> Any:
    """Build the object that ``_target_`` names; an error keeps its own type and says where it arose.

    Args:
        config: A node with ``_target_``; nested nodes with one are built too.
        kwargs: Further arguments of the target, already built.

    Raises:
        TargetError: One of the targets does not exist, or must not be built; see
            :func:`anydepth.config.targets.find_target`. Nothing was built.
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
        _refuse_missing(error.__cause__, key.strip())
        if "full_key: " in str(error):
            error.__cause__.add_note(f"(in the configuration key `{key.strip()}`)")
        raise error.__cause__ from None


def _refuse_missing(cause: BaseException, key: str) -> None:
    """Name the settings that a target needs, if a call without them is what failed.

    Raises:
        ValueTypeError: Settings are missing.
    """
    match = re.search(r"missing \d+ required .*arguments?: (.*)", str(cause))
    frames = traceback.extract_tb(cause.__traceback__)
    # In the target itself, it would be a defect.
    if isinstance(cause, TypeError) and match and "/hydra/_internal/" in Path(frames[-1].filename).as_posix():
        names = [f"{key}.{name}" for name in re.findall(r"'(\w+)'", match[1])]
        raise ValueTypeError(f"{', '.join(names)}: no value, but needed; give {names[0]}=VALUE") from None


def check_config(config: DictConfig, command: str) -> dict[str, Any]:
    """Resolve a configuration; check its types, and that every ``_target_`` may be built.

    Args:
        config: Composed configuration.
        command: File of :func:`config_dir` that it was composed from, e.g. ``train``.

    Raises:
        TargetError: One must not be built; nothing was built.
        ValueTypeError: A key is unknown, or its value of the wrong type.
        ValueError: A setting that only the user can give is missing.
    """
    resolved = resolve_config(config)
    check_targets(resolved)
    check_types(config, command)
    return resolved


def entry_point(
    config_name: str, *, positional: str | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a command of a function of a configuration: ``hydra.main`` that checks what it composed first.

    Args:
        config_name: A file of :func:`config_dir` without its suffix.
        positional: Setting whose value may be the first argument, without its key; None: none may.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        hydra_main = hydra.main(
            version_base=VERSION_BASE, config_path=str(config_dir()), config_name=config_name
        )
        command = hydra_main(task)

        @wraps(task)
        def main(*arguments: Any) -> Any:
            if _PRINTING.intersection(text.partition("=")[0] for text in sys.argv[1:]):
                with ended_by_closed_pipe():
                    return run_command(*arguments)
            return run_command(*arguments)

        def run_command(*arguments: Any) -> Any:
            if "--version" in sys.argv[1:]:
                # Hydra would print its own.
                print(f"anydepth-{config_name} {package_version()}")
                return None
            if any(text.startswith("--experimental-rerun") for text in sys.argv[1:]):
                # Hydra would read a pickle, which may run any code.
                sys.stderr.write(
                    "\nError: --experimental-rerun is not supported: repeat the command instead\n"
                )
                raise SystemExit(1)
            given = sys.argv[1:] if positional is None else name_positional(sys.argv[1:], positional)
            # In place: Hydra reads them there, and the provenance of a run records them.
            sys.argv[1:] = [quote_comparisons(text) for text in given]
            with readable_interrupt(), readable_errors():
                presets.preset_folders()  # Hydra would show a broken one as a traceback.
            with readable_interrupt(), checked_composition(exits=not os.environ.get("HYDRA_FULL_ERROR")):
                return command(*arguments)

        return main

    return decorate


@contextmanager
def ended_by_closed_pipe() -> Iterator[None]:
    """End the process without a message if its output is closed early, as by ``--help | head``.

    Only for commands that print and do nothing else: in a run, the signal would also come from connections.
    """
    number = getattr(signal, "SIGPIPE", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        sys.stdout.flush()
        signal.signal(number, former)


def resolve_config(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers, interpolations resolved, without the node ``hydra``.

    Raises:
        ValueError: A setting that only the user can give is missing.
    """
    # Key by key: the node hydra is half of a configuration, and a copy without it would take as long again.
    try:
        return {str(key): _resolve_node(config[key]) for key in config if key != "hydra"}
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no value: give {error.full_key}=VALUE") from error


def _resolve_node(node: Any) -> Any:
    if not OmegaConf.is_config(node):
        return node
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
