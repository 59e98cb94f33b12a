"""Configurations as flat keys, and in what those of several runs differ."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate
from typing import Any

NOT_TRAINING: tuple[str, ...] = (
    # The seed, by which the runs of a setting differ.
    "seed",
    "data.seed",
    # Where things lie, and how a run is watched.
    "paths.*",
    "logger.*",
    "trainer._target_",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
    "trainer.enable_*",
    "trainer.num_sanity_val_steps",
    "trainer.profiler",
    "callbacks.progress.*",
    "callbacks.last.*",
    "callbacks.skipped_images.*",
    "callbacks.gradient_conflict.*",
    "callbacks.*.dirpath",
    "callbacks.*.path",
    # A run that went on is the run it began as; `Run.notes` says that it did.
    "ckpt_path",
    # Which data it is, the fingerprint tells; where it lies does not matter.
    "data.root",
    "data.root.*",
    "data.*_json",
    "data.*_images",
    "data.cache_dir",
    "data.cache_gb",
    "data.storage_options.*",
    # Speed: the images of a step, and how they are drawn, stay the same.
    "data.num_workers",
    "data.eval_batch_size",
    "compile",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.benchmark",
    # What becomes of steps that are not finite, where there are any.
    "non_finite.*",
    # What happens after training, and an evaluation backend with equal figures.
    "curve.*",
    "compatibility.*",
    "validation.backend",
)
"""Keys (with ``*`` for anything) in which runs of one setting may differ, because they do not change what is
trained. Numbers of devices and nodes stay: they multiply the images of a step.

More than ``runtime.WITHOUT_EFFECT``, which holds only what leaves a result the same bit for bit, so that a
finished job is passed over: here runs are of one setting although seeds, devices or curves differ."""

MIRRORS: Mapping[str, str] = {
    "callbacks.averaging.decay": "optim.ema_decay",
    "callbacks.averaging.warmup_steps": "optim.ema_warmup_steps",
    "callbacks.budget.minutes": "optim.minutes",
    "data.epochs": "optim.epochs",
    "data.fit": "detector.fit",
    "data.input_size": "detector.input_size",
    "trainer.check_val_every_n_epoch": "optim.validate_every_epochs",
    "trainer.gradient_clip_val": "optim.clip_norm",
    "trainer.max_epochs": "optim.epochs",
}
"""Keys that take their value from another one unless told otherwise; where they did, that one tells it."""

_IGNORED = re.compile("|".join(translate(pattern) for pattern in NOT_TRAINING))


def flatten(config: Mapping[str, Any]) -> dict[str, object]:
    """Values by ``a.b.c``; lists stay whole, nulls and empty groups are as if they were not there.

    Example:
        >>> flatten({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "weights": None})
        {'optim.lr': 0.1, 'optim.betas': [0.9, 0.99]}
    """
    return dict(_leaves(config, ""))


def training_config(config: Mapping[str, Any]) -> dict[str, object]:
    """The flat configuration without :data:`NOT_TRAINING` and :data:`MIRRORS`; devices as their number."""
    every = flatten(config)
    mirrors = {key for key, source in MIRRORS.items() if key in every and every[key] == every.get(source)}
    flat = {key: value for key, value in every.items() if changes_training(key) and key not in mirrors}
    devices = flat.get("trainer.devices")
    if isinstance(devices, list):
        flat["trainer.devices"] = len(devices)
    return flat


def changes_training(key: str) -> bool:
    """Whether a flat key is none of :data:`NOT_TRAINING`."""
    return _IGNORED.match(key) is None


def canonical(flat: Mapping[str, object]) -> str:
    """Equal text for equal configurations, by which they sort, too."""
    return json.dumps(flat, sort_keys=True, default=str)


def differing_keys(configs: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """The flat keys that not all configurations hold with one value, in alphabetical order."""
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
