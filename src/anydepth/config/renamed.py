"""Old names of groups and keys, so that a command of before ends with the new name instead of a riddle."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

# Old name: new name, and the rest of the sentence where the new name alone does not say what to give.
# Longer names come first: the first one that fits is named.
RENAMED: Mapping[str, str] = {
    **{
        f"distillation.{old}": f"losses.{new}"
        for old, new in {
            "match_class_cost": "criterion.matcher.class_cost",
            "match_l1_cost": "criterion.matcher.l1_cost",
            "match_giou_cost": "criterion.matcher.giou_cost",
            "match_alpha": "criterion.matcher.alpha",
            "match_gamma": "criterion.matcher.gamma",
            "assign_top_k": "criterion.assigner.top_k",
            "assign_alpha": "criterion.assigner.alpha",
            "assign_beta": "criterion.assigner.beta",
            "vfl_weight": "criterion.vfl_weight",
            "vfl_alpha": "criterion.vfl_alpha",
            "vfl_gamma": "criterion.vfl_gamma",
            "l1_weight": "criterion.l1_weight",
            "giou_weight": "criterion.giou_weight",
            "box_gain": "criterion.box_weight",
            "class_gain": "criterion.class_weight",
            "dfl_gain": "criterion.dfl_weight",
            "class_loss": "distillation.class_loss",
            "class_targets": "distillation.class_targets",
            "box_targets": "distillation.box_targets",
            "kd_softmax_kl_weight": "distillation.softmax_kl_weight",
            "kd_bernoulli_kl_weight": "distillation.bernoulli_kl_weight",
            "kd_l1_weight": "distillation.l1_weight",
            "kd_giou_weight": "distillation.giou_weight",
            "kd_backbone_weight": "distillation.backbone_weight",
            "kd_neck_weight": "distillation.neck_weight",
            "kd_box_gain": "distillation.box_weight",
            "kd_class_gain": "distillation.class_weight",
            "kd_dfl_gain": "distillation.dfl_weight",
            "kd_feature_gain": "distillation.feature_weight",
            "kd_class_temperature": "distillation.class_temperature",
            "kd_dfl_temperature": "distillation.dfl_temperature",
        }.items()
    },
    "callbacks.budget": "callbacks.time_limit",
    "optim": "recipe",
    "distillation": "losses",
    "wing": "family",
    "length": "recipe/study",
    "sweep": "experiment",
}
# Options of the old group ``recipe``, which the data set chose.
_DATASET_KINDS = ("bccd", "coco", "custom", "sample")
_OLD_POINTER = re.compile(rf"(detr|yolo)_({'|'.join(_DATASET_KINDS)})")


class RenamedKeyError(ValueError):
    """A group or key under its old name; the message names the new one."""


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse overrides that use an old name.

    Args:
        overrides: As on the command line.

    Raises:
        RenamedKeyError: Names the new name.
    """
    for text in overrides:
        prefix, key, rest = _split(text)
        new = new_name(key)
        if new is not None:
            raise RenamedKeyError(f"{text}: {key} is called {new} now; give {prefix}{new}{rest}")
        value = rest.removeprefix("=")
        if key == "recipe" and value in _DATASET_KINDS:
            raise RenamedKeyError(
                f"{text}: the kind of data set is called dataset_kind now, and data= chooses it"
            )
        if key in ("recipe", "augmentation") and _OLD_POINTER.fullmatch(value):
            raise RenamedKeyError(
                f"{text}: this option is called default/{value} now; give {key}=default/{value}"
            )


def check_groups(config: Mapping[Any, Any] | DictConfig) -> None:
    """Refuse a configuration with old groups at its top: a file of the user, or a run of an older version.

    Raises:
        RenamedKeyError: Names the new name.
    """
    for key in map(str, config):
        new = RENAMED.get(key)
        if new is not None:
            raise RenamedKeyError(
                f"the configuration has a group {key}, which is called {new} now: rename it in that file"
            )


def explain_missing(message: str) -> str:
    """Return a sentence on the old name that an error of Hydra's mentions; empty if it mentions none."""
    match = re.search(r"Could not (?:override|find) '/?([\w./@]+)'", message)
    new = new_name(match[1]) if match else None
    return f"\n{match[1]} is called {new} now: change it in that file" if match and new else ""


def new_name(key: str) -> str | None:
    """Return the new name of a key or group; None if it has not changed.

    Example:
        >>> new_name("optim.lr"), new_name("distillation.kd_neck_weight"), new_name("recipe.lr")
        ('recipe.lr', 'losses.distillation.neck_weight', None)
    """
    for old, new in RENAMED.items():
        if key == old or key.startswith((f"{old}.", f"{old}@", f"{old}/")):
            return new + key[len(old) :]
    return None


def _split(override: str) -> tuple[str, str, str]:
    """An override as its prefix (``+``, ``++`` or ``~``), its key, and the rest that begins with ``=``."""
    match = re.match(r"([+~]*)([^=]*)(.*)", override, re.DOTALL)
    assert match is not None  # Every part may be empty.
    return match[1], match[2], match[3]
