"""The allow list of classes and functions that a configuration may build: a ``_target_`` is untrusted code.

A name is allowed, or refused before anything of it is imported. Names lead through attributes, too, and
``anydepth.runs.provenance.subprocess.run`` begins well: what a name leads to must be allowed under its own
name.
"""

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from anydepth.utils.entry_points import entry_points_of
from anydepth.utils.messages import short_repr

ALLOW_VARIABLE = "ANYDEPTH_ALLOW_TARGETS"
"""Environment variable that allows further targets. No configuration file can set it."""

ENTRY_POINTS = "anydepth.targets"
"""Group of entry points by which an installed package allows its own targets: whoever installs it trusts it.

``name = mypackage.losses:MyObjective`` allows one object, ``name = mypackage`` all that is defined in it."""

# Functions that conf/ builds with, and Hydra's own parts. Other functions of this package write files where
# they are told to.
_NAMED = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "anydepth.data.fetch.public_sets.dataset_root",
        "anydepth.data.sample.sample_root",
        "anydepth.detr.build.build_detr",
        "anydepth.yolo.build.build_yolo",
    }
)
# Public classes below these names, of which an object does nothing before a run uses it.
_CLASSES = (
    "anydepth.data.augment.*",
    "anydepth.data.datamodule.*",
    "anydepth.data.streaming.*",
    "anydepth.detr.*",
    "anydepth.runs.folder.FolderCheck",
    "anydepth.runs.multirun.MultirunSummary",
    "anydepth.runs.sweep.SweepSummary",
    "anydepth.training.*",
    "anydepth.yolo.*",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer.*",
    "lightning.pytorch.callbacks.*",
    "lightning.pytorch.loggers.*",
    "lightning.pytorch.plugins.*",
    "lightning.pytorch.profilers.*",
    "lightning.pytorch.strategies.*",
    "lightning.fabric.loggers.*",
    "lightning.fabric.plugins.*",
    "hydra_plugins.hydra_optuna_sweeper.*",
    "hydra_plugins.hydra_submitit_launcher.*",
    "optuna.samplers.*",
    "optuna.pruners.*",
    "datetime.timedelta",
)
_LONGEST_NAME = 300


class TargetError(ValueError):
    """A ``_target_`` that a configuration must not build, or that does not exist; says how to allow it."""


class MissingTargetError(TargetError):
    """A ``_target_`` that is allowed but missing, or whose package is not installed."""


def find_target(name: object) -> Callable[..., Any]:
    """Return the class or function that a ``_target_`` names, if it may be built.

    Args:
        name: With dots, e.g. ``anydepth.data.augment.mosaic.Mosaic``. Allowed are public classes of this
            package for data, networks and training, Lightning's callbacks, loggers, profilers, plugins and
            strategies, samplers of Optuna, what ``conf/`` names beside them, and what the environment
            variable ``ANYDEPTH_ALLOW_TARGETS`` names: patterns separated by commas, e.g.
            ``mypackage.*,other.Thing``.

    Raises:
        TargetError: It is not allowed, or leads to something else that is not, or does not exist.
    """
    if (
        not isinstance(name, str)
        or len(name) > _LONGEST_NAME
        or not all(part.isidentifier() for part in name.split("."))
    ):
        raise TargetError(f"_target_ {short_repr(name)}: give the full name of a class, separated by dots")
    if not (_may_be(name) or _given(name)):
        raise TargetError(_refusal(name, ""))
    found = _locate(name)
    real = _real_name(found)
    if not callable(found):
        raise TargetError(f"_target_ {name}: this is no class and no function")
    if real is None or not (_given(real) or _is_allowed(real, found)):
        raise TargetError(_refusal(name, f" It leads to {real or short_repr(found)}."))
    return cast(Callable[..., Any], found)


def check_targets(node: object, *, installed: bool = True) -> int:
    """Check every ``_target_`` in plain containers, however deep, before any of them is built.

    Args:
        node: A configuration whose interpolations are resolved.
        installed: Whether each must be there; False leaves that to whoever builds them.

    Returns:
        How many there are.

    Raises:
        TargetError: One may not be built; the message says where it stands.
    """
    count = 0
    for key, target in _targets(node, ""):
        try:
            find_target(target)
        except TargetError as error:
            if isinstance(error, MissingTargetError) and not installed:
                continue
            error.add_note(f"(in the configuration key `{key}`)" if key else "(of the configuration)")
            raise
        count += 1
    return count


def _targets(node: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, value in node.items():
            yield from _targets(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _targets(value, f"{key}[{index}]")


def _may_be(name: str) -> bool:
    """Return whether a name can be one of the allowed ones; nothing private is."""
    hidden = any(part.startswith("_") for part in name.split("."))
    return name in _NAMED or (not hidden and any(fnmatchcase(name, pattern) for pattern in _CLASSES))


def _is_allowed(real: str, found: object) -> bool:
    """Return whether an object of this real name may be built; public classes of private modules may."""
    if real in _NAMED:
        return True
    return inspect.isclass(found) and any(fnmatchcase(real, pattern) for pattern in _CLASSES)


def _given(name: str) -> bool:
    """Return whether the user's environment or an installed package allows a name."""
    patterns = [*os.environ.get(ALLOW_VARIABLE, "").split(","), *_packages_targets()]
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns if pattern.strip())


def _packages_targets() -> tuple[str, ...]:
    """Return patterns of what installed packages allow: one object, or everything that a module defines."""
    return tuple(
        f"{found.module}.{found.attr}" if found.attr else f"{found.module}.*"
        for found in entry_points_of(ENTRY_POINTS)
    )


def _locate(name: str) -> object:
    """Follow a name through modules, which are imported, and attributes."""
    first, *rest = name.split(".")
    path = first
    try:
        found: object = importlib.import_module(first)
        for part in rest:
            path = f"{path}.{part}"
            if not hasattr(found, part) and inspect.ismodule(found):
                # Hydra loads its plugins without making them attributes of their packages.
                found = importlib.import_module(path)
            else:
                found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise MissingTargetError(
            f"_target_ {name}: {error}; check the spelling, and that it is installed"
        ) from error
    return found


def _real_name(found: object) -> str | None:
    """Return the full name under which an object was defined; None if it has none."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else None


def _refusal(name: str, reality: str) -> str:
    return (
        f"_target_ {name} is not among what a configuration may build.{reality} If you trust both the "
        f"configuration and this code, allow it in the environment: {ALLOW_VARIABLE}={name}"
    )
