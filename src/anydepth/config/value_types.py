"""The one check of the types of a composed configuration: keys and values against what the code declares.

A node with ``_target_`` is compared with the signature of the class or function that it names, everything
else with :mod:`anydepth.config.plain_keys`. So a wrong value ends in a message with its key before anything
is built, and a folder called 2024 stays text although YAML and Hydra read a number.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from anydepth.config.annotations import (
    Parameters,
    accepts,
    alternatives,
    describe,
    parameters_of,
    parameters_of_mapping,
)
from anydepth.config.plain_keys import BUILT_NODES, CHOSEN_NODES, COMMANDS, FILLED_IN, HYDRA_TEXTS
from anydepth.config.targets import TargetError, find_target
from anydepth.utils.messages import short_repr

_OF_HYDRA = frozenset({"_target_", "_convert_", "_partial_", "_recursive_", "_args_"})
_WHOLE_INTERPOLATION = re.compile(r"\$\{(\.*)([\w.]+)\}")
_RESOLVER = re.compile(r"\$\{[^${}]*:")
_MAX_PROBLEMS = 5
_SIMILARITY = 0.7  # `dephts` and `depths` have 0.83, `depths` and `epochs` 0.67.
_UNKNOWN_LENGTH = 200  # Characters of a key for which similar ones are looked for.


class ValueTypeError(ValueError):
    """A setting of the wrong type, or one that nothing takes; names the key and what is allowed."""


@dataclass(frozen=True)
class _Setting:
    """One value of a configuration.

    Attributes:
        key: Flat key.
        value: Plain value, resolved.
        hint: Annotation that says what is allowed.
    """

    key: str
    value: object
    hint: Any


def check_types(config: DictConfig, command: str | None) -> None:
    """Check keys and values of a composed configuration; values that cannot be resolved yet are left out.

    Args:
        config: Composed configuration, with or without the node ``hydra``.
        command: File of ``conf/`` that it was composed from; None: only nodes with ``_target_`` are checked.

    Raises:
        ValueTypeError: Names each key, what it got, and what is allowed.
    """
    written = _without_hydra(config)
    problems = {key: f"{key} is needed: leave ~{key} out" for key in _missing_keys(written, command)}
    values = dict(_flat(written, ""))
    for found in _walk(_resolve(config, written, ""), command):
        key = found.key if isinstance(found, _Setting) else found
        origin = _origin(values, key)
        if _is_computed(values.get(origin)):
            continue
        if isinstance(found, str):
            problems.setdefault(origin, f"{key}: this setting is unknown{_nearest(found, written, command)}")
        elif not (found.value is None and key in FILLED_IN) and not accepts(found.hint, found.value):
            problems.setdefault(origin, _message(origin, found))
    if problems:
        lines = list(problems.values())
        more = [f"and {len(lines) - _MAX_PROBLEMS} more"] if len(lines) > _MAX_PROBLEMS else []
        raise ValueTypeError("\n".join([*lines[:_MAX_PROBLEMS], *more]))


def check_added(config: DictConfig, overrides: Sequence[str], command: str | None) -> None:
    """Check that settings which the command line adds, as in ``+name=1``, are used.

    Training may get others, as loggers record them, unless their name is that of a setting but for a slip.

    Args:
        config: What Hydra composed from the overrides.
        overrides: As on the command line.
        command: File of ``conf/`` that it was composed from.

    Raises:
        ValueTypeError: One is not; names the nearest setting.
    """
    added = [
        str(found.key_or_group)
        for found in _parsed(tuple(overrides))
        if found.is_add() or found.is_force_add()
    ]
    if command not in COMMANDS or not added:
        return
    written = _without_hydra(config)
    known = {*parameters_of_mapping(COMMANDS[command]).hints, *BUILT_NODES.get(command, ())}
    groups = OmegaConf.select(config, "hydra.runtime.choices") or {}
    for key in added:
        root = key.partition(".")[0]
        if "/" in key or root == "hydra" or root in known or any(text in groups for text in (key, root)):
            continue
        used = re.compile(rf"\$\{{[^}}]*\b{re.escape(root)}\b")
        everything = OmegaConf.to_container(config, resolve=False)
        if any(isinstance(value, str) and used.search(value) for _, value in _flat(everything, "")):
            continue
        nearest = _similar(root, [*written.keys() - {root}])
        if nearest or command != "train":
            raise ValueTypeError(f"+{key}: anydepth-{command} has no such setting{nearest}")


def check_arguments(target: Any, keywords: Mapping[str, object], key: str) -> None:
    """Check the values that a Python caller gives to a target.

    Raises:
        ValueTypeError: Names each keyword, what it got, and what is allowed.
    """
    hints = parameters_of(target).hints
    wrong = [
        _message(f"{key}{name}", _Setting(name, value, hints[name]))
        for name, value in keywords.items()
        if name in hints and not accepts(hints[name], value)
    ]
    if wrong:
        raise ValueTypeError("\n".join(wrong[:_MAX_PROBLEMS]))


def keep_texts(config: DictConfig, overrides: Sequence[str], command: str | None) -> None:
    """Keep the text of an override that Hydra read as a number where text is expected, e.g. ``source=2024``.

    Args:
        config: What Hydra composed from the overrides; changed in place.
        overrides: As on the command line.
        command: File of ``conf/`` that it was composed from.

    Raises:
        ValueTypeError: A sweep over such values, whose text Hydra does not keep.
    """
    numbers = [found for found in _parsed(tuple(overrides)) if _is_number(found)]
    if not numbers:
        return
    hints = {
        found.key: found.hint
        for found in _walk(_without_hydra(config), command)
        if isinstance(found, _Setting)
    } | dict.fromkeys(HYDRA_TEXTS, str)
    for found in numbers:
        key, text = str(found.key_or_group), str(found.input_line).partition("=")[2].strip()
        hint = hints.get(key)
        if hint is None or not _is_text(hint):
            continue
        if found.is_sweep_override():
            _check_swept_texts(key, text, found.sweep_string_iterator(), hint)
        elif not accepts(hint, found.value()):
            with open_dict(config):
                OmegaConf.update(config, key, text)


@lru_cache(maxsize=1)  # Both questions to the overrides follow each other.
def _parsed(overrides: tuple[str, ...]) -> tuple[Override, ...]:
    return tuple(OverridesParser.create().parse_overrides(list(overrides)))


def nearest_key(key: str, config: DictConfig) -> str:
    """Return ``; the nearest is KEY`` for a key that a configuration lacks; empty if none is near."""
    keys = [known for known, _ in _flat(_without_hydra(config), "")]
    return _similar(key, keys)


def _missing_keys(written: Mapping[str, Any], command: str | None) -> Iterator[str]:
    """Yield the settings of a command that were removed, as by ``~threshold``."""
    if command not in COMMANDS:
        return
    for key in BUILT_NODES.get(command, ()):
        node = written.get(key)
        if not isinstance(node, Mapping) or "_target_" not in node:
            yield key
    for key, hint in parameters_of_mapping(COMMANDS[command]).hints.items():
        if key in CHOSEN_NODES:
            continue
        if key not in written:
            yield key
        elif isinstance(written[key], Mapping):
            inner = parameters_of_mapping(hint).hints
            yield from (f"{key}.{name}" for name in inner if name not in written[key])


def _is_number(override: Any) -> bool:
    if override.is_delete():
        return False
    if override.is_sweep_override():
        return bool(override.is_choice_sweep())
    return isinstance(override.value(), int | float)


def _is_text(hint: Any) -> bool:
    members = alternatives(hint)
    return str in members and not {int, float} & {member for member in members if isinstance(member, type)}


def _check_swept_texts(key: str, text: str, values: Iterator[str], hint: Any) -> None:
    for value in values:
        # Hydra hands on 20241130 for 2024_11_30; the jobs get what is printed here.
        if not re.search(rf"(^|[,(\[\s]){re.escape(value)}($|[,)\]\s])", text):
            raise ValueTypeError(
                f"{key}={text}: Hydra would sweep over the number {value}; expected {describe(hint)}, so put "
                f"each value in quotes, e.g. \"{key}='...','...'\""
            )


def _without_hydra(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


_SKIPPED = object()
"""A value that is not known yet: an interpolation that only a job resolves, or a missing value."""


def _resolve(config: DictConfig, written: object, key: str) -> Any:
    """Return what was written, with interpolations resolved where that is possible already."""
    if isinstance(written, Mapping):
        found = {str(name): _resolve(config, value, _join(key, name)) for name, value in written.items()}
        return {name: value for name, value in found.items() if value is not _SKIPPED}
    if isinstance(written, list):
        return [_resolve(config, value, f"{key}[{index}]") for index, value in enumerate(written)]
    if written == "???":
        return _SKIPPED
    if not isinstance(written, str) or "${" not in written:
        return written
    try:
        found = OmegaConf.select(config, key, throw_on_missing=True)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    # Resolvers of jobs and sweeps raise errors of many kinds outside them.
    except (OmegaConfBaseException, ValueError, KeyError, AttributeError, AssertionError):
        return _SKIPPED


def _walk(config: Mapping[str, Any], command: str | None) -> Iterator[_Setting | str]:
    """Yield the settings whose type is known, and the keys that nothing takes."""
    if command in COMMANDS:
        hints = parameters_of_mapping(COMMANDS[command]).hints
        yield from _walk_node(config, Parameters(hints, open=True), "")
        return
    yield from _walk_node(config, Parameters({}, open=True), "")


def _walk_node(node: Mapping[str, Any], allowed: Parameters, key: str) -> Iterator[_Setting | str]:
    for name, value in node.items():
        inner = _join(key, name)
        if name in _OF_HYDRA:
            continue
        if name not in allowed.hints and not allowed.open:
            yield inner
            continue
        hint = allowed.hints.get(name, allowed.others)
        yield _Setting(inner, value, hint)
        yield from _walk_value(value, hint, inner)


def _walk_value(value: object, hint: Any, key: str) -> Iterator[_Setting | str]:
    if isinstance(value, Mapping):
        yield from _walk_node(value, _parameters(value, hint), key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk_value(item, Any, f"{key}[{index}]")


def _parameters(node: Mapping[str, Any], hint: Any) -> Parameters:
    target = node.get("_target_")
    if target is None:
        return parameters_of_mapping(hint)
    try:
        return parameters_of(find_target(target))
    except TargetError:
        return Parameters({}, open=True)  # Whoever builds it refuses it, with the reason.


def _is_computed(written: object) -> bool:
    """Return whether a resolver computes a value: many do so only in a job, and here return None."""
    return isinstance(written, str) and _RESOLVER.search(written) is not None


def _origin(values: Mapping[str, object], key: str) -> str:
    """Return the key that a user can set: the one that an interpolation refers to, however often."""
    for _ in range(len(values)):
        value = values.get(key)
        match = _WHOLE_INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return key
        parents = key.split(".")[: -len(match[1])] if match[1] else []
        key = ".".join([*parents, match[2]])
    return key


def _flat(node: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, _join(key, name))
    else:
        yield key, node


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _message(key: str, found: _Setting) -> str:
    value = found.value
    advice = ""
    if isinstance(value, int | float) and _is_text(found.hint):
        advice = " (put it in quotes)"
    elif value is None:
        advice = _inner_keys(found.hint, key)
    # As YAML and the command line write it.
    shown = json.dumps(value) if value is None or isinstance(value, bool) else short_repr(value)
    return f"got {key}={shown}, expected {describe(found.hint)}{advice}"


def _inner_keys(hint: Any, key: str) -> str:
    names = [f"{key}.{name}" for name in parameters_of_mapping(hint).hints]
    return f"; its settings are {', '.join(names)}" if names else ""


def _nearest(key: str, written: Mapping[str, Any], command: str | None) -> str:
    """Return the end of a message on an unknown key: the nearest one beside it, or all that are allowed."""
    parent = key.rpartition(".")[0]
    node: Any = written
    for name in parent.split(".") if parent else []:
        node = node.get(name, {}) if isinstance(node, Mapping) else {}
    hint = parameters_of_mapping(COMMANDS[command]).hints.get(parent, Any) if command in COMMANDS else Any
    known = _parameters(node, hint).hints if isinstance(node, Mapping) else {}
    names = [_join(parent, name) for name in known]
    return _similar(key, names) or (f"; allowed are {', '.join(sorted(known))}" if known else "")


def _similar(key: str, known: Sequence[str]) -> str:
    if len(key) > _UNKNOWN_LENGTH:
        return ""
    node, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == node}
    close = [beside[name] for name in get_close_matches(last, beside, n=1, cutoff=_SIMILARITY)]
    # The right name in the wrong node, e.g. `batch_size` for `data.batch_size`; else a slip in the node.
    elsewhere = [name for name in known if name.rpartition(".")[2] == last][:3]
    found = close or elsewhere or get_close_matches(key, known, n=1, cutoff=_SIMILARITY)
    return f"; the nearest is {' or '.join(found)}" if found else ""
