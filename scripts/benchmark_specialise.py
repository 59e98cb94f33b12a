"""Latency of specialised detectors against the detectors themselves, paired in one process.

Usage: ``python scripts/benchmark_specialise.py --detectors detr_r50 yolo_s --threads 2``

For each detector and depth, passes of the detector and of the network that ``detector.specialise(depth)``
returns take turns on the same image, so that other load on the machine affects both alike. Medians, and the
median of the ratios of paired passes, are printed with the largest difference of the results; weights are
random, which does not change the time. ``--formats`` also times the specialised network in the other layout
of its maps, ``contiguous`` or ``channels_last``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from anydepth.detector import Detector, evaluating
from anydepth.structures import DetectorOutput
from anydepth.zoo import build

DETECTORS = ("detr_r50", "detr_r18", "yolo_s")
DEPTHS = ("full", "minimal")


def measure(
    runs: Mapping[str, Callable[[], object]], repetitions: int, warmup: int
) -> dict[str, list[float]]:
    """Return the milliseconds of each of several functions, which take turns."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def compare(detector: Detector, depth: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Time a detector and its specialised forms at a depth, on the CPU."""
    images = torch.rand(arguments.batch, 3, arguments.size, arguments.size)
    start = time.perf_counter()
    network = detector.specialise(depth)
    seconds = time.perf_counter() - start
    forms = {"original": detector, "specialised": network}
    if arguments.formats:
        forms |= {"other layout": in_other_layout(detector, depth)}
    with evaluating(detector):
        runs = {name: partial(form, images, depth=depth) for name, form in forms.items()}
        times = measure(runs, arguments.repetitions, arguments.warmup)
        difference = largest_difference(detector(images, depth=depth), network(images, depth=depth))
    ratios = {
        name: [first / own for first, own in zip(times["original"], values, strict=True)]
        for name, values in times.items()
        if name != "original"
    }
    return {
        "median_ms": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "times_faster_median_of_pairs": {
            name: round(statistics.median(values), 3) for name, values in ratios.items()
        },
        "times_faster_of_pairs": {
            name: [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items()
        },
        "parameters": {name: sum(map(Tensor.numel, form.parameters())) for name, form in forms.items()},
        "seconds_to_specialise": round(seconds, 2),
        "largest_relative_difference": difference,
    }


def in_other_layout(detector: Detector, depth: str) -> Detector:
    """Return the specialised network with the layout of maps that its family does not choose."""
    channels_last = detector.memory_format == torch.channels_last
    other = torch.contiguous_format if channels_last else torch.channels_last
    return detector.specialise(depth).to(memory_format=other)


def largest_difference(wanted: DetectorOutput, found: DetectorOutput) -> float:
    """Return the largest difference of the maps of the neck, relative to the largest value."""
    pairs = zip(wanted.neck_features, found.neck_features, strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for theirs, ours in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", default=DETECTORS)
    parser.add_argument("--depths", nargs="+", default=DEPTHS)
    parser.add_argument("--size", type=int, default=640, help="side of the square images in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--formats", action="store_true", help="also time the other layout of maps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for name in arguments.detectors:
        torch.manual_seed(0)
        detector = build(name).eval()
        results[name] = {depth: compare(detector, depth, arguments) for depth in arguments.depths}
    print(json.dumps({"setting": vars(arguments), "results": results}, indent=2))


if __name__ == "__main__":
    main()
