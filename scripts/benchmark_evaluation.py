"""Cost of evaluation: the COCO figures of one depth, and five depths in one pass over the data.

Usage: ``python scripts/benchmark_evaluation.py``; ``--data ROOT`` adds the second part

First part: ground truth of COCO val2017's shape (5,000 images, 36,781 boxes, 80 classes, crowd regions) and
100 detections per image, jittered copies of the boxes and false ones. ``CocoEvaluator.evaluate`` is timed
with all depths at once and divided by their number; pycocotools, called as in its own demo, evaluates the
first depth as well, and the largest differences of the 12 figures and of the AP per class are printed.

Second part: a detector with random weights on the validation split of a data set in COCO layout. In each
repetition it times one pass of the loader alone, forward and post-processing of each depth on batches in
memory, and ``evaluate_depths`` over all depths; the ratio of the last to the sum of the others is printed,
as the median over repetitions. It is above 1 by what the single pass adds (rows, figures), and below 1 by
what it shares (the stem).
"""

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from anydepth.data.datamodule import CocoDataModule
from anydepth.depth import DepthConfig
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.coco_eval import CocoEvaluator, CocoResult
from anydepth.evaluation.depth_curve import evaluate_depths
from anydepth.images import to_unit_range
from anydepth.structures import Batch, Detections
from anydepth.zoo import build

CLASSES = 80
CROWD_SHARE = 446 / 36_781  # of COCO val2017


# -- figures of many detections ------------------------------------------------------------------------------


def make_truth(images: int, boxes: int, seed: int = 0) -> dict[str, Any]:
    """Make ground truth of COCO's shape: ids with gaps, small to large boxes, crowd regions, empty images."""
    random = np.random.default_rng(seed)
    image_ids = np.sort(random.choice(600_000, images, replace=False))
    category_ids = np.sort(random.choice(np.arange(1, 91), CLASSES, replace=False))
    # A heavy-tailed distribution of classes, of which some are far more frequent, as in photographs.
    owners = random.choice(image_ids, boxes)
    shares = random.pareto(1.2, CLASSES) + 0.05
    kinds = random.choice(category_ids, boxes, p=shares / shares.sum())
    sides = np.exp(random.normal(4.0, 1.0, (boxes, 2))).clip(4, 400)
    corners = random.uniform(0, 1, (boxes, 2)) * (np.array([640, 480]) - sides.clip(max=470))
    crowd = random.uniform(size=boxes) < CROWD_SHARE
    annotations = [
        {
            "id": position + 1,
            "image_id": int(owner),
            "category_id": int(kind),
            "bbox": [*corner, *side],
            "area": 0.6 * side[0] * side[1],
            "iscrowd": int(is_crowd),
        }
        for position, (owner, kind, corner, side, is_crowd) in enumerate(
            zip(owners, kinds, corners.tolist(), sides.tolist(), crowd, strict=True)
        )
    ]
    return {
        "info": {},
        "images": [{"id": int(image_id), "width": 640, "height": 480} for image_id in image_ids],
        "categories": [{"id": int(number), "name": f"class {number}"} for number in category_ids],
        "annotations": annotations,
    }


def make_detections(truth: Mapping[str, Any], per_image: int, seed: int) -> dict[int, Detections]:
    """Make detections of a mediocre detector: boxes near true ones, mostly of their class, and false ones."""
    random = np.random.default_rng(seed)
    category_ids = [category["id"] for category in truth["categories"]]
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    true: dict[int, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        true[annotation["image_id"]].append(annotation)
    return {
        image_id: _detections_near(
            [annotation["bbox"] for annotation in annotations],
            [label_of[annotation["category_id"]] for annotation in annotations],
            per_image,
            random,
        )
        for image_id, annotations in true.items()
    }


def _detections_near(
    boxes: list[list[float]], labels: list[int], count: int, random: np.random.Generator
) -> Detections:
    near = np.array(boxes).reshape(-1, 4)[: count // 2]
    near = near + near[:, [2, 3, 2, 3]] * random.normal(0, 0.06, near.shape)
    false = random.uniform((0, 0, 5, 5), (500, 400, 140, 80), (count - len(near), 4))
    found = np.concatenate([near, false])
    kinds = np.concatenate([labels[: len(near)], random.integers(0, CLASSES, len(false))]).astype(np.int64)
    wrong = random.uniform(size=count) < 0.15
    kinds[wrong] = random.integers(0, CLASSES, wrong.sum())
    scores = np.concatenate([random.beta(4, 3, len(near)), random.beta(1, 12, len(false))])
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:].clip(1)], axis=1)
    return Detections(
        torch.from_numpy(corners).float(), torch.from_numpy(scores).float(), torch.from_numpy(kinds)
    )


def time_evaluator(
    truth: Mapping[str, Any], depths: Sequence[dict[int, Detections]], repetitions: int
) -> tuple[list[float], dict[str, CocoResult]]:
    """Return seconds per depth in each repetition, including indexing the ground truth, and the results."""
    seconds = []
    for _ in range(repetitions):
        evaluator = CocoEvaluator(ground_truth=truth)
        for number, found in enumerate(depths):
            ids = list(found)
            for start in range(0, len(ids), 16):
                batch = ids[start : start + 16]
                evaluator.add(str(number), batch, [found[image_id] for image_id in batch])
        start_time = time.perf_counter()
        results = evaluator.evaluate()
        seconds.append((time.perf_counter() - start_time) / len(depths))
    return seconds, results


