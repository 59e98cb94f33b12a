"""Command lines of paths and ``key=value`` settings, for commands that start without Hydra and torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.utils.messages import join_few
from anydepth.utils.version import package_version


class OptionError(ValueError):
    """The command line holds something that is not allowed; the message says what is."""


@dataclass(frozen=True)
class Option:
    """A setting of a command line.

    Attributes:
        kind: Turns its text into a value; raises ValueError if it cannot.
        default: Value where it is not given; None is written as null.
        expected: What may be given, for messages.
    """

    kind: Callable[[str], Any]
    default: Any
    expected: str


def whole(default: int | None) -> Option:
    """Return an option of a whole number."""
    return Option(int, default, "a whole number")


def number(default: float | None) -> Option:
    """Return an option of a number."""
    return Option(float, default, "a number")


def text(default: str | None) -> Option:
    """Return an option of any text."""
    return Option(str, default, "a text")


def switch(default: bool) -> Option:
    """Return an option of true or false."""
    return Option(lambda value: {"true": True, "false": False}[value.lower()], default, "true or false")


def texts() -> Option:
    """Return an option of a list such as ``[a,b]``, empty where it is not given."""
    return Option(_split, (), "a list such as [a,b]")


def parse_options(
    argv: Sequence[str], options: Mapping[str, Option]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Split a command line into paths, as they were typed, and the value of each option.

    Args:
        argv: Words of the command line.
        options: Options by key.

    Raises:
        OptionError: An unknown key, or a value of another type.
    """
    values, paths = {key: option.default for key, option in options.items()}, []
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or (key not in options and Path(word).exists()):
            paths.append(word)
        elif key not in options:
            raise OptionError(f"got {word!r}, expected one of {', '.join(options)}; see --help")
        else:
            values[key] = _convert(key, value, options[key])
    return tuple(paths), values


def one_path(paths: Sequence[str], kinds: str = "bundles") -> str:
    """Return the only file, folder or repository of a command line.

    Args:
        paths: Those that were given.
        kinds: What they are, in the plural, for the message.

    Raises:
        OptionError: None, or several.
    """
    if len(paths) != 1:
        raise OptionError(f"got the {kinds} {join_few(paths) or '(none)'}, expected one; see --help")
    return paths[0]


def start_console(
    name: str, usage: str, command: Callable[[Sequence[str]], object], *, needs_words: bool = True
) -> None:
    """Run the command of a console script; ``--help``, or nothing where words are needed, prints the usage.

    Args:
        name: Name of the command.
        usage: Text of the help.
        command: Function that gets the words of the command line.
        needs_words: Whether the command does nothing without any.
    """
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv) or (needs_words and not argv):
        print(usage)
        raise SystemExit(0 if argv else 2)
    start(name, argv, command)


def start(name: str, argv: Sequence[str], command: Callable[[Sequence[str]], object]) -> None:
    """Run a command; what it refuses becomes one line on stderr and exit code 1.

    Args:
        name: Name of the command, which ``--version`` prints.
        argv: Words of the command line.
        command: Function that gets them.
    """
    if "--version" in argv:
        print(f"{name} {package_version()}")
        return
    try:
        command(argv)
    except (ValueError, OSError, MemoryError) as error:
        what = "memory ran out: " if isinstance(error, MemoryError) else ""
        print(f"\nError: {what}{error}", file=sys.stderr)
        raise SystemExit(1) from None


def _convert(key: str, value: str, option: Option) -> Any:
    if option.default is None and value.lower() in ("null", "none"):
        return None
    try:
        return option.kind(value)
    except (ValueError, KeyError):
        raise OptionError(f"got {key}={value!r}, expected {option.expected}") from None


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.strip("[]").split(",") if part.strip())
