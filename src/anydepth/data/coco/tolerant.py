"""The tolerant reader of COCO json files: entry by entry, slow, for every spelling, with precise errors."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.categories import Categories, LabelMap, parse_categories
from anydepth.data.coco.json_rows import JsonRow, check_file_name, check_unique, json_table, read_json
from anydepth.data.coco.orientation import read_picture_sizes
from anydepth.data.coco.tables import MAX_SIDE, Annotations, CocoTables
from anydepth.data.errors import DataError
from anydepth.data.outlines import Rings
from anydepth.data.spelling import SpelledNames


def tolerant_tables(
    path: Path,
    categories: Categories | None,
    *,
    outlines: bool,
    annotated: bool = True,
    image_root: Path | None = None,
) -> CocoTables:
    """Read a json entry by entry.

    Sizes that it does not give are read from the pictures, and annotations without an id are numbered.

    Args:
        path: Json to read.
        categories: Categories of the training split, which define the labels; None uses the json's own.
        outlines: Whether to keep the polygons.
        annotated: Whether ``annotations`` are required; if False, a json without them holds images without
            ground truth.
        image_root: Folder of the pictures; None if sizes must be in the json.

    Raises:
        DataError: The json is malformed, or a picture whose size it does not give cannot be read.
    """
    document = read_json(path, outlines=outlines)
    if not annotated:
        document.setdefault("annotations", [])
    labels = parse_categories(document, path).match(categories)
    unsized = _fill_in_sizes(document, path, image_root)
    image_ids, sizes, names = _image_table(document, path)
    unnumbered = _fill_in_ids(document, path)
    rows, annotations = _annotation_table(document, path, image_ids, labels)
    remarks = tuple(filter(None, (labels.remark, unsized, unnumbered)))
    if not outlines:
        return CocoTables(labels.categories, image_ids, sizes, names, rows, annotations, None, remarks)
    entries = document["annotations"]

    def rings(position: int) -> Rings | None:
        # `read_json` has replaced each segmentation by its rings.
        found: Rings | None = entries[position].get("segmentation", [])
        return found

    return CocoTables(labels.categories, image_ids, sizes, names, rows, annotations, rings, remarks)


def _fill_in_sizes(document: dict[str, Any], path: Path, image_root: Path | None) -> str:
    """Fill in the sizes of images that have none, and return the remark about it; empty if all have one."""
    spelled = None if image_root is None else SpelledNames(image_root)
    count = 0
    for position, entry in enumerate(json_table(document, "images", path)):
        missing = next((key for key in ("height", "width") if entry.get(key) is None), None)
        if missing is None or image_root is None or spelled is None:
            continue
        row = JsonRow(path, "image", position, entry)
        name = spelled.find(check_file_name(row))
        if name is None:
            place = image_root / row.text("file_name")
            raise row.error(
                f"{missing!r} is None, and there is no {place} to take it from; restore the picture"
            )
        (entry["height"], entry["width"]), _ = read_picture_sizes(image_root / name)
        count += 1
    return f"{count} images have no height or width, which were taken from the pictures" if count else ""


def _fill_in_ids(document: dict[str, Any], path: Path) -> str:
    """Number the annotations without an id, and return the remark about it; empty if all have one."""
    table = json_table(document, "annotations", path)
    unnumbered = [entry for entry in table if entry.get("id") is None]
    given = [entry["id"] for entry in table if isinstance(entry.get("id"), int | float)]
    first = max((int(number) for number in given if abs(number) < 2**62), default=0) + 1
    for number, entry in enumerate(unnumbered, start=max(first, 1)):
        entry["id"] = number
    return f"{len(unnumbered)} annotations have no id and were numbered" if unnumbered else ""


def _image_table(
    document: dict[str, Any], path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int32], list[str]]:
    """Return ids [I], sizes [I, 2] (height, width) and file names of the images.

    Raises:
        DataError: An entry is malformed, an id is given twice, or there is no image.
    """
    table = json_table(document, "images", path)
    if not table:
        raise DataError(f"{path}: 'images' is empty; check that this is the right json")
    ids = np.empty(len(table), dtype=np.int64)
    sizes = np.empty((len(table), 2), dtype=np.int32)
    names: list[str] = []
    for position, entry in enumerate(table):
        row = JsonRow(path, "image", position, entry)
        ids[position] = row.integer("id")
        sizes[position] = row.integer("height", 1, MAX_SIDE), row.integer("width", 1, MAX_SIDE)
        names.append(check_file_name(row))
    check_unique(ids, "image", path)
    return ids, sizes, names


def _annotation_table(
    document: dict[str, Any], path: Path, image_ids: NDArray[np.int64], labels: LabelMap
) -> tuple[NDArray[np.int64], Annotations]:
    """Return the row of each annotation's image [A] and the annotations, in the order of the json.

    Raises:
        DataError: An entry is malformed, names an unknown image or category, or an id is given twice.
    """
    table = json_table(document, "annotations", path)
    row_of_image = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
    rows = np.empty(len(table), dtype=np.int64)
    ids = np.empty(len(table), dtype=np.int64)
    boxes = np.empty((len(table), 4), dtype=np.float64)
    classes = np.empty(len(table), dtype=np.int32)
    crowd = np.empty(len(table), dtype=np.bool_)
    areas = np.empty(len(table), dtype=np.float64)
    for position, entry in enumerate(table):
        row = JsonRow(path, "annotation", position, entry)
        ids[position] = row.integer("id")
        rows[position] = row.lookup("image_id", row_of_image, "images")
        classes[position] = row.lookup("category_id", labels.label_of, "categories")
        boxes[position] = row.numbers("bbox", 4)
        crowd[position] = row.flag("iscrowd")
        areas[position] = row.area()
    check_unique(ids, "annotation", path)
    return rows, Annotations(ids, boxes, classes, crowd, areas)
