"""COCO metrics: both backends agree with COCO's own code, in one process and over several."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import distributed as dist

from anydepth.evaluation.coco_eval import FIGURES, CocoEvaluator, EvaluationError
from anydepth.structures import Detections
from spawned import spawn

CATEGORY_IDS = (2, 3, 11, 90)
IMAGE_IDS = (1, 4, 5, 1000, 4242424242)


def _truth(seed: int = 0) -> dict[str, Any]:
    """Return random ground truth with crowd, gaps in ids, an empty image and a category without objects."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image_id in IMAGE_IDS[:-1]:
        for _ in range(12):
            x, y, width, height = random.uniform((0, 0, 4, 4), (300, 300, 150, 150))
            annotations.append(
                {
                    "id": 10 + 3 * len(annotations),
                    "image_id": image_id,
                    "category_id": int(random.choice(CATEGORY_IDS[:-1])),
                    "bbox": [x, y, width, height],
                    # As with polygons, the area is smaller than the box.
                    "area": width * height * random.uniform(0.5, 1),
                    "iscrowd": int(random.uniform() < 0.15),
                }
            )
    return {
        "images": [{"id": image_id, "width": 480, "height": 480, "file_name": ""} for image_id in IMAGE_IDS],
        "categories": [{"id": category_id, "name": f"class{category_id}"} for category_id in CATEGORY_IDS],
        "annotations": annotations,
    }


def _detections(
    truth: Mapping[str, Any], seed: int = 1, category_ids: Sequence[int] = CATEGORY_IDS
) -> dict[int, Detections]:
    """Return jittered ground truth and false positives, with scores of two decimals so that many tie."""
    random = np.random.default_rng(seed)
    found: dict[int, Detections] = {}
    for image in truth["images"]:
        boxes, labels = [random.uniform((0, 0, 50, 50), (50, 50, 200, 200))], [3]
        for annotation in truth["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            x, y, width, height = annotation["bbox"]
            label = category_ids.index(annotation["category_id"])
            for _ in range(3):
                box = np.array([x, y, x + width, y + height]) + random.normal(0, 4, 4)
                boxes.append(box)
                labels.append(label if random.uniform() < 0.8 else int(random.integers(4)))
        if image["id"] == IMAGE_IDS[2]:
            boxes, labels = boxes[:0], labels[:0]
        scores = np.sort(random.uniform(0, 1, len(boxes)).round(2))[::-1].copy()
        found[image["id"]] = Detections(
            torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(labels, dtype=torch.int64),
        )
    return found


def _reference(
    truth: Mapping[str, Any], found: Mapping[int, Detections], category_ids: Sequence[int] = CATEGORY_IDS
) -> list[float]:
    """pycocotools called as its own demonstration does, on result dictionaries."""
    coco = COCO()
    coco.dataset = {"info": {}, **truth}
    coco.createIndex()
    results = [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "bbox": [
                float(box[0]),
                float(box[1]),
                float(box[2]) - float(box[0]),
                float(box[3]) - float(box[1]),
            ],
            "score": float(score),
        }
        for image_id, item in found.items()
        for box, score, label in zip(item.boxes_xyxy, item.scores, item.labels, strict=True)
    ]
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_those_of_pycocotools(
    backend: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = _truth(seed)
    found = _detections(truth, seed)
    expected = _reference(truth, found)
    capsys.readouterr()
    evaluator = CocoEvaluator(ground_truth=truth, backend=backend)
    # Images in another order and in batches of 2: the order of arrival must not matter.
    order = list(found)[::-1]
    for start in range(0, len(order), 2):
        ids = order[start : start + 2]
        evaluator.add("full", ids, [found[image_id] for image_id in ids])
    result = evaluator.evaluate()["full"]
    assert list(result.figures) == list(FIGURES)
    assert list(result.figures.values()) == pytest.approx(expected, abs=1e-12)
    assert 0.05 < result.figures["AP"] < 0.95, "metrics near 0 or 1 would hide differences"
    assert result.images == len(IMAGE_IDS)
    assert capsys.readouterr().out == "", "the evaluation must not print into progress bars"


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_per_class_ap_is_the_ap_of_that_class_alone(backend: str) -> None:
    truth = _truth()
    found = _detections(truth)
    evaluator = CocoEvaluator(ground_truth=truth, backend=backend)
    evaluator.add("full", list(found), list(found.values()))
    per_class = evaluator.evaluate()["full"].per_class
    for category_id in CATEGORY_IDS[:-1]:
        alone = {
            **truth,
            "annotations": [a for a in truth["annotations"] if a["category_id"] == category_id],
        }
        assert per_class[f"class{category_id}"] == pytest.approx(_reference(alone, found)[0], abs=1e-12)
    assert per_class["class90"] == -1, "a category without objects has no AP"


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_detections_give_zero_and_minus_one_without_objects(backend: str) -> None:
    truth = _truth()
    truth["annotations"] = [{**a, "area": 2000.0} for a in truth["annotations"]]
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    evaluator = CocoEvaluator(ground_truth=truth, backend=backend)
    evaluator.add("full", IMAGE_IDS, [nothing] * len(IMAGE_IDS))
    figures = evaluator.evaluate()["full"].figures
    # 2000 square pixels are medium in COCO's terms (32**2 to 96**2).
    empty = {"APs", "APl", "ARs", "ARl"}
    assert figures == {name: -1.0 if name in empty else 0.0 for name in FIGURES}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_only_images_that_were_added_count(backend: str) -> None:
    truth = _truth()
    found = _detections(truth)
    added = IMAGE_IDS[:2]
    evaluator = CocoEvaluator(ground_truth=truth, backend=backend)
    evaluator.add("full", added, [found[image_id] for image_id in added])
    smaller = {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in added],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in added],
    }
    expected = _reference(smaller, {image_id: found[image_id] for image_id in added})
    result = evaluator.evaluate()["full"]
    assert list(result.figures.values()) == pytest.approx(expected, abs=1e-12)
    assert result.images == 2


