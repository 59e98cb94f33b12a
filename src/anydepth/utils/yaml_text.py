"""Reading YAML that somebody else wrote: plain containers, in bounded time and memory, nothing executed."""

from collections.abc import Iterator
from typing import Any

import yaml

MOST_BYTES = 500_000
"""Of a text, which take seconds; the configuration of a run takes ten thousand."""
MOST_VALUES = 200_000
"""That a text may stand for, with everything counted as often as it is referred to."""
MOST_LEVELS = 50
"""Of containers inside each other."""


class YamlTextError(ValueError):
    """A text that is no YAML, or one that is not read because it could take the machine's time or memory."""


def load_yaml(text: str, *, as_text: bool = False) -> Any:
    """What a YAML text says, in dictionaries, lists and scalars.

    A reference (``*name``) costs a few letters and may stand for a large part of the text, which may hold
    references again: ten lines can say a billion values. So they are counted before anybody walks over them.

    Args:
        text: Of one document.
        as_text: Leave every scalar the text that it is written as.

    Raises:
        YamlTextError: The text is no YAML, is too long, nests too deep, stands for too many values or for
            itself, or holds characters that no file can.
    """
    if len(text) > MOST_BYTES:
        raise YamlTextError(f"{len(text):,} characters are too many; at most {MOST_BYTES:,} are read")
    try:
        # Both loaders make plain containers only. Which error malformed numbers and dates raise is theirs.
        content = yaml.load(text, Loader=yaml.BaseLoader if as_text else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise YamlTextError(" ".join(str(error).split()) or type(error).__name__) from error
    except RecursionError as error:
        raise YamlTextError(f"it nests too deep; at most {MOST_LEVELS} levels are read") from error
    _check(content)
    return content


def _check(content: object) -> None:
    for number, (value, level) in enumerate(_values(content)):
        if number >= MOST_VALUES:
            raise YamlTextError(f"its references stand for more than {MOST_VALUES:,} values")
        if level > MOST_LEVELS:
            raise YamlTextError(f"it nests too deep, or holds itself; at most {MOST_LEVELS} levels are read")
        if isinstance(value, str):
            _check_text(value)


def _values(content: object) -> Iterator[tuple[object, int]]:
    """Everything in plain containers with its level, keys too; without an end if they hold themselves."""
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
        raise YamlTextError(f"{text[:80]!r} is no text that UTF-8 can hold") from error
