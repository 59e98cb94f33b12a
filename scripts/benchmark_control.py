"""How closely run-time control keeps a budget, how many frames are late, and the AP of the mix.

Usage: ``python scripts/benchmark_control.py BUNDLE --data ROOT --output outputs/control``

Simulated detectors come first: the latencies of four depths with seeded noise, which take no time. A bundle
is then run on a video-like sequence of a data set: a window pans over each validation image, so that
consecutive frames resemble each other, and the annotations move with it. Budgets are a step schedule (30, 80
and 50 % of the range between the cheapest and the dearest depth) and a saw-tooth of four periods. The
error is the mean distance of the centred moving average of 30 frames to the budget, as a share of the range.
AP is that of all frames together, beside both ends on the same frames.

``--clock cpu`` counts the processor time of this process instead of wall time, which other processes disturb
less; use ``--threads 1`` with it. Waiting for frames then takes no time.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from anydepth.data.coco.layout import find_split
from anydepth.data.sample import sample_root
from anydepth.deploy import load
from anydepth.deploy.control import (
    ControlledDetector,
    DeadlinePolicy,
    DepthPolicy,
    FixedDepth,
    FrameResult,
    LatencyController,
    RoutedDepth,
    Rung,
    Schedule,
    Target,
    measured_rungs,
    read_router,
    run_video,
)
from anydepth.deploy.runtime.control.tracking import (
    centred_average,
    sawtooth_schedule,
    step_schedule,
    tracking_error,
)
from anydepth.detections import Detections
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.structures import Detections as TensorDetections

SCHEDULES = {"step": step_schedule, "saw-tooth": sawtooth_schedule}
SIMULATED = {"minimal": 10.0, "1/4": 12.5, "1/2": 14.0, "full": 20.0}
PLANTS: dict[str, Callable[[int, np.random.Generator], float]] = {
    "constant": lambda frame, random: 1.0,
    "noise of 10 %": lambda frame, random: float(np.exp(random.normal(0, 0.1))),
    "load of 0.9 to 1.1": lambda frame, random: (
        (1 + 0.1 * np.sin(frame / 64)) * np.exp(random.normal(0, 0.05))
    ),
}
WINDOW_SHARE = 0.85
VISIBLE = 0.4


@dataclass(frozen=True)
class Frame:
    """A frame of the sequence: picture [H, W, 3] and its annotations as COCO dictionaries."""

    picture: NDArray[np.uint8]
    annotations: list[dict[str, Any]]


class Clock:
    """Seconds of wall or processor time; waiting is skipped with the latter."""

    def __init__(self, kind: str) -> None:
        self._read = time.perf_counter if kind == "wall" else time.process_time
        self._wall = kind == "wall"
        self._skipped = 0.0

    def __call__(self) -> float:
        """Return seconds from any start."""
        return self._read() + self._skipped

    def sleep(self, seconds: float) -> None:
        """Wait, or pretend that the time has passed."""
        if self._wall:
            time.sleep(seconds)
        else:
            self._skipped += seconds


# -- budgets ---------------------------------------------------------------------------------------------


def figures_of(costs: Sequence[float], targets: NDArray[np.float64], spread: float) -> dict[str, float]:
    """Return the error, and the shares of frames and of averages within the budget."""
    late = centred_average(costs) - targets
    return {
        "error": round(tracking_error(costs, targets, spread), 4),
        "frames_in_budget": round(float((np.asarray(costs) <= targets).mean()), 3),
        "averages_in_budget_or_5_percent_above": round(float((late <= 0.05 * spread).mean()), 3),
    }


def simulate(frames: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of the controller on simulated detectors, by plant and schedule."""
    rungs = [Rung(depth, value, ms) for value, (depth, ms) in enumerate(SIMULATED.items())]
    low, high = min(SIMULATED.values()), max(SIMULATED.values())
    found: dict[str, dict[str, dict[str, float]]] = {}
    for plant, noise in PLANTS.items():
        found[plant] = {}
        for name, schedule in SCHEDULES.items():
            random, policy, last = np.random.default_rng(0), LatencyController(rungs), None
            targets, costs = schedule(frames, low, high), []
            for frame, target in enumerate(targets):
                depth = policy.choose(last, Target(float(target)))
                costs.append(SIMULATED[depth] * noise(frame, random))
                last = FrameResult(depth, costs[-1])
            found[plant][name] = figures_of(costs, targets, high - low)
    return found


# -- the sequence ----------------------------------------------------------------------------------------


