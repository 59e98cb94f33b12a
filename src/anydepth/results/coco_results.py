"""Detections on a data set in COCO's results format, as its evaluation server accepts them."""

import json
import re
from pathlib import Path

from anydepth.detections import coco_entry
from anydepth.evaluation.coco_numbers import ResultRows
from anydepth.utils.files import atomic_path

# Rows converted to dictionaries at a time: millions of them at once would take gigabytes.
_ROWS_AT_ONCE = 100_000


def results_name(json_path: Path, detector: str, depth: str) -> str:
    """Return ``detections_TESTSET_NAME_results.json``, the file name that the server requires.

    Args:
        json_path: Annotation file of the split, which names the test set.
        detector: Name of the detector.
        depth: Text of the depth.

    Example:
        >>> path = Path("annotations/image_info_test-dev2017.json")
        >>> results_name(path, "detr_r50", "stage3+neck@5")
        'detections_test-dev2017_detr-r50-stage3-neck-5_results.json'
    """
    testset = re.sub(r"^(instances|image_info)_", "", json_path.stem)
    if testset.startswith("_"):  # SPLIT/_annotations.coco.json
        testset = json_path.parent.name
    # The server splits the name at underscores.
    algorithm = re.sub(r"[^A-Za-z0-9.]+", "-", f"{detector}-{depth}").strip("-")
    return f"detections_{testset}_{algorithm}_results.json"


def write_results(rows: ResultRows, path: str | Path) -> Path:
    """Write detections as a list of ``image_id``, ``category_id``, ``bbox`` and ``score``.

    Values are rounded as :func:`anydepth.detections.coco_entry` says.

    Args:
        rows: Detections with the ids of the data set.
        path: File to write, complete or not at all; missing folders are created.

    Returns:
        The path.
    """
    path = Path(path)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write("[")
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            columns = (rows.image_ids, rows.category_ids, rows.boxes_xywh, rows.scores)
            entries = zip(*(column[part].tolist() for column in columns), strict=True)
            lines = ",\n".join(json.dumps(coco_entry(*entry)) for entry in entries)
            file.write((",\n" if begin else "") + lines)
        file.write("]\n")
    return path
