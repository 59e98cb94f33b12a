"""Jsons of annotation tools that are not imported: what wrote them, and how to get a format that is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from anydepth.utils.messages import join_few

# Later parts repeat the same keys, or hold a whole image as text.
_READ_BYTES = 65_536


class _Kind(NamedTuple):
    """A kind of json.

    Attributes:
        start: First character.
        keys: Keys that its beginning holds, all of them.
        advice: Name of the format, and how to go on.
    """

    start: str
    keys: tuple[str, ...]
    advice: str


# The first that fits, so that those whose keys others have, too, come last.
_KINDS = (
    _Kind(
        "{",
        ("shapes", "imagePath"),
        "LabelMe's format is not read: convert it to COCO, e.g. with labelme2coco",
    ),
    _Kind("{", ("_via_settings",), "VIA's format is not read: export it from VIA as COCO"),
    _Kind("{", ("regions", "filename"), "VIA's format is not read: export it from VIA as COCO"),
    _Kind("[", ("coordinates", "image"), "Create ML's format is not read: convert it to COCO"),
    _Kind(
        "[", ("data", "annotations"), "Label Studio's json is not read: export it as COCO, YOLO or Pascal VOC"
    ),
    _Kind(
        "[", ("rectanglelabels",), "Label Studio's json is not read: export it as COCO, YOLO or Pascal VOC"
    ),
    _Kind("[", ("label", "image"), "Label Studio's json is not read: export it as COCO, YOLO or Pascal VOC"),
    _Kind(
        "{",
        ("images",),
        "a COCO json needs no import: give data.train_json, data.train_images and so on to anydepth-train "
        "data=custom",
    ),
)


def advise(jsons: Sequence[Path]) -> str:
    """Return a sentence on jsons, which are not imported; empty if none is of a known kind."""
    for path in jsons:
        kind = _find_kind(path)
        if kind is not None:
            return f"There is {join_few(jsons, 2)}: {kind.advice}"
    return ""


def _find_kind(path: Path) -> _Kind | None:
    try:
        with path.open("rb") as file:
            text = file.read(_READ_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    except OSError:
        return None
    return next(
        (
            kind
            for kind in _KINDS
            if text.startswith(kind.start) and all(re.search(rf'"{key}"\s*:', text) for key in kind.keys)
        ),
        None,
    )
