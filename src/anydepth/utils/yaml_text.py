"""Safe loading of untrusted YAML: plain containers, in bounded time and memory, nothing executed."""

from collections.abc import Iterator
from typing import Any

import yaml

MAX_LENGTH = 500_000
"""Characters of a text, which takes seconds to parse; the configuration of a run is about 10,000 long."""
MAX_VALUES = 200_000
"""Values after the expansion of references: about as many as a text of ``MAX_LENGTH`` holds without any."""
MAX_LEVELS = 50
"""Depth of nested containers: more than any configuration needs, far below Python's recursion limit."""


class YamlTextError(ValueError):
    """A text is not YAML, or could exhaust time or memory."""


def load_yaml(text: str, *, as_text: bool = False) -> Any:
    """Load a YAML text into dictionaries, lists and scalars.

    A reference (``*name``) takes a few letters and may stand for a large part of the text, which may hold
    further references: ten lines can expand to a billion values. They are therefore counted before use.

    Args:
        text: Text of one document.
        as_text: Whether to keep every scalar as text.

    Raises:
        YamlTextError: The text is not YAML, is too long, nests too deep, expands to too many values or
            contains itself, or holds characters that UTF-8 cannot encode.
    """
    if len(text) > MAX_LENGTH:
        raise YamlTextError(f"got {len(text):,} characters, expected at most {MAX_LENGTH:,}")
    try:
        # Both loaders create only plain containers; malformed numbers and dates raise errors of several
        # kinds.
        content = yaml.load(text, Loader=yaml.BaseLoader if as_text else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise YamlTextError(" ".join(str(error).split()) or type(error).__name__) from error
    except RecursionError as error:
        raise YamlTextError(f"it nests too deep, expected at most {MAX_LEVELS} levels") from error
    _check(content)
    return content


def _check(content: object) -> None:
    for number, (value, level) in enumerate(_values(content)):
        if number >= MAX_VALUES:
            raise YamlTextError(f"its references expand to more than {MAX_VALUES:,} values")
        if level > MAX_LEVELS:
            raise YamlTextError(f"it nests too deep or contains itself, expected at most {MAX_LEVELS} levels")
        if isinstance(value, str):
            _check_text(value)


def _values(content: object) -> Iterator[tuple[object, int]]:
    """Iterate over all values and keys with their levels; endless if a container contains itself."""
    waiting: list[tuple[object, int]] = [(content, 0)]
    while waiting:
        value, level = waiting.pop()
        yield value, level
        if isinstance(value, dict):
            waiting += [(part, level + 1) for entry in value.items() for part in entry]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += [(part, level + 1) for part in value]


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise YamlTextError(f"{text[:80]!r} cannot be encoded in UTF-8") from error