def time_pycocotools(
    truth: Mapping[str, Any], found: Mapping[int, Detections]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return seconds, the 12 figures and the AP of each class [80] of one depth, by COCO's own code."""
    category_ids = [category["id"] for category in truth["categories"]]
    results = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for image_id, item in found.items()
        for (left, top, right, bottom), score, label in zip(
            item.boxes_xyxy.tolist(), item.scores.tolist(), item.labels.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(truth)
        start = time.perf_counter()
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        seconds = time.perf_counter() - start
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    known = np.where(precision > -1, precision, np.nan)
    has_truth = ~np.isnan(known).all(axis=(0, 1))
    per_class = np.full(CLASSES, -1.0)
    per_class[has_truth] = np.nanmean(known[:, :, has_truth], axis=(0, 1))
    return seconds, np.asarray(evaluation.stats), per_class


def measure_figures(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure the first part."""
    truth = make_truth(arguments.images, arguments.boxes)
    depths = [make_detections(truth, arguments.detections, seed) for seed in range(arguments.depths)]
    seconds, results = time_evaluator(truth, depths, arguments.repetitions)
    report: dict[str, object] = {
        "images": arguments.images,
        "boxes": arguments.boxes,
        "detections": arguments.images * arguments.detections,
        "depths": arguments.depths,
        "seconds_per_depth_median": round(statistics.median(seconds), 3),
        "seconds_per_depth": [round(value, 3) for value in seconds],
        "figures": {name: round(value, 4) for name, value in results["0"].figures.items()},
    }
    if not arguments.skip_pycocotools:
        reference, figures, per_class = time_pycocotools(truth, depths[0])
        ours = results["0"]
        report |= {
            "pycocotools_seconds_per_depth": round(reference, 1),
            "largest_difference_of_12_figures": _difference(list(ours.figures.values()), figures),
            "largest_difference_of_ap_per_class": _difference(list(ours.per_class.values()), per_class),
        }
    return report


def _difference(ours: Sequence[float], reference: np.ndarray) -> float:
    return float(np.abs(np.array(ours) - reference).max())


# -- five depths in one pass ---------------------------------------------------------------------------------


def measure_single_pass(arguments: argparse.Namespace, workers: int) -> dict[str, object]:
    """Measure the second part, with this many data loader workers."""
    size = (arguments.size, arguments.size)
    data = CocoDataModule(
        input_size=size, batch_size=arguments.batch, root=arguments.data, num_workers=workers
    )
    torch.manual_seed(0)
    detector = build(arguments.detector, data.num_classes)
    detector.input_size = size
    depths = detector.depth_space.ladder()
    depths = [depths[round(rung)] for rung in np.linspace(0, len(depths) - 1, arguments.depths)]
    loader = data.eval_dataloader("val")
    index = data.val_index
    evaluator = CocoEvaluator(ground_truth=index.to_coco_dict(), category_ids=index.category_ids)
    batches: list[Batch] = list(loader)  # Starts the workers and reads every file once.

    def single_pass() -> None:
        evaluate_depths(detector, loader, evaluator, depths, progress=False)

    single_pass()
    rounds = [
        [
            _seconds(lambda: sum(1 for _ in loader)),
            sum(_seconds(lambda depth=depth: _forward(detector, batches, depth)) for depth in depths),
            _seconds(single_pass),
        ]
        for _ in range(arguments.repetitions)
    ]
    ratios = [both / (load + forward) for load, forward, both in rounds]
    load, forward, both = (round(statistics.median(column), 3) for column in zip(*rounds, strict=True))
    return {
        "num_workers": workers,
        "depths": [str(depth) for depth in depths],
        "data_pass_seconds": load,
        "sum_of_forwards_seconds": forward,
        "evaluate_depths_seconds": both,
        "ratio_median": round(statistics.median(ratios), 3),
        "ratios": [round(value, 3) for value in ratios],
    }


def _forward(detector: Detector, batches: Sequence[Batch], depth: DepthConfig) -> None:
    with evaluating(detector) as network:
        for batch in batches:
            output = network(to_unit_range(batch.images), depth=depth)
            detector.postprocess(output, batch.original_sizes)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=36_781)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--skip-pycocotools", action="store_true", help="it takes about a minute")
    parser.add_argument("--only-pass", action="store_true", help="leave out the first part")
    parser.add_argument("--data", type=Path, help="folder of a data set in COCO layout, for the second part")
    parser.add_argument("--detector", default="yolo_n")
    parser.add_argument("--size", type=int, default=256, help="side of the square images in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0: its default")
    arguments = parser.parse_args()
    if arguments.only_pass and arguments.data is None:
        parser.error("--only-pass needs a data set: give its folder with --data")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result: dict[str, object] = {}
    if not arguments.only_pass:
        result["figures"] = measure_figures(arguments)
    if arguments.data is not None:
        result["single_pass"] = [measure_single_pass(arguments, workers) for workers in (0, 1)]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
