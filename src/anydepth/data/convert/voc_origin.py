"""Whether the pixels of Pascal VOC xmls count from 0 or from 1: no file says so, but boxes hint at it.

The challenge counts from 1, but most tools that write its format count from 0. A wrong choice moves the left
and top side of every box by a pixel.
"""

import re
from collections import Counter

from anydepth.utils.messages import join_few

_CHALLENGE = re.compile(r"The VOC20\d\d Database")
"""<database> of the challenge's own files."""


class OriginEvidence:
    """Evidence of the boxes of a data set for the origin of its pixels.

    Args:
        zero_based: Whether pixels are taken to count from 0.
    """

    def __init__(self, *, zero_based: bool) -> None:
        self._zero_based = zero_based
        self._boxes = 0
        self._at_zero = 0
        self._at_one = 0
        self._first_at_zero = ""
        self._databases: Counter[str] = Counter()

    def add_box(self, left: float, top: float, where: str) -> None:
        """Count a box by its corner as it is written.

        Args:
            left: ``xmin``.
            top: ``ymin``.
            where: File and line.
        """
        self._boxes += 1
        if min(left, top) == 0:
            self._at_zero += 1
            self._first_at_zero = self._first_at_zero or where
        elif min(left, top) == 1:
            self._at_one += 1

    def add_database(self, name: str) -> None:
        """Count the ``<database>`` of an xml; empty if it has none."""
        self._databases[name] += 1

    def describe(self) -> str:
        """Return the origin that was assumed, the evidence, and the switch that changes it."""
        assumed = "0 (--zero-based)" if self._zero_based else "1, as in the VOC challenge"
        zero = f" (e.g. {self._first_at_zero})" if self._at_zero else ""
        named = [name for name, _ in self._databases.most_common() if name]
        return (
            f"pixels are taken to count from {assumed}. Of {self._boxes} boxes, {self._at_zero} start at "
            f"pixel 0{zero} and {self._at_one} at pixel 1; <database> is {join_few(named, 3) or 'missing'}. "
            f"{self._conclusion()}"
        )

    def _conclusion(self) -> str:
        challenge = any(map(_CHALLENGE.fullmatch, self._databases))
        if self._at_zero:
            if self._zero_based:
                return "Pixel 0 exists only if they do count from 0"
            return "Pixel 0 does not exist if they count from 1: import again with --zero-based"
        if challenge:
            if self._zero_based:
                return "The files of the challenge count from 1: import again without --zero-based"
            return "The files of the challenge count from 1"
        switch = "without --zero-based if it does not" if self._zero_based else "with --zero-based if it does"
        return (
            "This does not settle it, as labelImg writes 1 for 0. Most tools count from 0: look up the one "
            f"that wrote the files, and import again {switch}"
        )