def test_an_image_that_comes_twice_counts_once_and_keys_do_not_mix() -> None:
    truth = _truth()
    found = _detections(truth)
    evaluator = CocoEvaluator(ground_truth=truth)
    evaluator.add("full", list(found), list(found.values()))
    evaluator.add("full", IMAGE_IDS[:1], [found[IMAGE_IDS[0]]])
    other = _detections(truth, seed=7)
    evaluator.add("minimal", list(other), list(other.values()))
    results = evaluator.evaluate()
    assert list(results["full"].figures.values()) == pytest.approx(_reference(truth, found), abs=1e-12)
    assert list(results["minimal"].figures.values()) == pytest.approx(_reference(truth, other), abs=1e-12)
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_labels_follow_the_categories_the_detector_was_trained_on() -> None:
    truth = _truth()
    found = _detections(truth)
    reordered = {
        image_id: Detections(item.boxes_xyxy, item.scores, 4 - item.labels)
        for image_id, item in found.items()
    }
    evaluator = CocoEvaluator(ground_truth=truth, category_ids=(7, *reversed(CATEGORY_IDS)))
    evaluator.add("full", list(reordered), list(reordered.values()))
    figures = evaluator.evaluate()["full"].figures
    assert list(figures.values()) == pytest.approx(_reference(truth, found), abs=1e-12)


BEYOND_FLOAT = 2**53
UNUSUAL_IDS = {
    "from 0": [0, 1, 2, 3],
    "negative": [-4, -3, -2, -1],
    "beyond 2^53": [BEYOND_FLOAT, BEYOND_FLOAT + 1, BEYOND_FLOAT + 2, BEYOND_FLOAT + 3],
    "the ends of int64": [-(2**63), -1, 0, 2**63 - 1],
    "text": ["a", "b", "c", "d"],
}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("table", ["images", "categories", "annotations"])
@pytest.mark.parametrize("ids", UNUSUAL_IDS.values(), ids=UNUSUAL_IDS)
def test_figures_do_not_depend_on_how_ids_are_written(backend: str, table: str, ids: Sequence[Any]) -> None:
    """Figures are those of ids 1 to 4, which pycocotools reads as they are."""
    plain = {
        "images": [{"id": i, "width": 480, "height": 480, "file_name": ""} for i in range(1, 5)],
        "categories": [{"id": i, "name": f"class{i}"} for i in range(1, 5)],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [10.0 * i, 20.0, 50.0 + 7 * i, 60.0],
                "area": 3000.0,
                "iscrowd": 0,
            }
            for i in range(1, 5)
        ],
    }
    found = _detections(plain, category_ids=(1, 2, 3, 4))
    changed = json.loads(json.dumps(plain))
    for entry in changed[table]:
        entry["id"] = ids[entry["id"] - 1]
    for annotation in changed["annotations"]:
        for key, name in (("image_id", "images"), ("category_id", "categories")):
            annotation[key] = ids[annotation[key] - 1] if name == table else annotation[key]
    evaluator = CocoEvaluator(ground_truth=changed, backend=backend)
    for image, item in zip(changed["images"], found.values(), strict=True):
        evaluator.add("full", [image["id"]], [item])
    figures = list(evaluator.evaluate()["full"].figures.values())
    assert figures == pytest.approx(_reference(plain, found, (1, 2, 3, 4)), abs=1e-12)
    assert 0.05 < figures[0] < 0.95, "metrics near 0 or 1 would hide differences"
    rows = evaluator.result_rows("full")
    images = [(image, len(item)) for image, item in zip(changed["images"], found.values(), strict=True)]
    assert rows.image_ids.tolist() == [image["id"] for image, count in images for _ in range(count)]
    labels = torch.cat([item.labels for item in found.values()]).tolist()
    assert rows.category_ids.tolist() == [changed["categories"][label]["id"] for label in labels]


