"""The map between a data set's category ids and the contiguous labels that detectors learn."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.coco.json_rows import JsonRow, json_table, read_json, refuse_duplicates
from anydepth.data.errors import DataError
from anydepth.utils.messages import join_few

_FIRST_PART = 2**20


@dataclass(frozen=True)
class Categories:
    """The map between contiguous labels and a data set's category ids, sorted by id; gaps are allowed.

    Attributes:
        ids: Category id of each label.
        names: Name of each label.
        source: The json it comes from, for messages.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    source: Path

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, str]], source: Path) -> "Categories":
        """Categories from ids and names in any order.

        Raises:
            DataError: An id is given twice.
        """
        ordered = sorted(pairs)
        refuse_duplicates(np.array([category_id for category_id, _ in ordered]), "category", source)
        return cls(tuple(pair[0] for pair in ordered), tuple(pair[1] for pair in ordered), source)

    def ruled_by(self, reference: "Categories | None") -> "Categories":
        """The categories that labels follow: those of the training split, if there is one.

        Raises:
            DataError: Names categories that the training split does not have, or names otherwise.
        """
        if reference is None:
            return self
        known = dict(zip(reference.ids, reference.names, strict=True))
        wrong = [
            f"{category_id} {name!r}" + (f" ({known[category_id]!r} there)" if category_id in known else "")
            for category_id, name in zip(self.ids, self.names, strict=True)
            if known.get(category_id) != name
        ]
        if wrong:
            raise DataError(
                f"{self.source}: the training split {reference.source} does not have the categories "
                f"{join_few(wrong)}. Its categories rule all splits: add them there, or take them out here"
            )
        return reference


def categories_of(document: Mapping[str, Any], path: Path) -> Categories:
    """The categories of a json, sorted by id.

    Raises:
        DataError: There is none, or one is malformed or given twice.
    """
    table = json_table(document, "categories", path)
    if not table:
        raise DataError(f"{path}: 'categories' is empty; name at least one class")
    rows = [JsonRow(path, "category", position, entry) for position, entry in enumerate(table)]
    return Categories.of(((row.integer("id"), row.text("name")) for row in rows), path)


def read_categories(path: Path) -> Categories:
    """The categories of a json, where nothing else of it is needed.

    Raises:
        DataError: As :func:`read_json` and :func:`categories_of`.
    """
    table = _table_of_categories(path)
    return categories_of(read_json(path) if table is None else {"categories": table}, path)


def _table_of_categories(path: Path) -> Any:
    """The categories without parsing the rest; None where only the whole file tells what is wrong."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    found = [match.end() - 1 for match in re.finditer(rb'"categories"\s*:\s*\[', data)]
    if len(found) != 1:
        return None
    # The end of the table is not known; a part that is cut short does not parse.
    for size in (_FIRST_PART, len(data)):
        text = data[found[0] : found[0] + size].decode("utf-8", errors="ignore")
        with contextlib.suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(text)[0]
    return None
