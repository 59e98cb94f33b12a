"""Values and lists shortened for messages, at a bounded cost even for hostile files."""

import reprlib
from collections.abc import Collection
from itertools import islice
from typing import Final

MAX_CHARACTERS: Final = 80  # A line of a terminal: enough to recognise a value.


class _ShortRepr(reprlib.Repr):
    """``repr`` of only a few members and levels, because containers may hold each other many times over."""

    def __init__(self) -> None:
        super().__init__()
        # They fill MAX_CHARACTERS; more would be cut off anyway.
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 12
        self.maxstring = self.maxother = MAX_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        """Shorten large numbers, because Python refuses to print thousands of digits."""
        return str(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


_SHORT_REPR = _ShortRepr()


def short_repr(value: object) -> str:
    """Return the ``repr`` of a value in at most 80 characters, however large or deeply nested it is.

    Example:
        >>> short_repr([1, "a"]), len(short_repr(["x" * 1000] * 1000)), short_repr(2**4_000_000)
        ("[1, 'a']", 80, 'a number of 4000001 bits')
    """
    return _SHORT_REPR.repr(value)[:MAX_CHARACTERS]


def join_few(items: Collection[object], limit: int = 5) -> str:
    """Join the first few items with commas, and count the others.

    Args:
        items: Items to join.
        limit: Maximum number of items to name.

    Example:
        >>> join_few(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in islice(items, limit)) + more
