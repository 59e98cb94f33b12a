"""Results files: the name and the values that COCO's evaluation server accepts."""

import json
from pathlib import Path

import numpy as np
import pytest

from anydepth.results import coco_results
from anydepth.results.coco_results import results_name, write_results


@pytest.mark.parametrize(
    ("json_path", "expected"),
    [
        ("annotations/image_info_test-dev2017.json", "detections_test-dev2017_detr-r50-full_results.json"),
        ("annotations/instances_val2017.json", "detections_val2017_detr-r50-full_results.json"),
        ("bees/valid/_annotations.coco.json", "detections_valid_detr-r50-full_results.json"),
    ],
)
def test_name_is_the_one_the_server_requires(json_path: str, expected: str) -> None:
    """https://cocodataset.org/#upload: detections_[testset]_[alg]_results.json."""
    assert results_name(Path(json_path), "detr_r50", "full") == expected


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_rows_are_complete_for_any_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(coco_results, "_ROWS_AT_ONCE", at_once)
    table = np.array([[397133, 1.23456, 2, 3.5, 4, 0.12345678, 90], [37777, 0, 0, 1, 1, 1e-9, 1], [5] * 7])

    write_results(table, tmp_path / "new" / "results.json")

    assert json.loads((tmp_path / "new" / "results.json").read_text()) == [
        {"image_id": 397133, "category_id": 90, "bbox": [1.235, 2, 3.5, 4], "score": 0.1234568},
        {"image_id": 37777, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0},
        {"image_id": 5, "category_id": 5, "bbox": [5, 5, 5, 5], "score": 5},
    ]


def test_no_detections_are_an_empty_list(tmp_path: Path) -> None:
    write_results(np.empty((0, 7)), tmp_path / "results.json")

    assert json.loads((tmp_path / "results.json").read_text()) == []
