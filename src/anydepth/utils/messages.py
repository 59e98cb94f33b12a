"""Values and lists shortened for messages, at a bounded cost even where a file is hostile."""

import reprlib
from collections.abc import Collection
from itertools import islice
from typing import Final

MOST_CHARACTERS: Final = 80


class _ShortRepr(reprlib.Repr):
    """Looks at no more than a few members of a few levels, as parts may hold each other many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 12
        self.maxstring = self.maxother = MOST_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print numbers of thousands of digits."""
        return str(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


_SHORT_REPR = _ShortRepr()


def short_repr(value: object) -> str:
    """``repr`` of a value in at most 80 characters, however large it is and however deep it nests.

    Example:
        >>> short_repr([1, "a"]), len(short_repr(["x" * 1000] * 1000)), short_repr(2**4_000_000)
        ("[1, 'a']", 80, 'a number of 4000001 bits')
    """
    return _SHORT_REPR.repr(value)[:MOST_CHARACTERS]


def join_few(items: Collection[object], limit: int = 5) -> str:
    """The first few of a list, separated by commas, and how many more there are.

    Args:
        items: What to name.
        limit: How many of them are named.

    Example:
        >>> join_few(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in islice(items, limit)) + more
