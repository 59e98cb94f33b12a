"""Configurations as flat keys, and the keys in which several of them differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anydepth.config.key_effects import MIRRORS, is_training_key


def flatten(config: Mapping[str, Any]) -> dict[str, object]:
    """Return values by flat key ``a.b.c``; lists stay whole, nulls and empty groups are dropped.

    Example:
        >>> flatten({"recipe": {"lr": 0.1, "betas": [0.9, 0.99]}, "weights": None})
        {'recipe.lr': 0.1, 'recipe.betas': [0.9, 0.99]}
    """
    return dict(_leaves(config, ""))


def training_config(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the flat keys that affect training, without mirrored ones; devices as their number."""
    flat_config = flatten(config)
    mirrors = {
        key
        for key, source in MIRRORS.items()
        if key in flat_config and flat_config[key] == flat_config.get(source)
    }
    flat = {key: value for key, value in flat_config.items() if is_training_key(key) and key not in mirrors}
    devices = flat.get("trainer.devices")
    if isinstance(devices, list):
        flat["trainer.devices"] = len(devices)
    return flat


def canonical(flat: Mapping[str, object]) -> str:
    """Return a text that is equal for equal configurations and sorts them."""
    return json.dumps(flat, sort_keys=True, default=str)


def differing_keys(configs: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """Return the flat keys whose value differs between configurations, in alphabetical order."""
    keys = {key for config in configs for key in config}
    return tuple(
        key for key in sorted(keys) if len({canonical({"": config.get(key)}) for config in configs}) > 1
    )


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
