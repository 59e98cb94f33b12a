"""The map between a data set's category ids and the contiguous labels that detectors learn."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.coco_json import (
    DataError,
    JsonRow,
    few,
    json_table,
    read_json,
    read_text,
    refuse_duplicates,
)


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

    def check_known_to(self, reference: "Categories") -> None:
        """Refuse categories that the training split does not have, or names otherwise.

        Raises:
            DataError: Names them.
        """
        known = dict(zip(reference.ids, reference.names, strict=True))
        wrong = [
            f"{category_id} {name!r}" + (f" ({known[category_id]!r} there)" if category_id in known else "")
            for category_id, name in zip(self.ids, self.names, strict=True)
            if known.get(category_id) != name
        ]
        if wrong:
            raise DataError(
                f"{self.source}: the training split {reference.source} does not have the categories "
                f"{few(wrong)}. Its categories rule all splits: add them there, or take them out here"
            )


def categories_of(document: Mapping[str, Any], path: Path) -> Categories:
    """The categories of a json, sorted by id.

    Raises:
        DataError: There is none, or one is malformed or given twice.
    """
    table = json_table(document, "categories", path)
    if not table:
        raise DataError(f"{path}: 'categories' is empty; name at least one class")
    rows = [JsonRow(path, "category", position, entry) for position, entry in enumerate(table)]
    pairs = sorted((row.integer("id"), row.text("name")) for row in rows)
    refuse_duplicates(np.array([category_id for category_id, _ in pairs]), "category", path)
    return Categories(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), path)


def read_categories(path: Path) -> Categories:
    """The categories of a json, where nothing else of it is needed.

    Parsing COCO's training json takes a quarter of a minute, finding its categories a second.

    Raises:
        DataError: As :func:`read_json` and :func:`categories_of`.
    """
    text = read_text(path)
    found = [match.end() - 1 for match in re.finditer(r'"categories"\s*:\s*\[', text)]
    if len(found) == 1:
        try:
            table, _ = json.JSONDecoder().raw_decode(text, found[0])
        except json.JSONDecodeError:
            pass  # Reading the whole file below says better what is wrong.
        else:
            return categories_of({"categories": table}, path)
    return categories_of(read_json(path), path)
