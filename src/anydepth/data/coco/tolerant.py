"""The tolerant reader of COCO json files: entry by entry, slow, for every spelling, with precise errors."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.categories import Categories, parse_categories
from anydepth.data.coco.json_rows import JsonRow, check_file_name, check_unique, json_table, read_json
from anydepth.data.coco.tables import MAX_SIDE, Annotations, CocoTables
from anydepth.data.errors import DataError
from anydepth.data.outlines import Rings


def tolerant_tables(
    path: Path, categories: Categories | None, *, outlines: bool, annotated: bool = True
) -> CocoTables:
    """Read a json entry by entry.

    Args:
        path: Json to read.
        categories: Categories of the training split, which define the labels; None uses the json's own.
        outlines: Whether to keep the polygons.
        annotated: Whether ``annotations`` are required; if False, a json without them holds images without
            ground truth.

    Raises:
        DataError: The json is malformed.
    """
    document = read_json(path, outlines=outlines)
    if not annotated:
        document.setdefault("annotations", [])
    label_categories = parse_categories(document, path).check_against(categories)
    image_ids, sizes, names = _image_table(document, path)
    rows, annotations = _annotation_table(document, path, image_ids, label_categories)
    if not outlines:
        return CocoTables(label_categories, image_ids, sizes, names, rows, annotations, None)
    entries = document["annotations"]

    def rings(position: int) -> Rings | None:
        # `read_json` has replaced each segmentation by its rings.
        found: Rings | None = entries[position].get("segmentation", [])
        return found

    return CocoTables(label_categories, image_ids, sizes, names, rows, annotations, rings)


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
    document: dict[str, Any], path: Path, image_ids: NDArray[np.int64], categories: Categories
) -> tuple[NDArray[np.int64], Annotations]:
    """Return the row of each annotation's image [A] and the annotations, in the order of the json.

    Raises:
        DataError: An entry is malformed, names an unknown image or category, or an id is given twice.
    """
    table = json_table(document, "annotations", path)
    row_of_image = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
    label_of_category = {category_id: label for label, category_id in enumerate(categories.ids)}
    rows = np.empty(len(table), dtype=np.int64)
    ids = np.empty(len(table), dtype=np.int64)
    boxes = np.empty((len(table), 4), dtype=np.float64)
    labels = np.empty(len(table), dtype=np.int32)
    crowd = np.empty(len(table), dtype=np.bool_)
    areas = np.empty(len(table), dtype=np.float64)
    for position, entry in enumerate(table):
        row = JsonRow(path, "annotation", position, entry)
        ids[position] = row.integer("id")
        rows[position] = row.lookup("image_id", row_of_image, "images")
        labels[position] = row.lookup("category_id", label_of_category, "categories")
        boxes[position] = row.numbers("bbox", 4)
        crowd[position] = row.flag("iscrowd")
        areas[position] = row.area()
    check_unique(ids, "annotation", path)
    return rows, Annotations(ids, boxes, labels, crowd, areas)