def test_ground_truth_whose_ids_do_not_fit_is_refused() -> None:
    truth = _truth()
    with pytest.raises(EvaluationError, match="5 entries with 4 image ids"):
        CocoEvaluator(ground_truth={**truth, "images": [*truth["images"][:4], truth["images"][0]]})
    evaluator = CocoEvaluator(ground_truth={**truth, "images": truth["images"][1:]})
    evaluator.add("full", [4], [_box()])
    with pytest.raises(EvaluationError, match="an annotation of the ground truth names 1"):
        evaluator.evaluate()


def test_classes_without_a_category_are_ignored_also_beside_a_category_minus_one() -> None:
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": -1, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": -1, "bbox": [1, 2, 19, 18], "area": 342, "iscrowd": 0},
        ],
    }
    evaluator = CocoEvaluator(ground_truth=truth, category_ids=[None, -1])
    # The better detection is of the class without a category; were it one of the trees, AP would be 0.5.
    wrong, right = _box(label=0, score=0.9, right=90.0), _box(label=1, score=0.5)
    both = Detections(
        torch.cat([wrong.boxes_xyxy, right.boxes_xyxy]),
        torch.cat([wrong.scores, right.scores]),
        torch.cat([wrong.labels, right.labels]),
    )
    evaluator.add("full", [1], [both])
    assert evaluator.evaluate()["full"].figures["AP"] == pytest.approx(1)
    assert len(evaluator.result_rows("full")) == 1


def test_two_categories_of_one_name_keep_both_their_figures() -> None:
    truth = _truth()
    for category in truth["categories"]:
        category["name"] = "tree"
    found = _detections(truth)
    evaluator = CocoEvaluator(ground_truth=truth)
    evaluator.add("full", list(found), list(found.values()))
    assert list(evaluator.evaluate()["full"].per_class) == [f"tree ({i})" for i in CATEGORY_IDS]


