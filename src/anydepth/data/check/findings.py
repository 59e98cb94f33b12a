"""Findings of a check: problems that end training, and doubts that someone should look at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

MAX_EXAMPLES: Final = 100  # A page of thousands of lines helps nobody.
Severity = Literal["problem", "doubt"]


@dataclass(frozen=True)
class Finding:
    """Entries of one kind.

    Attributes:
        title: What is wrong with them.
        severity: ``problem``: training or evaluation would end or lose data; ``doubt``: it may be right.
        count: Number of entries.
        examples: The first entries.
    """

    title: str
    severity: Severity
    count: int
    examples: tuple[str, ...]

    @classmethod
    def of(cls, title: str, severity: Severity, entries: Iterable[str]) -> "list[Finding]":
        """Return the finding of all entries in a list; an empty list if there is none."""
        found: Sequence[str] = list(entries)
        return [cls(title, severity, len(found), tuple(found[:MAX_EXAMPLES]))] if found else []