def pan(root: Path, frames: int, per_image: int) -> tuple[list[Frame], list[dict[str, Any]]]:
    """Return the frames of a sequence and the categories: a window that pans over each validation image."""
    split = find_split(root, "val")
    truth = json.loads(split.json_path.read_text(encoding="utf-8"))
    boxes: dict[int, list[dict[str, Any]]] = {entry["id"]: [] for entry in truth["images"]}
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append(annotation)
    found: list[Frame] = []
    while len(found) < frames:
        for entry in truth["images"]:
            picture = np.asarray(Image.open(split.image_root / entry["file_name"]).convert("RGB"))
            found += [_window(picture, boxes[entry["id"]], step / per_image) for step in range(per_image)]
            if len(found) >= frames:
                break
    return found[:frames], truth["categories"]


def _window(picture: NDArray[np.uint8], annotations: list[dict[str, Any]], phase: float) -> Frame:
    height, width = (round(side * WINDOW_SHARE) for side in picture.shape[:2])
    left = round((picture.shape[1] - width) * phase)
    top = round((picture.shape[0] - height) * (0.5 + 0.5 * np.sin(2 * np.pi * phase)))
    return Frame(
        np.ascontiguousarray(picture[top : top + height, left : left + width]),
        [moved for one in annotations if (moved := _move(one, left, top, width, height))],
    )


def _move(annotation: dict[str, Any], left: int, top: int, width: int, height: int) -> dict[str, Any] | None:
    """Return an annotation in the coordinates of a window; None if less than 40 % of its box is in it."""
    x, y, w, h = annotation["bbox"]
    first = np.clip([x - left, y - top], 0, [width, height])
    last = np.clip([x + w - left, y + h - top], 0, [width, height])
    side = last - first
    if side.prod() < VISIBLE * w * h or not side.prod():
        return None
    return {
        "category_id": annotation["category_id"],
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox": [*map(float, first), *map(float, side)],
        "area": float(side.prod()),
    }


def evaluate(
    found: dict[str, list[Any]], frames: list[Frame], categories: list[dict[str, Any]], ids: Sequence[int]
) -> dict[str, float]:
    """Return AP in percent of the detections of all frames, by name."""
    images, annotations = [], []
    for number, frame in enumerate(frames):
        height, width = frame.picture.shape[:2]
        images.append({"id": number, "width": width, "height": height})
        annotations += [{**one, "image_id": number} for one in frame.annotations]
    truth = {
        "images": images,
        "categories": categories,
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, start=1)],
    }
    evaluator = CocoEvaluator(ground_truth=truth, category_ids=list(ids))
    for name, detections in found.items():
        evaluator.add(name, range(len(detections)), [_tensors(one) for one in detections])
    return {name: round(100 * result.figures["AP"], 2) for name, result in evaluator.evaluate().items()}


def _tensors(found: Detections) -> TensorDetections:
    values = (found.boxes_xyxy, found.scores, found.labels)
    return TensorDetections(*(torch.from_numpy(np.ascontiguousarray(value)) for value in values))


# -- a bundle --------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Frames of one policy: milliseconds, targets, depths and detections of each."""

    costs: list[float]
    targets: NDArray[np.float64]
    depths: list[str]
    found: list[Any]


def run_budgets(
    detector: Any, policy: DepthPolicy, frames: list[Frame], targets: NDArray[np.float64], clock: Clock
) -> Run:
    """Run a policy over the frames, each with a budget of its own."""
    controlled = ControlledDetector(detector, policy, threshold=0.01, clock=clock)
    run = Run([], targets, [], [])
    for frame, target in zip(frames, targets, strict=True):
        controlled.budget = Target(float(target))
        run.found.append(controlled.predict(frame.picture))
        assert controlled.last is not None
        run.costs.append(controlled.last.milliseconds)
        run.depths.append(controlled.last.depth)
    return run


def run_deadlines(
    detector: Any, policy: DepthPolicy, frames: list[Frame], period_ms: float, clock: Clock
) -> dict[str, Any]:
    """Return how many frames were late or skipped, and which depths ran."""
    controlled = ControlledDetector(detector, policy, clock=clock)
    schedule = Schedule(period_ms, clock, clock.sleep)
    played = [frame for frame, _ in run_video(controlled, _pictures(frames), schedule)]
    late = [frame.late_ms for frame in played if frame.late_ms is not None]
    depths = [frame.result.depth for frame in played if frame.result]
    return {
        "late": sum(ms > 0 for ms in late),
        "skipped": len(played) - len(late),
        "latest_ms": round(max(late), 2),
        "depths": {depth: depths.count(depth) for depth in dict.fromkeys(depths)},
    }