def _box(label: int = 0, score: float = 0.5, right: float = 20.0) -> Detections:
    return Detections(
        torch.tensor([[1.0, 2.0, right, 20.0]]),
        torch.tensor([score]),
        torch.tensor([label], dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("image_ids", "detections", "message"),
    [
        ([3], [_box()], "got image id 3"),
        ([1, 4], [_box()], "got 2 image ids and 1 lists"),
        ([1], [_box(label=4)], "4 categories"),
        ([1], [_box(label=-1)], "4 categories"),
        ([1], [_box(score=float("nan"))], "depth full, images \\[1\\].*not finite"),
        ([1], [_box(right=float("inf"))], "not finite"),
    ],
)
def test_detections_that_cannot_be_evaluated_are_refused(
    image_ids: Sequence[int], detections: Sequence[Detections], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        CocoEvaluator(ground_truth=_truth()).add("full", image_ids, detections)


def test_wrong_settings_name_what_is_allowed() -> None:
    with pytest.raises(EvaluationError, match="expected one of hotcoco, pycocotools"):
        CocoEvaluator(ground_truth=_truth(), backend="coco")
    with pytest.raises(EvaluationError, match="without categories"):
        CocoEvaluator(ground_truth={**_truth(), "categories": []})


# -- several processes ---------------------------------------------------------------------------------


# Image ids by process: shards of different size; the last image repeats one of the first, as padding does.
TWO = (IMAGE_IDS[:3], (*IMAGE_IDS[3:], IMAGE_IDS[0]))
# The first process, which evaluates, has no image at all.
THREE = ((), IMAGE_IDS[:4], (IMAGE_IDS[4], IMAGE_IDS[1], IMAGE_IDS[4]))


def _rank(rank: int, folder: str, shards: Sequence[Sequence[int]]) -> None:
    """Evaluate in one of several processes with its shard of the images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(shards))
    truth = _truth()
    found = _detections(truth)
    evaluator = CocoEvaluator(ground_truth=truth)
    for image_id in shards[rank]:
        evaluator.add("sharded", [image_id], [found[image_id]])
    if rank == 1:
        evaluator.add("second only", IMAGE_IDS, [found[image_id] for image_id in IMAGE_IDS])
    results = {key: [*result.figures.values(), result.images] for key, result in evaluator.evaluate().items()}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    # A damaged ground truth breaks the evaluation on the first process only, but all must raise.
    broken = CocoEvaluator(ground_truth={**truth, "annotations": [{"id": 1}]}, backend="pycocotools")
    broken.add("full", [IMAGE_IDS[0]], [found[IMAGE_IDS[0]]])
    with pytest.raises(EvaluationError, match="first process"):
        broken.evaluate()
    Path(folder, f"raised{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "shards",
    [
        pytest.param(TWO, id="two processes", marks=pytest.mark.slow),
        pytest.param(THREE, id="three, one without images"),
    ],
)
def test_processes_with_uneven_shards_or_none_agree_with_one(
    tmp_path: Path, shards: Sequence[Sequence[int]]
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spawn(_rank, (str(tmp_path), shards), len(shards))
    expected = [*_reference(_truth(), _detections(_truth())), len(IMAGE_IDS)]
    for rank in range(len(shards)):
        results = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert set(results) == {"sharded", "second only"}
        assert results["sharded"] == pytest.approx(expected, abs=1e-12)
        assert results["second only"] == pytest.approx(expected, abs=1e-12)
        assert (tmp_path / f"raised{rank}").exists()


# -- real detections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_figures_of_an_official_json_with_crowd_equal_those_of_pycocotools(
    shared_data: Path, backend: str
) -> None:
    truth = json.loads((shared_data / "tinycoco/annotations/instances_val2017.json").read_text())
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    category_ids = tuple(sorted(category["id"] for category in truth["categories"]))
    found = _detections(truth, category_ids=category_ids)
    evaluator = CocoEvaluator(ground_truth=truth, backend=backend)
    evaluator.add("full", list(found), list(found.values()))
    figures = evaluator.evaluate()["full"].figures
    expected = _reference(truth, found, category_ids)
    assert list(figures.values()) == pytest.approx(expected, abs=1e-12)
    assert 0.05 < figures["AP"] < 0.95, "metrics near 0 or 1 would hide differences"


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_figures_of_real_detections_equal_the_recorded_ones(backend: str) -> None:
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("ANYDEPTH_SHARED", root.parent / "shared")) / "data" / "coco128"
    found = folder / "detections_ssd_mobilenet_v2_val2017.json"
    if not found.is_file():
        pytest.skip("the COCO sample is not here: set ANYDEPTH_SHARED to the folder that holds data/coco128")
    # Recorded with pycocotools 2.0.11 from detections of a third-party model.
    expected = json.loads(found.with_suffix(".pycocotools.json").read_text())
    truth = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    category_ids = sorted(category["id"] for category in truth["categories"])
    evaluator = CocoEvaluator(ground_truth=truth, backend=backend)
    rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for row in json.loads(found.read_text()):
        rows[row["image_id"]].append(row)
    for image_id, items in rows.items():
        boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64).reshape(-1, 4)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        labels = torch.tensor([category_ids.index(item["category_id"]) for item in items], dtype=torch.int64)
        scores = torch.tensor([item["score"] for item in items])
        evaluator.add("full", [image_id], [Detections(corners, scores, labels)])
    assert evaluator.evaluate()["full"].figures == pytest.approx(expected, abs=1e-6)


def test_more_objects_than_the_protocol_counts_are_warned_of() -> None:
    box = {"image_id": 7, "category_id": 5, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    truth: dict[str, Any] = {
        "images": [{"id": 7, "width": 100, "height": 100}],
        "categories": [{"id": 5, "name": "tree"}],
        "annotations": [{**box, "id": number} for number in range(1, 101)],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CocoEvaluator(ground_truth=truth)
    truth["annotations"].append({**box, "id": 101})
    with pytest.warns(UserWarning, match=r"image 7 has 101 boxes of category 5.* at most the best 100"):
        CocoEvaluator(ground_truth=truth)
