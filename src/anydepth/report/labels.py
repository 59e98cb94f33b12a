"""Short names of settings: the arm of an ablation, or what was asked for on the command line."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from anydepth.config.key_effects import GROUPS_WITHOUT_NAME, MOST_TELLING, is_training_key
from anydepth.report.flat_config import canonical, differing_keys
from anydepth.report.runs import Run

ARM = "ablation"
"""The configuration group whose options are the arms of an ablation."""

# Keys in a label that is made of them.
_MOST_KEYS = 3


def label_settings(runs: Sequence[Run], configs: Sequence[Mapping[str, object]]) -> list[str]:
    """One unique label per setting, whatever the order of the settings.

    Tried in this order: the arm of an ablation and the other overrides in which the settings differ
    (``prediction_only``, ``depth_schedule=random``); those with the configuration keys that tell equal ones
    apart; a number.

    Args:
        runs: One run of each setting.
        configs: Its flat configuration without what does not change training.
    """
    labels = _from_overrides(runs)
    clashes = {label for label, count in Counter(labels).items() if count > 1}
    for label in sorted(clashes):
        places = [place for place, own in enumerate(labels) if own == label]
        details = _from_keys([configs[place] for place in places])
        for place, detail in zip(places, details, strict=True):
            labels[place] = ", ".join(part for part in (label, detail) if part)
    return _numbered([label or "defaults" for label in labels], configs)


def _overrides(run: Run) -> dict[str, str]:
    """What was asked for, by key; later ones win, as Hydra has it."""
    given = run.provenance.get("overrides")
    if not isinstance(given, list):
        given = []
    found: dict[str, str] = {}
    for text in map(str, given):
        key, equals, value = text.lstrip("+").partition("=")
        if equals and not text.startswith(("-", "~")) and not _is_unnamed(key) and is_training_key(key):
            found[key] = value
    return found


def _is_unnamed(key: str) -> bool:
    group = key.partition("@")[0]
    # How a sweep was run is not part of what was trained: keys of Hydra are not named either.
    return group in GROUPS_WITHOUT_NAME or re.split(r"[./]", group)[0] == "hydra"


def _with_detector(overrides: Mapping[str, str], run: Run) -> Mapping[str, str]:
    """A detector that was left to the default matters beside those that were chosen."""
    name = run.config.get("detector_name")
    return {"detector": name, **overrides} if isinstance(name, str) else overrides


def _from_overrides(runs: Sequence[Run]) -> list[str]:
    """As few overrides as tell apart what overrides can tell apart; of an arm, its name alone."""
    overrides: list[Mapping[str, str]] = [_overrides(run) for run in runs]
    if len(runs) == 1:
        own = overrides[0]
        return [own[ARM]] if ARM in own else [_text(own, tuple(sorted(own)))]
    overrides = [_with_detector(own, run) for own, run in zip(overrides, runs, strict=True)]
    labels = [""] * len(overrides)
    chosen: tuple[str, ...] = ()
    for key in sorted(differing_keys(overrides), key=lambda key: (key != ARM, key)):
        longer = [_text(own, (*chosen, key)) for own in overrides]
        if len(set(longer)) > len(set(labels)):
            labels, chosen = longer, (*chosen, key)
    return labels


def _text(overrides: Mapping[str, str], keys: Sequence[str]) -> str:
    told = [key for key in keys if key in overrides]
    return ", ".join(overrides[key] if key == ARM else f"{key}={overrides[key]}" for key in told)


def _from_keys(configs: Sequence[Mapping[str, object]]) -> list[str]:
    keys = sorted(differing_keys(configs), key=_rank)
    details = []
    for config in configs:
        parts = [f"{key}={_value(config.get(key))}" for key in keys[:_MOST_KEYS]]
        further = len(keys) - len(parts)
        details.append(", ".join(parts) + (f" and {further} more" if further else ""))
    return details


def _rank(key: str) -> tuple[bool, int, int, str]:
    telling = [place for place, prefix in enumerate(MOST_TELLING) if key.startswith(prefix)]
    return key.endswith("_target_"), telling[0] if telling else len(MOST_TELLING), len(key), key


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _numbered(labels: Sequence[str], configs: Sequence[Mapping[str, object]]) -> list[str]:
    """Equal labels with a number behind them, by configuration."""
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