def _pictures(frames: list[Frame]) -> Iterator[NDArray[np.uint8]]:
    return (frame.picture for frame in frames)


def measure(arguments: argparse.Namespace, clock: Clock) -> tuple[dict[str, Any], dict[str, Run]]:
    """Measure a bundle: budgets, AP and deadlines."""
    detector = load(arguments.bundle, engine=arguments.engine, threads=arguments.threads)
    frames, categories = pan(arguments.data, arguments.frames, arguments.per_image)
    rungs = measured_rungs(detector, frames[0].picture, rounds=arguments.rounds, clock=clock)
    costs = [rung.cost or 0.0 for rung in rungs]
    low, high = min(costs), max(costs)
    results: dict[str, Any] = {"milliseconds": {rung.depth: round(rung.cost or 0, 3) for rung in rungs}}
    runs = {}
    for name, schedule in SCHEDULES.items():
        targets = schedule(len(frames), low, high)
        runs[name] = run_budgets(detector, LatencyController(rungs), frames, targets, clock)
        results[name] = figures_of(runs[name].costs, targets, high - low)
    half = np.full(len(frames), (low + high) / 2)
    ends = {rung.depth: FixedDepth(rung.depth) for rung in (rungs[0], rungs[-1])}
    mixes: dict[str, DepthPolicy] = {
        **ends,
        "all depths at 50 %": LatencyController(rungs),
        # What a router has to beat: the same two depths, without looking at the frames.
        "both ends at 50 %": LatencyController([rungs[0], rungs[-1]]),
    }
    for folder in arguments.router:
        mixes[f"router {folder.name} at 50 %"] = RoutedDepth(read_router(folder), rungs)
    mixed = {name: run_budgets(detector, policy, frames, half, clock) for name, policy in mixes.items()}
    found = {name: run.found for name, run in {**mixed, **runs}.items()}
    results["AP"] = evaluate(found, frames, categories, detector.category_ids)
    results["mean_ms"] = {name: round(float(np.mean(run.costs)), 3) for name, run in mixed.items()}
    results["deadlines"] = {}
    for share in (1.2, 1.6):
        period = low + share * (high - low) if share < 1.5 else share * high
        results["deadlines"][f"period of {period:.2f} ms"] = {
            name: run_deadlines(detector, policy, frames, period, clock)
            for name, policy in {**ends, "policy": DeadlinePolicy(rungs)}.items()
        }
    return results, runs


def draw(runs: dict[str, Run], path: Path) -> None:
    """Draw latency, its average and the budget of each schedule, as a PNG."""
    figure = Figure(figsize=(11, 3.4 * len(runs)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for position, (name, run) in enumerate(runs.items(), start=1):
        axes = figure.add_subplot(len(runs), 1, position)
        for depth in sorted(set(run.depths)):
            rows = [row for row, own in enumerate(run.depths) if own == depth]
            axes.plot(rows, [run.costs[row] for row in rows], ".", markersize=3, alpha=0.5, label=depth)
        axes.plot(centred_average(run.costs), color="#1f5a92", label="average of 30 frames")
        axes.plot(run.targets, color="black", linestyle="--", label="budget")
        axes.set(title=name, xlabel="frame", ylabel="milliseconds")
        axes.set_ylim(0, 1.15 * float(np.quantile(run.costs, 0.99)))
        axes.legend(loc="lower right", fontsize=8, ncols=3)
    figure.savefig(path)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", help="folder of a bundle; none: simulated detectors alone")
    parser.add_argument("--data", type=Path, default=sample_root(), help="data set in COCO layout")
    parser.add_argument("--router", type=Path, nargs="*", default=[], help="folders of routers")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--per-image", type=int, default=10, help="frames of the sequence for each image")
    parser.add_argument("--rounds", type=int, default=20, help="passes of each depth that time it")
    parser.add_argument("--output", type=Path, default=Path("outputs/control"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {"simulated": simulate(arguments.frames)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.bundle:
        with warnings.catch_warnings(action="once"):
            results["measured"], runs = measure(arguments, Clock(arguments.clock))
        draw(runs, arguments.output / "control.png")
    text = json.dumps({"setting": vars(arguments), "results": results}, indent=2, default=str)
    (arguments.output / "control.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
