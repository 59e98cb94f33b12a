"""The map between a data set's category ids and the contiguous labels that detectors learn."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.data.coco.json_rows import JsonRow, check_unique, json_table, read_json
from anydepth.data.errors import DataError
from anydepth.utils.messages import join_few

_FIRST_BYTES = 2**20
"""Bytes in which the table of categories is searched first: far more than usual tables take (a few kB for
COCO's 80 categories)."""


@dataclass(frozen=True)
class Categories:
    """The map between contiguous labels and a data set's category ids, sorted by id; gaps are allowed.

    Attributes:
        ids: Category id of each label.
        names: Name of each label.
        source: Json that defines the categories, for messages.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    source: Path

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, str]], source: Path) -> "Categories":
        """Create categories from ids and names in any order.

        Raises:
            DataError: An id is given twice.
        """
        ordered = sorted(pairs)
        check_unique(np.array([category_id for category_id, _ in ordered]), "category", source)
        return cls(tuple(pair[0] for pair in ordered), tuple(pair[1] for pair in ordered), source)

    def match(self, reference: "Categories | None") -> "LabelMap":
        """Match these categories with those of the training split, which define the labels of all splits.

        They are matched by id if ids and names agree, and else by name: some tools number the classes of each
        split on their own.

        Args:
            reference: Categories of the training split; None if there is none.

        Raises:
            DataError: The training split lacks the name of one of these categories, or names are not unique.
        """
        defining = self if reference is None else reference
        by_id = LabelMap(defining, {category_id: label for label, category_id in enumerate(defining.ids)})
        known = set(zip(defining.ids, defining.names, strict=True))
        if known.issuperset(zip(self.ids, self.names, strict=True)):
            return by_id
        labels = {name: label for label, name in enumerate(defining.names)}
        unique = len(labels) == len(defining.names) and len(set(self.names)) == len(self.names)
        if not unique or not labels.keys() >= set(self.names):
            self.check_against(reference)
        pairs = zip(self.ids, self.names, strict=True)
        return LabelMap(
            defining,
            {category_id: labels[name] for category_id, name in pairs},
            "the ids of its categories differ from those of the training split "
            f"{defining.source}; they were matched by name, and detections are written with the ids of the "
            "training split",
        )

    def check_against(self, reference: "Categories | None") -> "Categories":
        """Check these categories against those of the training split, which define the labels of all splits.

        Args:
            reference: Categories of the training split; None if there is none.

        Returns:
            ``reference``, or these categories if it is None.

        Raises:
            DataError: The training split lacks one of these categories, or gives it another name.
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
                f"{join_few(wrong)}. It defines the labels of all splits: add them there, or remove them here"
            )
        return reference


@dataclass(frozen=True)
class LabelMap:
    """The label of each category id of a json.

    Attributes:
        categories: Categories that define the labels.
        label_of: Label of each category id that annotations may have.
        remark: What the user should know about the matching; empty if ids and names agree.
    """

    categories: Categories
    label_of: Mapping[int, int]
    remark: str = ""


def parse_categories(document: Mapping[str, Any], path: Path) -> Categories:
    """Parse the categories of a json.

    Raises:
        DataError: There is none, or one is malformed or given twice.
    """
    table = json_table(document, "categories", path)
    if not table:
        raise DataError(f"{path}: 'categories' is empty; name at least one class")
    rows = [JsonRow(path, "category", position, entry) for position, entry in enumerate(table)]
    return Categories.of(((row.integer("id"), row.text("name")) for row in rows), path)


def read_categories(path: Path) -> Categories:
    """Read only the categories of a json.

    Raises:
        DataError: See :func:`read_json` and :func:`parse_categories`.
    """
    table = _find_category_table(path)
    return parse_categories(read_json(path) if table is None else {"categories": table}, path)


def _find_category_table(path: Path) -> Any:
    """Return the table of categories without parsing the rest; None if that requires the whole file."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    found = [match.end() - 1 for match in re.finditer(rb'"categories"\s*:\s*\[', data)]
    if len(found) != 1:
        return None
    # The end of the table is not known; a truncated table does not parse.
    for size in (_FIRST_BYTES, len(data)):
        text = data[found[0] : found[0] + size].decode("utf-8", errors="ignore")
        with contextlib.suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(text)[0]
    return None
