"""Printing of texts that come from outside: file names, paths, class names and messages."""

from rich import get_console
from rich.console import Console


def print_lines(*lines: object, console: Console | None = None) -> None:
    """Print lines exactly as they are.

    Rich takes ``[text]`` for markup and ``:car:`` for a picture, and colours and wraps what it prints; a path
    may hold any of these, and a closing tag in it would end the program.

    Args:
        lines: Lines to print, each on its own.
        console: Console to print to; None for the one of the process.
    """
    console = console or get_console()
    text = "\n".join(str(line) for line in lines)
    console.print(
        printable(text, console), markup=False, emoji=False, highlight=False, soft_wrap=True, style=None
    )


def printable(text: str, console: Console) -> str:
    """Return a text with escapes for what a console cannot encode, e.g. in a file name that is not UTF-8."""
    encoding = console.encoding
    return text.encode(encoding, errors="backslashreplace").decode(encoding)
