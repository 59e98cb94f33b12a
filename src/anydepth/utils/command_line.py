"""Settings as they are typed on a command line, quoted for Hydra and the shell."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

# What Hydra reads as a plain text without quotes, and no shell changes.
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+-]+")
# What it reads as another value than a text.
_VALUE = re.compile(r"[0-9_.+-]*(e[0-9_+-]*)?|null|true|false|[+-]?(inf|nan)", re.IGNORECASE)


# A comparison that begins a value, or an entry of a list or a sweep, up to where that ends.
_COMPARISON = re.compile(r"(?<=[=,\[])(\s*)((?:[<>]=?|[≤≥])[^,\[\]'\"]*)")


def quote_comparisons(text: str) -> str:
    """Return an override of Hydra with comparisons such as ``<=8ms`` in quotes, without which none is read.

    Shells take the quotes of ``depth="<=8ms"`` away.

    Example:
        >>> quote_comparisons("depth=<=8ms"), quote_comparisons("depths=[full,>=95%ap]")
        ('depth="<=8ms"', 'depths=[full,">=95%ap"]')
        >>> quote_comparisons('depth="<=8ms"'), quote_comparisons("a=b")
        ('depth="<=8ms"', 'a=b')
    """
    key, equals, value = text.partition("=")
    if not equals:
        return text
    return key + _COMPARISON.sub(lambda found: f'{found[1]}"{found[2].rstrip()}"', equals + value)


def name_positional(arguments: Sequence[str], key: str) -> list[str]:
    """Return the arguments of a command with ``KEY=`` in front of a first one that is only a value.

    Args:
        arguments: Arguments as typed, without the name of the program.
        key: Setting that the first argument is a value of.

    Example:
        >>> name_positional(["bundle/", "depth=full"], "weights")
        ['weights=bundle/', 'depth=full']
        >>> name_positional(["-m", "depth=full"], "weights")
        ['-m', 'depth=full']
    """
    first, rest = arguments[:1], list(arguments[1:])
    if not first or first[0].startswith(("-", "~")) or ("=" in first[0] and not Path(first[0]).exists()):
        return [*first, *rest]
    return [*shlex.split(setting(key, first[0])), *rest]


def setting(key: str, value: object) -> str:
    """Return ``key=value`` for messages that name a command to copy.

    Example:
        >>> print(setting("output", "runs/a"), setting("output", "runs [1]"))
        output=runs/a 'output="runs [1]"'
    """
    text = str(value)
    if _PLAIN.fullmatch(text) and not _VALUE.fullmatch(text):
        return f"{key}={text}"
    # In Hydra's quoted texts, a backslash counts only before a quote or an interpolation.
    escaped = re.sub(r'(\\*)("|\$\{)', r"\1\1\\\2", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return shlex.quote(f'{key}="{escaped}"')
