"""Detections of a scored arm, of all depths in one compressed file."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.results.coco_results import results_name
from anydepth.utils.files import atomic_path

DETECTIONS: Final = "detections.npz"
CURVE: Final = "depth_curve.json"
_COLUMNS: Final = ("image_ids", "category_ids", "boxes_xywh", "scores")


def pack_results(scored: Path, folder: Path) -> None:
    """Move what ``anydepth-evaluate results=true`` wrote into a folder that holds nothing else of its kind.

    Args:
        scored: Its output, which is removed.
        folder: Folder to write ``depth_curve.json`` and ``detections.npz`` into; the latter comes last.

    Raises:
        ValueError: A curve or a file of results that is none.
        OSError: One of them is missing.
    """
    text = (scored / CURVE).read_text(encoding="utf-8")
    curve = DepthCurve.from_json(text)
    arrays: dict[str, NDArray[Any]] = {}
    for row in curve.rows:
        # The split is a part of the name that this need not know.
        ending = results_name(Path("instances_x.json"), curve.detector, row.depth).removeprefix(
            "detections_x"
        )
        (path,) = scored.glob(f"detections_*{ending}")
        rows = json.loads(path.read_text(encoding="utf-8"))
        arrays |= {f"{row.depth}/{name}": column for name, column in _columns(rows).items()}
    with atomic_path(folder / CURVE) as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic_path(folder / DETECTIONS) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    shutil.rmtree(scored)


def read_detections(folder: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the detections of a scored arm by depth, in the order of its curve.

    Raises:
        ValueError: A damaged file.
        OSError: There is none.
    """
    curve = DepthCurve.from_json((folder / CURVE).read_text(encoding="utf-8"))
    with np.load(folder / DETECTIONS) as file:
        return {row.depth: {name: file[f"{row.depth}/{name}"] for name in _COLUMNS} for row in curve.rows}


def _columns(rows: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Return columns of COCO results: ids [R], boxes [R, 4] (corner and size, pixels), scores [R]."""
    return {
        "image_ids": np.array([row["image_id"] for row in rows], dtype=np.int64),
        "category_ids": np.array([row["category_id"] for row in rows], dtype=np.int64),
        "boxes_xywh": np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
        "scores": np.array([row["score"] for row in rows], dtype=np.float64),
    }
