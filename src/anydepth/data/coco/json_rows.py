"""Checked access to an untrusted json, with messages that name the file and the id."""

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
from anydepth.data.outlines import parse_rings
from anydepth.utils.messages import join_few, short_repr

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; a name that no file can have does not."""
    try:
        return path.exists()
    except OSError:  # Too long.
        return False


def is_file(path: Path) -> bool:
    """Return whether a file exists; a name that no file can have does not."""
    try:
        return path.is_file()
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class JsonRow:
    """One entry of a table of the json, with checked access to its values.

    Attributes:
        path: Json that holds the table.
        kind: "image", "annotation" or "category".
        position: Position in the table.
        entry: Values by key.
    """

    path: Path
    kind: str
    position: int
    entry: Mapping[str, Any]

    def error(self, message: str) -> DataError:
        """Create an error that names the file and this entry."""
        name = f"id {short_repr(self.entry['id'])}" if "id" in self.entry else f"number {self.position}"
        return DataError(f"{self.path}: {self.kind} {name}: {message}")

    def integer(self, key: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
        """Return a whole number from ``low`` to ``high``.

        Raises:
            DataError: It is missing, of another type or outside the range.
        """
        value = self.entry.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"{key!r} is {self._shown(key)}, expected a whole number from {low} to {high}")
        return value

    def text(self, key: str) -> str:
        """Return a text that is not empty.

        Raises:
            DataError: It is missing, of another type, or contains a lone surrogate.
        """
        value = self.entry.get(key)
        if not isinstance(value, str) or not value or _LONE_SURROGATE.search(value):
            raise self.error(f"{key!r} is {self._shown(key)}, expected a text")
        return value

    def numbers(self, key: str, count: int) -> Sequence[float]:
        """Return a list of numbers; NaN and infinity are allowed, and numbers beyond float become infinity.

        Raises:
            DataError: It is missing or of another form.
        """
        value = self.entry.get(key)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise self.error(f"{key!r} is {self._shown(key)}, expected a list of {count} numbers")
        return [_as_float(number) for number in value]

    def flag(self, key: str) -> bool:
        """Return a flag of 0 or 1; a missing key means 0.

        Raises:
            DataError: Another value.
        """
        value = self.entry.get(key, 0)
        if value not in (0, 1):
            raise self.error(f"{key!r} is {self._shown(key)}, expected 0 or 1")
        return bool(value)

    def area(self) -> float:
        """Return the area in square pixels, or NaN if the json has none that is positive and finite.

        Raises:
            DataError: It is not a number.
        """
        value = self.entry.get("area")
        if value is None:
            return math.nan
        if not _is_number(value):
            raise self.error(
                f"'area' is {self._shown('area')}, expected a number; correct it or leave it out"
            )
        area = _as_float(value)
        return area if math.isfinite(area) and area > 0 else math.nan

    def lookup(self, key: str, known: Mapping[int, int], table: str) -> int:
        """Look up an id of another table.

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
    """Read the text of a json file.

    Raises:
        DataError: The file is missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows tools start the file with a byte-order mark.
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the location of the annotations") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a json file in UTF-8") from error


def read_json(path: Path, *, outlines: bool = False) -> dict[str, Any]:
    """Read a COCO json into a dictionary.

    Args:
        path: File to read.
        outlines: Whether to parse each ``segmentation`` with :func:`parse_rings`; otherwise they are dropped,
            because they take most of the memory.

    Raises:
        DataError: The file is missing, not a json, or does not hold a dictionary.
    """
    document = _decode(path, read_text(path), _with_rings if outlines else _without_polygon)
    if not isinstance(document, dict):
        raise DataError(
            f"{path}: got a {type(document).__name__}, expected a COCO json: an object with 'images', "
            "'annotations' and 'categories'; a list is usually a results file"
        )
    return document


def json_table(document: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """Return a table of the json: a list of objects.

    Raises:
        DataError: The key is missing, or its value is not a list of objects.
    """
    if key not in document:
        raise DataError(
            f"{path}: {key!r} is missing; a COCO json has 'images', 'annotations' and 'categories'"
        )
    table = document[key]
    if not isinstance(table, list):
        raise DataError(f"{path}: {key!r} is a {type(table).__name__}, expected a list of objects")
    for position, entry in enumerate(table):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{position}] is a {type(entry).__name__}, expected an object")
    return table


def check_file_name(row: JsonRow) -> str:
    """Return the ``file_name`` of an image; it must stay inside the image folder on every operating system.

    Symbolic links in that folder are trusted as the user's own: archives with links are never unpacked here,
    and imported data sets may consist of links.

    Raises:
        DataError: It is absolute or contains "..".
    """
    name = row.text("file_name")
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    if "local-files/?d=" in name:
        raise row.error(
            f"file_name {name!r} is how Label Studio names a file of its local storage; keep what follows "
            "'?d=', as the page Data of the documentation shows"
        )
    if any(path.anchor or ".." in path.parts for path in spellings) or "\0" in name:
        raise row.error(
            f"file_name {name!r} leaves the image folder; give a name relative to it, without '..'"
        )
    return name


def check_unique(ids: NDArray[np.int64], kind: str, path: Path) -> None:
    """Check that ids are unique.

    Raises:
        DataError: Some are not; the message names the first few.
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
    except OverflowError:  # A json may hold whole numbers of any length.
        return math.inf if number > 0 else -math.inf


def _decode(path: Path, text: str, object_hook: Callable[[dict[str, Any]], dict[str, Any]]) -> object:
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # Thousands of digits are a plain ValueError.
        raise DataError(
            f"{path}: not a json file ({error}); it is truncated or damaged: restore it"
        ) from error


def _without_polygon(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _with_rings(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        entry["segmentation"] = parse_rings(entry["segmentation"])
    return entry
