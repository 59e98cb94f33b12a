"""What any-depth training costs: one step against a full-only step of the same network, paired in one run.

Usage: ``python scripts/benchmark_step.py --detector detr_r50 --size 640 --batch 16 --precision bf16``

Both kinds of step alternate, so that other work on the machine hits both alike; medians and their ratio are
printed. A step is forward, losses, backward, clipping and AdamW, on random images and boxes. Peak memory is
torch's on a GPU; on a CPU each kind runs in a process of its own, whose peak resident memory is printed less
what it had before the first step. ``--latency`` adds the inference latency of every rung of the ladder.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anydepth.detector import Detector, Objective
from anydepth.evaluation.cost import count_depth, measure_latency
from anydepth.evaluation.device import autocast
from anydepth.runtime import compose, instantiate
from anydepth.structures import DetectorOutput, Targets
from anydepth.zoo import build

KINDS = ("any-depth", "full-only")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    detector: str
    num_classes: int
    size: int
    batch: int
    boxes: int
    device: str
    precision: str
    threads: int


class Stepper:
    """A detector with everything that one training step needs."""

    def __init__(self, setting: Setting) -> None:
        if setting.threads:
            torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        device = torch.device(setting.device)
        self.setting = setting
        self.device = device
        self.detector: Detector = build(setting.detector, setting.num_classes).to(device).train()
        config = compose("train", [f"detector={setting.detector}", "paths.output_dir=unused"])
        self.objective: Objective = instantiate(config["distillation"])
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), lr=1e-5, fused=True)
        self.images = torch.rand(setting.batch, 3, setting.size, setting.size, device=device)
        boxes = torch.rand(setting.batch, setting.boxes, 4, device=device) * 0.3 + 0.2
        labels = torch.randint(setting.num_classes, (setting.batch, setting.boxes), device=device)
        self.targets = [Targets(*one) for one in zip(boxes, labels, strict=True)]

    def step(self, kind: str) -> None:
        """One optimizer step of a kind."""
        loss = self.losses(kind)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 0.1)
        self.optimizer.step()

    def losses(self, kind: str) -> torch.Tensor:
        """The summed losses of the paths of a kind, a scalar."""
        with autocast(self.device, self.setting.precision):
            stem = self.detector.stem_features(self.images)
        full = self.forward("full", stem)
        taught = self.objective.supervised(full, self.targets)
        if kind == "full-only":
            return taught.total
        minimal = self.forward("minimal", stem)
        return taught.total + self.objective.distilled(minimal, full, self.targets, taught).total

    def forward(self, depth: str, stem: torch.Tensor) -> DetectorOutput:
        """Run one path in the precision that is measured."""
        with autocast(self.device, self.setting.precision):
            output: DetectorOutput = self.detector(self.images, depth, self.targets, stem)
        return output

    def synchronize(self) -> None:
        """Wait for the device, so that a clock reads finished work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def paired_times(stepper: Stepper, repetitions: int, warmup: int) -> dict[str, list[float]]:
    """Seconds per step of both kinds, alternating."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repetition in range(warmup + repetitions):
        for kind in KINDS:
            stepper.synchronize()
            start = time.perf_counter()
            stepper.step(kind)
            stepper.synchronize()
            if repetition >= warmup:
                times[kind].append(time.perf_counter() - start)
    return times


def ratio_by_operations(stepper: Stepper) -> float:
    """1 + operations of minimal over those of full: what the ratio of times would be if only they counted."""
    size = stepper.images.shape[-2:]
    full, minimal = (
        count_depth(stepper.detector, depth, (size[0], size[1])).macs for depth in ("full", "minimal")
    )
    return 1 + minimal / full


def peak_memory_gpu(stepper: Stepper, kind: str) -> float:
    """Peak MiB that torch held during steps of a kind, weights and optimizer included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        stepper.step(kind)
    return torch.cuda.max_memory_allocated() / 2**20


def peak_memory_cpu(setting: Setting, kind: str) -> float:
    """Peak MiB that steps of a kind add to a fresh process."""
    stepper = Stepper(setting)
    before = _resident_mib("VmRSS")
    # 5 resets the high-water mark, which importing torch has raised.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        stepper.step(kind)
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: peak memory on a CPU is measured on Linux only")


def in_new_process(function: Callable[[Setting, str], float], setting: Setting, kind: str) -> float:
    """Call a function in a process that has not allocated anything yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (setting, kind))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", default="detr_tiny")
    parser.add_argument("--num-classes", type=int, default=80)
    parser.add_argument("--size", type=int, default=256, help="side of the square images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=8, help="ground-truth boxes per image (COCO: 7.3)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--latency", action="store_true", help="also the latency of every rung")
    arguments = parser.parse_args()
    names = Setting.__dataclass_fields__
    setting = Setting(**{name: getattr(arguments, name) for name in names})
    stepper = Stepper(setting)
    times = paired_times(stepper, arguments.repetitions, arguments.warmup)
    median = {kind: statistics.median(values) for kind, values in times.items()}
    ratios = [a / b for a, b in zip(times["any-depth"], times["full-only"], strict=True)]
    result: dict[str, object] = {
        "setting": vars(arguments),
        "seconds_per_step": {kind: round(value, 4) for kind, value in median.items()},
        "time_ratio_of_medians": round(median["any-depth"] / median["full-only"], 3),
        "time_ratio_median_of_pairs": round(statistics.median(ratios), 3),
        "time_ratio_by_gflops": round(ratio_by_operations(stepper), 3),
    }
    if setting.device.startswith("cuda"):
        memory = {kind: peak_memory_gpu(stepper, kind) for kind in KINDS}
        result["gpu"] = torch.cuda.get_device_name()
    else:
        memory = {kind: in_new_process(peak_memory_cpu, setting, kind) for kind in KINDS}
    result["peak_memory_mib"] = {kind: round(value) for kind, value in memory.items()}
    result["memory_ratio"] = round(memory["any-depth"] / memory["full-only"], 3)
    if arguments.latency:
        ladder = stepper.detector.depth_space.ladder()
        latencies, protocol = measure_latency(
            stepper.detector,
            ladder,
            precision=setting.precision,
            batch_size=setting.batch,
            input_size=(setting.size, setting.size),
        )
        found = zip(ladder, latencies, strict=True)
        result["latency_ms"] = {str(depth): round(latency.median_ms, 2) for depth, latency in found}
        result["latency_protocol"] = str(protocol)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
