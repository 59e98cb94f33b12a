"""The effect of each configuration key: one table for skipping, grouping, labels and comparisons of runs.

A finished job is not repeated if only keys differ that affect nothing. Runs that differ only in keys that
affect the ``run`` are of one setting, shown as mean and range. Keys that affect the ``arm`` are those an
ablation varies on purpose. Every other key changes what is trained and makes another setting.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Effect = Literal["nothing", "run", "arm", "training"]


@dataclass(frozen=True)
class KeyEffect:
    """One row of the table.

    Attributes:
        pattern: Flat key, with ``*`` for anything; it stands for everything below the key, too.
        effect: ``nothing``: the result stays the same bit for bit. ``run``: runs of one setting may differ in
            it. ``arm``: arms of an ablation differ in it. ``training``: it changes what is trained.
        mirrors: Key whose value it takes unless told otherwise; where it did, that key is shown alone.
    """

    pattern: str
    effect: Effect
    mirrors: str | None = None


TABLE: tuple[KeyEffect, ...] = (
    # Where a run is written and logged, what it resumes from, and the console.
    KeyEffect("paths", "nothing"),
    KeyEffect("output", "nothing"),
    KeyEffect("logger", "nothing"),
    # A resumed run is the run it began as; notes of the run say that it was resumed.
    KeyEffect("ckpt_path", "nothing"),
    KeyEffect("callbacks.progress", "nothing"),
    KeyEffect("callbacks.last", "nothing"),
    KeyEffect("callbacks.gradient_conflict", "nothing"),
    KeyEffect("callbacks.loss_shares", "nothing"),
    KeyEffect("non_finite.files", "nothing"),
    KeyEffect("non_finite.weights", "nothing"),
    # What happens to steps that are not finite, if there are any.
    KeyEffect("non_finite", "run"),
    # The seed, by which the runs of a setting differ.
    KeyEffect("seed", "run"),
    KeyEffect("data.seed", "run"),
    # How a run is watched.
    KeyEffect("trainer._target_", "run"),
    KeyEffect("trainer.default_root_dir", "run"),
    KeyEffect("trainer.log_every_n_steps", "run"),
    KeyEffect("trainer.enable_*", "run"),
    KeyEffect("trainer.num_sanity_val_steps", "run"),
    KeyEffect("trainer.profiler", "run"),
    KeyEffect("callbacks.skipped_images", "run"),
    KeyEffect("callbacks.*.dirpath", "run"),
    KeyEffect("callbacks.*.path", "run"),
    # The fingerprint identifies the data; where it lies does not matter.
    KeyEffect("data.root", "run"),
    KeyEffect("data.*_json", "run"),
    KeyEffect("data.*_images", "run"),
    KeyEffect("data.cache_dir", "run"),
    KeyEffect("data.cache_gb", "run"),
    KeyEffect("data.storage_options", "run"),
    # Speed: the images of a step, and how they are drawn, stay the same. Numbers of devices and nodes are not
    # here: they multiply the images of a step.
    KeyEffect("data.num_workers", "run"),
    KeyEffect("data.eval_batch_size", "run"),
    KeyEffect("compile", "run"),
    KeyEffect("trainer.accelerator", "run"),
    KeyEffect("trainer.strategy", "run"),
    KeyEffect("trainer.benchmark", "run"),
    # What happens after training, and an evaluation backend with equal figures.
    KeyEffect("curve", "run"),
    KeyEffect("compatibility", "run"),
    KeyEffect("validation.backend", "run"),
    # What the arms of an ablation vary; score and depths of the validation may follow. Losses against ground
    # truth are not among it.
    KeyEffect("depth_schedule", "arm"),
    KeyEffect("validation", "arm"),
    KeyEffect("losses.distillation", "arm"),
    KeyEffect("losses.alpha", "arm"),
    # Values that follow another key.
    KeyEffect("callbacks.averaging.decay", "training", mirrors="recipe.ema_decay"),
    KeyEffect("callbacks.averaging.warmup_steps", "training", mirrors="recipe.ema_warmup_steps"),
    KeyEffect("callbacks.time_limit.minutes", "training", mirrors="recipe.minutes"),
    KeyEffect("data.epochs", "training", mirrors="recipe.epochs"),
    KeyEffect("data.fit", "training", mirrors="detector.fit"),
    KeyEffect("data.input_size", "training", mirrors="detector.input_size"),
    KeyEffect("trainer.check_val_every_n_epoch", "training", mirrors="recipe.validate_every_epochs"),
    KeyEffect("trainer.gradient_clip_val", "training", mirrors="recipe.clip_norm"),
    KeyEffect("trainer.max_epochs", "training", mirrors="recipe.epochs"),
)
"""The first row whose pattern fits decides; a key without a row changes what is trained."""

MIRRORS = {row.pattern: row.mirrors for row in TABLE if row.mirrors is not None}
"""Keys that take their value from another one unless told otherwise, with that key."""

UNNAMED_GROUPS = frozenset(
    {"callbacks", "debug", "experiment", "hydra", "logger", "paths", "recipe/study", "trainer"}
)
"""Groups left out of labels: their option does not say what was trained, or other keys say it better."""

LABEL_PREFIXES = ("detector_name", "depth_schedule.", "losses.", "detector.", "recipe.", "data.")
"""Prefixes of the keys that labels prefer, in this order."""


@cache
def effect_of(key: str) -> Effect:
    """Return what a key affects.

    Args:
        key: Flat key, e.g. ``recipe.lr``, or the name of a node, e.g. ``logger``.

    Example:
        >>> effect_of("logger.csv.save_dir"), effect_of("seed"), effect_of("recipe.lr")
        ('nothing', 'run', 'training')
    """
    for row, pattern in _COMPILED:
        if pattern.fullmatch(key):
            return row.effect
    return "training"


def is_training_key(key: str) -> bool:
    """Whether a key changes what is trained: runs that differ in it are of different settings."""
    return effect_of(key) in ("arm", "training")


def _compile(pattern: str) -> re.Pattern[str]:
    inside = re.escape(pattern).replace(r"\*", ".*")
    return re.compile(rf"{inside}(\..*)?", re.DOTALL)


_COMPILED = tuple((row, _compile(row.pattern)) for row in TABLE)
