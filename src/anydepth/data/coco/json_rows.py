"""Reading a json whose structure may be wrong anywhere, with messages that name the file and the id."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.data.errors import DataError
from anydepth.data.outlines import rings_of
from anydepth.utils.messages import join_few, short_repr

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def exists(path: Path) -> bool:
    """Whether a file or folder is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:  # Too long.
        return False


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is not."""
    try:
        return path.is_file()
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class JsonRow:
    """One entry of a table of the json, which says what is wrong with it.

    Attributes:
        path: The json.
        kind: "image", "annotation" or "category".
        position: Its place in the table.
        entry: What the json holds.
    """

    path: Path
    kind: str
    position: int
    entry: Mapping[str, Any]

    def error(self, message: str) -> DataError:
        """An error that names the file and this entry."""
        name = f"id {short_repr(self.entry['id'])}" if "id" in self.entry else f"number {self.position}"
        return DataError(f"{self.path}: {self.kind} {name}: {message}")

    def integer(self, key: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
        """A whole number from ``low`` to ``high``.

        Raises:
            DataError: It is missing, of another type or outside the range.
        """
        value = self.entry.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"{key!r} is {self._shown(key)}; give a whole number from {low} to {high}")
        return value

    def text(self, key: str) -> str:
        """A text that is not empty.

        Raises:
            DataError: It is missing, of another type, or holds half a character (a lone surrogate).
        """
        value = self.entry.get(key)
        if not isinstance(value, str) or not value or _HALF_CHARACTER.search(value):
            raise self.error(f"{key!r} is {self._shown(key)}; give a text")
        return value

    def numbers(self, key: str, count: int) -> Sequence[float]:
        """A list of numbers; NaN and infinity are numbers here, as is what a float cannot hold (infinity).

        Raises:
            DataError: It is missing or of another form.
        """
        value = self.entry.get(key)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise self.error(f"{key!r} is {self._shown(key)}; give a list of {count} numbers")
        return [_as_float(number) for number in value]

    def flag(self, key: str) -> bool:
        """0 or 1; a missing key means 0.

        Raises:
            DataError: Another value.
        """
        value = self.entry.get(key, 0)
        if value not in (0, 1):
            raise self.error(f"{key!r} is {self._shown(key)}; give 0 or 1")
        return bool(value)

    def area(self) -> float:
        """The area in square pixels, NaN where the json has none that is positive and a float can hold.

        Raises:
            DataError: It is no number.
        """
        value = self.entry.get("area")
        if value is None:
            return math.nan
        if not _is_number(value):
            raise self.error(f"'area' is {self._shown('area')}; give a number or leave it out")
        area = _as_float(value)
        return area if math.isfinite(area) and area > 0 else math.nan

    def lookup(self, key: str, known: Mapping[int, int], table: str) -> int:
        """What an id of another table stands for.

        Raises:
            DataError: The id is not in that table.
        """
        value = self.integer(key)
        if value not in known:
            raise self.error(
                f"{key} {value} is not among the {table}; add it there or remove this {self.kind}"
            )
        return known[value]

    def _shown(self, key: str) -> str:
        return short_repr(self.entry[key]) if key in self.entry else "missing"


def read_text(path: Path) -> str:
    """The text of a json file.

    Raises:
        DataError: The file is missing or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows tools begin the file with a byte-order mark.
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path of the annotations") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a json file in UTF-8") from error


def read_json(path: Path, *, outlines: bool = False) -> dict[str, Any]:
    """The dictionary that a COCO json holds.

    Args:
        path: The json.
        outlines: Replace each ``segmentation`` by what :func:`rings_of` makes of it; otherwise they are left
            out, because they cost most of the memory.

    Raises:
        DataError: The file is missing, no json, or holds something else than a dictionary.
    """
    document = _decode(path, read_text(path), _with_rings if outlines else _without_polygon)
    if not isinstance(document, dict):
        raise DataError(
            f"{path}: holds a {type(document).__name__}, but a COCO json is an object with 'images', "
            "'annotations' and 'categories'; a list is usually a results file"
        )
    return document


def json_table(document: Mapping[str, Any], key: str, path: Path) -> list[Mapping[str, Any]]:
    """A list of objects of the json.

    Raises:
        DataError: The key is missing, or something else is found there.
    """
    if key not in document:
        raise DataError(
            f"{path}: {key!r} is missing; a COCO json has 'images', 'annotations' and 'categories'"
        )
    table = document[key]
    if not isinstance(table, list):
        raise DataError(f"{path}: {key!r} is a {type(table).__name__}; give a list of objects")
    for position, entry in enumerate(table):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{position}] is a {type(entry).__name__}; give an object")
    return table


def check_file_name(row: JsonRow) -> str:
    """``file_name`` of an image, which must stay inside the image folder on every operating system.

    Links in that folder are the user's own and lead where they lead: no archive that is unpacked here brings
    any, and imported data sets may consist of them.

    Raises:
        DataError: It is absolute or climbs out with "..".
    """
    name = row.text("file_name")
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    if any(path.anchor or ".." in path.parts for path in spellings) or "\0" in name:
        raise row.error(
            f"file_name {name!r} leaves the image folder; give a path relative to it, without '..'"
        )
    return name


def refuse_duplicates(ids: NDArray[np.int64], kind: str, path: Path) -> None:
    """Refuse ids that occur twice.

    Raises:
        DataError: Names the first few.
    """
    values, counts = np.unique(ids, return_counts=True)
    twice = values[counts > 1].tolist()
    if twice:
        raise DataError(
            f"{path}: {kind} ids must be unique, but these occur more than once: {join_few(twice)}; "
            "renumber them"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # A json may write a whole number of any length.
        return math.inf if number > 0 else -math.inf


def _decode(path: Path, text: str, object_hook: Callable[[dict[str, Any]], dict[str, Any]]) -> object:
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # Thousands of digits are a plain ValueError.
        raise DataError(
            f"{path}: not a json file ({error}); it is cut short or damaged: get it again"
        ) from error


def _without_polygon(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _with_rings(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        entry["segmentation"] = rings_of(entry["segmentation"])
    return entry
