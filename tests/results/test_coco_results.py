"""Results files: the name and the values that COCO's evaluation server accepts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.evaluation.coco_numbers import ResultRows
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


def result_rows(images: list[Any], categories: list[int], boxes: Any, scores: list[float]) -> ResultRows:
    ids = [np.array(column, dtype=object) for column in (images, categories)]
    return ResultRows(*ids, np.array(boxes, dtype=np.float64), np.array(scores, dtype=np.float64))


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_rows_are_complete_for_any_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(coco_results, "_ROWS_AT_ONCE", at_once)
    boxes = [[1.23456, 2, 3.5, 4], [0, 0, 1, 1], [5] * 4]
    # 2^53 + 1 is the first whole number that a float cannot hold.
    rows = result_rows([397133, 2**53 + 1, "a.jpg"], [90, -1, 5], boxes, [0.12345678, 1e-9, 5])

    write_results(rows, tmp_path / "new" / "results.json")

    assert json.loads((tmp_path / "new" / "results.json").read_text()) == [
        {"image_id": 397133, "category_id": 90, "bbox": [1.235, 2, 3.5, 4], "score": 0.1234568},
        {"image_id": 9007199254740993, "category_id": -1, "bbox": [0, 0, 1, 1], "score": 0},
        {"image_id": "a.jpg", "category_id": 5, "bbox": [5, 5, 5, 5], "score": 5},
    ]


def test_no_detections_are_an_empty_list(tmp_path: Path) -> None:
    write_results(result_rows([], [], np.empty((0, 4)), []), tmp_path / "results.json")

    assert json.loads((tmp_path / "results.json").read_text()) == []
