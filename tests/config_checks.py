"""Checks of composed configurations against the code that they name."""

import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from anydepth.config.compose import compose
from anydepth.config.targets import find_target

_OF_HYDRA = ("_target_", "_convert_", "_partial_", "_recursive_", "_args_")


def composed(*overrides: str) -> DictConfig:
    """What ``anydepth-train OVERRIDES`` composes to, not to be changed: equal overrides compose once."""
    config = _composed(overrides)
    HydraConfig.instance().set_config(config)  # it answers ${hydra:...}, for the newest configuration
    return config


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose("train", ["paths.output_dir=out", *overrides], hydra_config=True)


def targets(node: object, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with ``_target_`` in plain containers, with its key."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{key}[{index}]")


def check_targets(config: Mapping[str, Any]) -> int:
    """Check that every ``_target_`` exists and takes the arguments beside it; returns how many there are.

    A target that takes any keyword is trusted only where the keywords have types.
    """
    count = 0
    for key, node in targets(config):
        builder = find_target(node["_target_"])
        signature = inspect.signature(builder)
        given = {name: value for name, value in node.items() if name not in _OF_HYDRA}
        try:
            signature.bind(**given)
        except TypeError as error:
            raise AssertionError(f"{key}: {node['_target_']}: {error}") from error
        unknown = given.keys() - signature.parameters.keys() - _typed_keywords(signature)
        assert not unknown or not node["_target_"].startswith("anydepth."), f"{key}: {sorted(unknown)}"
        count += 1
    return count


def _typed_keywords(signature: inspect.Signature) -> set[str]:
    """The keywords of ``**settings: Unpack[SomeTypedDict]``."""
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and typing.get_args(parameter.annotation):
            return set(typing.get_type_hints(typing.get_args(parameter.annotation)[0]))
    return set()
