"""Security check of the ``hydra`` node of a composed configuration, before Hydra acts on it.

Beside the nodes that a run builds, Hydra builds callbacks, launchers and sweepers, configures logging and
sets environment variables, all from the node ``hydra`` of a configuration whose files may be untrusted.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anydepth.config.renamed import RenamedKeyError, check_groups, check_overrides, explain_missing
from anydepth.config.resolvers import TRAINING_GROUPS
from anydepth.config.targets import TargetError, check_targets, find_target
from anydepth.config.value_types import ValueTypeError, check_added, check_types, keep_texts, nearest_key
from anydepth.utils.messages import short_repr

_BUILT = ("callbacks", "launcher", "sweeper")
_LOGGING = ("job_logging", "hydra_logging")
_LOGGING_CLASSES = frozenset(
    {
        "colorlog.ColoredFormatter",
        "logging.FileHandler",
        "logging.Formatter",
        "logging.NullHandler",
        "logging.StreamHandler",
    }
)
# Settings of launchers that hold commands or options of commands.
_COMMANDS = ("additional_parameters", "python", "setup", "srun_args")
_LOADS = "load_configuration"


@contextmanager
def checked_composition(*, exits: bool = False) -> Iterator[None]:
    """Within the block, Hydra rejects every configuration that :func:`check_hydra_node` rejects.

    Hydra builds its callbacks right after it has composed, and offers no hook in between. Types of keys and
    values are checked here, too, so that a wrong one ends before a folder is made.

    Args:
        exits: Whether an error ends the program with its message; Hydra would advise how to see a traceback.
    """
    former = getattr(ConfigLoaderImpl, _LOADS)
    original = inspect.unwrap(former)  # Of a block within another, which may exit, the inner one decides.

    @wraps(original)
    def load(*arguments: Any, **keywords: Any) -> DictConfig:
        try:
            return compose(*arguments, **keywords)
        except HydraException as error:
            if not exits:
                raise
            reason = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
            sys.stdout.flush()
            sys.stderr.write(f"\nError: {error}{reason}\n")
            raise SystemExit(1) from error

    def compose(*arguments: Any, **keywords: Any) -> DictConfig:
        given = inspect.signature(original).bind(*arguments, **keywords)
        command, overrides = given.arguments.get("config_name"), given.arguments.get("overrides", ())
        try:
            check_overrides(overrides)
            _check_training_groups(command, overrides)
            config: DictConfig = original(*arguments, **keywords)
            check_groups(config)
            check_hydra_node(config)
            keep_texts(config, overrides, command)
            check_types(config, command)
            check_added(config, overrides, command)
        except (TargetError, RenamedKeyError, ValueTypeError) as error:
            # Hydra prints only the message of its own errors, without notes.
            raise ConfigCompositionException(
                "\n".join([str(error), *getattr(error, "__notes__", [])])
            ) from error
        except ValueError as error:
            if "Config group override" not in str(error):
                raise
            # Hydra's message names neither the group nor its options.
            groups = [text for text in overrides if text.partition("=")[2] in ("null", "")]
            raise ConfigCompositionException(
                f"{', '.join(groups)}: a group takes one of its options, see --help; e.g. logger=none"
            ) from error
        except HydraException as error:
            explained = explain_missing(str(error))
            if explained:
                raise ConfigCompositionException(f"{error}{explained}") from error
            unknown = _explain_unknown(error, given, original)
            if unknown:
                raise ConfigCompositionException(unknown) from error
            raise
        return config

    setattr(ConfigLoaderImpl, _LOADS, load)
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, _LOADS, former)


def _explain_unknown(
    error: HydraException, given: inspect.BoundArguments, load: Callable[..., DictConfig]
) -> str | None:
    """Return a message on an override of an unknown key that names the nearest one; None for other errors.

    Hydra advises to append the key with ``+``, which is seldom right.
    """
    match = re.match(r"Could not override '([^']+)'", str(error))
    if match is None:
        return None
    key = match[1]
    others = [text for text in given.arguments["overrides"] if text.partition("=")[0].lstrip("+") != key]
    given.arguments["overrides"] = others
    try:
        nearest = nearest_key(key, load(*given.args, **given.kwargs))
    except HydraException:  # Another override is wrong, too.
        nearest = ""
    return f"Could not override '{key}': there is no such setting{nearest}"


def _check_training_groups(config_name: str | None, overrides: Iterable[str]) -> None:
    """Refuse settings of training given to a command that does not train, where they would change nothing."""
    if config_name in (None, "train"):
        return
    for text in overrides:
        group = re.split(r"[.@/=]", text.lstrip("+~"))[0]
        if group in TRAINING_GROUPS:
            raise TargetError(f"{text}: anydepth-{config_name} does not train, so leave out {group}")


def check_hydra_node(config: DictConfig) -> None:
    """Check the node ``hydra`` of a composed configuration.

    Raises:
        TargetError: It would build or call a target that is not allowed, set environment variables, or start
            commands that do not come from the command line.
    """
    node = OmegaConf.select(config, "hydra")
    if node is None:
        return
    for part in _BUILT:
        check_targets({"hydra": {part: _resolved(node, part)}}, installed=False)
    for part in _LOGGING:
        _check_logging(_plain(node, part), f"hydra.{part}")
    search_space = OmegaConf.select(node, "sweeper.custom_search_space")
    if search_space is not None:
        find_target(search_space)
    if _plain(node, "job").get("env_set"):
        raise TargetError(
            "hydra.job.env_set sets environment variables, which is not allowed in a configuration: set them "
            "in the shell that starts the command"
        )
    _check_commands(node)


def _check_commands(node: DictConfig) -> None:
    given = [
        str(text).lstrip("+~").partition("=")[0] for text in OmegaConf.select(node, "overrides.hydra") or []
    ]
    for name, value in _plain(node, "launcher").items():
        key = f"hydra.launcher.{name}"
        if name in _COMMANDS and value and not any(text.startswith(key) for text in given):
            raise TargetError(
                f"{key}={short_repr(value)} is run by the shell, so it is allowed only on the command line, "
                f"not in a configuration file: give {key}=..."
            )


def _check_logging(node: object, key: str) -> None:
    if isinstance(node, Mapping):
        if "()" in node:
            raise TargetError(
                f"{key} builds {short_repr(node['()'])}: factories (`()`) are not allowed in logging; use "
                "`class`"
            )
        kind = node.get("class")
        if isinstance(kind, str) and kind not in _LOGGING_CLASSES:
            raise TargetError(
                f"{key}.class={short_repr(kind)}: allowed are {', '.join(sorted(_LOGGING_CLASSES))}"
            )
        for name, value in node.items():
            _check_logging(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_logging(value, f"{key}[{index}]")


def _plain(node: DictConfig, part: str) -> dict[str, Any]:
    """Return a part as written, with interpolations as text; empty if it is missing or not a mapping."""
    if part not in node or OmegaConf.is_missing(node, part):
        return {}
    if OmegaConf.is_interpolation(node, part):
        raise TargetError(f"hydra.{part} is an interpolation, which is not allowed: write its settings out")
    found = node[part]
    plain = OmegaConf.to_container(found, resolve=False) if OmegaConf.is_config(found) else None
    return {str(name): value for name, value in plain.items()} if isinstance(plain, dict) else {}


def _resolved(node: DictConfig, part: str) -> dict[str, Any]:
    """Return a part with resolved interpolations, because they may refer to nodes with targets.

    One that cannot be resolved yet stays as text: Hydra's own values are known only in a job.
    """
    written = _plain(node, part)
    return {name: _value(node, f"{part}.{name}", value) for name, value in written.items()}


def _value(node: DictConfig, key: str, written: object) -> object:
    if isinstance(written, Mapping):
        return {name: _value(node, f"{key}.{name}", value) for name, value in written.items()}
    if not isinstance(written, str) or "${" not in written:
        return written
    try:
        found = OmegaConf.select(node, key)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except OmegaConfBaseException:
        return written
