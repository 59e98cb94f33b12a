"""Short labels of settings: the arm of an ablation, or the overrides of the command line."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from anydepth.config.key_effects import LABEL_PREFIXES, UNNAMED_GROUPS, is_training_key
from anydepth.report.flat_config import canonical, differing_keys
from anydepth.report.runs import Run
from anydepth.utils.messages import join_few

ARM = "ablation"
"""Configuration group whose options are the arms of an ablation."""

# Keys in a label made of keys: more would not fit a legend.
_MAX_KEYS = 3


def label_settings(runs: Sequence[Run], configs: Sequence[Mapping[str, object]]) -> list[str]:
    """Return one unique label per setting, independent of the order of the settings.

    Tried in this order: the arm of an ablation and the other overrides in which the settings differ
    (``prediction_only``, ``depth_schedule=random``); these with the configuration keys that distinguish equal
    ones; a number.

    Args:
        runs: One run of each setting.
        configs: Flat training configuration of each setting.
    """
    labels = _from_overrides(runs)
    clashes = {label for label, count in Counter(labels).items() if count > 1}
    for label in sorted(clashes):
        places = [place for place, own in enumerate(labels) if own == label]
        details = _from_keys([configs[place] for place in places])
        for place, detail in zip(places, details, strict=True):
            labels[place] = ", ".join(part for part in (label, detail) if part)
    return _append_numbers([label or "defaults" for label in labels], configs)


def _overrides(run: Run) -> dict[str, str]:
    """Return the values of overrides by key; as in Hydra, the last one of a key wins."""
    given = run.provenance.get("overrides")
    if not isinstance(given, list):
        given = []
    overrides: dict[str, str] = {}
    for text in map(str, given):
        key, equals, value = text.lstrip("+").partition("=")
        if (
            equals
            and not text.startswith(("-", "~"))
            and not _is_left_out_of_labels(key)
            and is_training_key(key)
        ):
            overrides[key] = value
    return overrides


def _is_left_out_of_labels(key: str) -> bool:
    group = key.partition("@")[0]
    # Keys of Hydra configure the sweep, not what was trained.
    return group in UNNAMED_GROUPS or re.split(r"[./]", group)[0] == "hydra"


def _add_detector(overrides: Mapping[str, str], run: Run) -> Mapping[str, str]:
    """Add the detector, which distinguishes the default one from overridden ones."""
    name = run.config.get("detector_name")
    return {"detector": name, **overrides} if isinstance(name, str) else overrides


def _from_overrides(runs: Sequence[Run]) -> list[str]:
    """Return labels of as few overrides as distinguish the settings; an arm is labelled by its name alone."""
    overrides: list[Mapping[str, str]] = [_overrides(run) for run in runs]
    if len(runs) == 1:
        own = overrides[0]
        return [own[ARM]] if ARM in own else [_format_overrides(own, tuple(sorted(own)))]
    overrides = [_add_detector(own, run) for own, run in zip(overrides, runs, strict=True)]
    labels = [""] * len(overrides)
    chosen: tuple[str, ...] = ()
    for key in sorted(differing_keys(overrides), key=lambda key: (key != ARM, key)):
        longer = [_format_overrides(own, (*chosen, key)) for own in overrides]
        if len(set(longer)) > len(set(labels)):
            labels, chosen = longer, (*chosen, key)
    return labels


def _format_overrides(overrides: Mapping[str, str], keys: Sequence[str]) -> str:
    present = [key for key in keys if key in overrides]
    return ", ".join(overrides[key] if key == ARM else f"{key}={overrides[key]}" for key in present)


def _from_keys(configs: Sequence[Mapping[str, object]]) -> list[str]:
    keys = sorted(differing_keys(configs), key=_rank)
    return [
        join_few([f"{key}={_format_value(config.get(key))}" for key in keys], _MAX_KEYS) for config in configs
    ]


def _rank(key: str) -> tuple[bool, int, int, str]:
    """Return a rank by which the most informative keys come first."""
    matches = [place for place, prefix in enumerate(LABEL_PREFIXES) if key.startswith(prefix)]
    return key.endswith("_target_"), matches[0] if matches else len(LABEL_PREFIXES), len(key), key


def _format_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _append_numbers(labels: Sequence[str], configs: Sequence[Mapping[str, object]]) -> list[str]:
    """Return labels with a number appended to equal ones, in the order of their configurations."""
    taken, result = set(labels), list(labels)
    counts = Counter(labels)
    used: Counter[str] = Counter()
    for place in sorted(range(len(labels)), key=lambda place: canonical(configs[place])):
        label = labels[place]
        if counts[label] < 2:
            continue
        while True:
            used[label] += 1
            candidate = f"{label} ({used[label]})"
            if candidate not in taken:
                break
        taken.add(candidate)
        result[place] = candidate
    return result
