"""Values of files that others wrote, in few words: a message must not cost more than the file."""

import reprlib
from collections.abc import Sequence
from typing import Final

MOST_CHARACTERS: Final = 80

# How many items of a list a message shows.
_SHOWN = 5


class _Brief(reprlib.Repr):
    """Looks at no more than a few members of a few levels, as parts may hold each other many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 12
        self.maxstring = self.maxother = MOST_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print numbers of thousands of digits."""
        return str(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


_BRIEF = _Brief()


def brief(value: object) -> str:
    """``repr`` of a value in at most 80 characters, however large it is and however deep it nests.

    Example:
        >>> brief([1, "a"]), len(brief(["x" * 1000] * 1000)), brief(2**4_000_000)
        ("[1, 'a']", 80, 'a number of 4000001 bits')
    """
    return _BRIEF.repr(value)[:MOST_CHARACTERS]


def few(items: Sequence[object]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + more
