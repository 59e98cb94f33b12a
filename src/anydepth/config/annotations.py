"""Type annotations as rules for values of a configuration: what they accept, and how a message says so."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin

from anydepth.utils.messages import join_few

_NUMBER_WORDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}
_UNIONS = (Union, types.UnionType)
_MAX_CHOICES = 12  # A line of a terminal; Lightning lists some types twice.


@dataclass(frozen=True)
class Parameters:
    """Keys that a node of a configuration may hold.

    Attributes:
        hints: Annotation of each key; :data:`Any` where there is none.
        open: Whether other keys are allowed, because the target takes any keyword.
        others: Annotation of the other keys.
    """

    hints: Mapping[str, Any]
    open: bool = False
    others: Any = Any


@cache
def parameters_of(target: Callable[..., Any]) -> Parameters:
    """Return what a class or function takes as keywords; open if it does not say so."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return Parameters({}, open=True)
    hints = _hints_of(target)
    found: dict[str, Any] = {}
    accepts_any = False
    for name, parameter in signature.parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            settings = get_args(hint)  # of Unpack[SomeTypedDict]
            if settings and typing.is_typeddict(settings[0]):
                found |= typing.get_type_hints(settings[0])
            else:
                accepts_any = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = hint
    return Parameters(found, open=accepts_any)


def parameters_of_mapping(hint: Any) -> Parameters:
    """Return what a node without ``_target_`` may hold: the keys of a ``TypedDict``, or any."""
    for member in alternatives(hint):
        if typing.is_typeddict(member):
            return Parameters(typing.get_type_hints(member))
        if len(get_args(member)) == 2 and get_origin(member) not in (tuple, Literal, Callable):
            return Parameters({}, open=True, others=get_args(member)[1])
    return Parameters({}, open=True)


def _hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    function = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    try:
        return typing.get_type_hints(function)
    # A package may annotate with names that exist only while types are checked.
    except Exception:
        return {}


def alternatives(hint: Any) -> list[Any]:
    """Return the members of a union, aliases followed; the annotation itself if it is no union."""
    # Aliases by the keyword `type`, which came with Python 3.12.
    if hasattr(hint, "__value__") and not isinstance(hint, type):
        return alternatives(hint.__value__)
    if isinstance(hint, NewType):
        return alternatives(hint.__supertype__)
    origin = get_origin(hint)
    if origin is Annotated:
        return alternatives(get_args(hint)[0])
    if origin in _UNIONS:
        return [inner for member in get_args(hint) for inner in alternatives(member)]
    return [hint]


def accepts(hint: Any, value: object) -> bool:
    """Return whether a plain value fits an annotation; what cannot be judged fits.

    Numbers are not text, true and false are no numbers, and a whole number is no 2.5. A node with
    ``_target_`` fits everywhere: what it builds is not known before it is built.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    return any(_accepts(member, value) for member in alternatives(hint))


def _accepts(hint: Any, value: object) -> bool:
    origin, members = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar | str):
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(value == member and type(value) is type(member) for member in members)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if typing.is_typeddict(hint):
        return isinstance(value, Mapping)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(PurePath, kind) or issubclass(kind, PurePath):
        return isinstance(value, str | PurePath)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if kind is tuple:
        return _accepts_tuple(members, value)
    if issubclass(list, kind) and kind is not object:
        return _is_list(value) and all(accepts(members[0] if members else Any, item) for item in value)
    # What only a node with `_target_` can build, or an object that a program put there.
    return isinstance(value, kind)


def _accepts_tuple(members: Sequence[Any], value: object) -> bool:
    if not _is_list(value):
        return False
    if not members:
        return True
    if members[-1] is Ellipsis:
        return all(accepts(members[0], item) for item in value)
    return len(value) == len(members) and all(map(accepts, members, value))


def _is_list(value: object) -> typing.TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def describe(hint: Any) -> str:
    """Return what an annotation allows, in words.

    Example:
        >>> describe(int | None), describe(Sequence[float]), describe(Literal["joint", "separate"])
        ('a whole number or null', 'a list of numbers', 'joint or separate')
    """
    members = list(dict.fromkeys(word for member in alternatives(hint) for word in _words(member)))
    if len(members) > _MAX_CHOICES:
        return join_few(members, _MAX_CHOICES)
    return " or ".join([", ".join(members[:-1]), members[-1]] if len(members) > 1 else members)


def _words(hint: Any) -> Iterable[str]:
    origin, members = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [str(member) for member in members]
    if hint in _NUMBER_WORDS or hint is None:
        return [_NUMBER_WORDS[type(None) if hint is None else hint]]
    kind = origin or hint
    if typing.is_typeddict(hint) or (isinstance(kind, type) and issubclass(kind, Mapping)):
        return ["settings (KEY: VALUE)"]
    if not isinstance(kind, type):
        return ["any value"]
    if issubclass(PurePath, kind) or issubclass(kind, PurePath):
        return ["a file or folder"]
    if kind is tuple and members and members[-1] is not Ellipsis:
        return [f"a list of {len(members)} values ({', '.join(map(describe, members))})"]
    if issubclass(list, kind):
        return [f"a list of {_plural(members[0])}" if members else "a list"]
    return [f"settings with a _target_ that builds a {kind.__name__}"]


def _plural(hint: Any) -> str:
    words = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}
    described = describe(hint)
    return words.get(described, f"values ({described})")
