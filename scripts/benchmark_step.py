"""Cost of any-depth training: one step against a full-only step of the same network, paired in one run.

Usage: ``python scripts/benchmark_step.py --detector detr_r50 --size 640 --batch 16 --precision bf16-mixed``

Three kinds of step alternate in one run of Lightning's Trainer, so that other load on the machine affects all
of them alike: full-only, both passes with one backward for the sum of their losses (``backward=joint``), and
both with their own backward (``backward=separate``). Medians and their ratios are printed. A step lasts from
the arrival of a batch to the end of the optimizer step, on random images and boxes. Peak memory, including
weights, gradients and the optimizer's state, is torch's on a GPU; on a CPU each kind runs in its own process,
and its peak resident memory is printed minus the memory before the network was built. ``--latency`` adds the
inference latency of every rung of the ladder.
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from anydepth.config.compose import compose, instantiate
from anydepth.detector import Detector
from anydepth.evaluation.cost import count_depth, measure_latency
from anydepth.structures import Batch, Targets
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.zoo import build

# Depths of the passes, and whether each runs its own backward.
KINDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "full-only": (("full",), False),
    "joint": (("full", "minimal"), False),
    "separate": (("full", "minimal"), True),
}


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement."""

    detector: str
    num_classes: int
    size: int
    batch: int
    boxes: int
    device: str
    precision: str
    threads: int


@dataclass
class Alternation(pl.Callback):
    """Alternates the kinds of step, and records seconds and peak GPU memory of each."""

    kinds: Sequence[str]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    gpu_mib: dict[str, float] = field(default_factory=dict)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Plan the step."""
        assert isinstance(pl_module, DetectionModule)
        depths, pl_module.separate_backward = KINDS[self.kinds[batch_idx % len(self.kinds)]]
        space = pl_module.detector.depth_space
        pl_module.plan = DepthSchedule(depths=depths).sample(space, seed=0, step=batch_idx)
        # Gradients of the former step do not count as memory of this one.
        pl_module.zero_grad()
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record seconds and memory of the step."""
        kind = self.kinds[batch_idx % len(self.kinds)]
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.gpu_mib[kind] = max(peak, self.gpu_mib.get(kind, 0.0))
        self.seconds.setdefault(kind, []).append(time.perf_counter() - self._start)


def make_module(setting: Setting) -> DetectionModule:
    """Build the module that ``anydepth-train`` would train, with its detector's losses and recipe."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    overrides = [f"detector={setting.detector}", "paths.output_dir=unused", "recipe.multi_scale_sizes=[]"]
    config = compose("train", overrides)
    return DetectionModule(
        detector=build(setting.detector, setting.num_classes),
        objective=instantiate(config["losses"]),
        recipe=instantiate(config["recipe"]),
        evaluator=None,
        seed=0,
    )


def make_batch(setting: Setting) -> Batch:
    """Make a batch of random images and boxes."""
    shape = (setting.batch, 3, setting.size, setting.size)
    boxes = torch.rand(setting.batch, setting.boxes, 4) * 0.3 + 0.2
    labels = torch.randint(setting.num_classes, (setting.batch, setting.boxes))
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8),
        targets=tuple(Targets(*one) for one in zip(boxes, labels, strict=True)),
        image_ids=tuple(range(setting.batch)),
        original_sizes=((setting.size, setting.size),) * setting.batch,
    )


def train(setting: Setting, module: DetectionModule, kinds: Sequence[str], rounds: int) -> Alternation:
    """Train ``rounds`` steps of each kind, in turn."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    alternation = Alternation(kinds)
    steps = rounds * len(kinds)
    accelerator, _, index = setting.device.partition(":")
    trainer = pl.Trainer(
        accelerator="gpu" if accelerator == "cuda" else accelerator,
        devices=[int(index)] if index else 1,
        precision=setting.precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=0.1,
        callbacks=[alternation],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([make_batch(setting)] * steps, batch_size=None))
    return alternation


def ratio_by_operations(detector: Detector, size: int) -> float:
    """Return 1 + operations of minimal over those of full: the ratio of times if only operations counted.

    In training the minimal pass runs all decoder layers, so more than its operations in inference.
    """
    space = detector.depth_space
    minimal = space.config(space.parse("minimal").refine)
    full, less = (count_depth(detector, str(depth), (size, size)).macs for depth in (space.full, minimal))
    return 1 + less / full


def peak_memory_cpu(setting: Setting, kind: str) -> float:
    """Return the peak MiB that a network and steps of a kind add to a fresh process."""
    before = _resident_mib("VmRSS")
    module = make_module(setting)
    # 5 resets the high-water mark, which importing torch has raised.
    Path("/proc/self/clear_refs").write_text("5")
    train(setting, module, [kind], 3)
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: peak memory on a CPU is measured on Linux only")


def in_new_process(function: Callable[[Setting, str], float], setting: Setting, kind: str) -> float:
    """Call a function in a process that has not allocated anything yet, and returns freed memory at once.

    So resident memory is that of tensors, as torch counts it on a GPU: by default glibc keeps freed memory.
    """
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_MMAP_MAX_="1000000")
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
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--latency", action="store_true", help="also measure the latency of every rung")
    arguments = parser.parse_args()
    names = Setting.__dataclass_fields__
    setting = Setting(**{name: getattr(arguments, name) for name in names})
    module = make_module(setting)
    steps = train(setting, module, list(KINDS), arguments.warmup + arguments.repetitions)
    seconds = {kind: values[arguments.warmup :] for kind, values in steps.seconds.items()}
    memory = steps.gpu_mib or {kind: in_new_process(peak_memory_cpu, setting, kind) for kind in KINDS}
    result: dict[str, object] = {
        "setting": vars(arguments),
        "seconds_per_step": {kind: round(statistics.median(values), 4) for kind, values in seconds.items()},
        "time_ratio_by_operations": round(ratio_by_operations(module.detector, setting.size), 3),
        "peak_memory_mib": {kind: round(value) for kind, value in memory.items()},
    }
    for kind in list(KINDS)[1:]:
        pairs = [a / b for a, b in zip(seconds[kind], seconds["full-only"], strict=True)]
        result[f"{kind}_to_full_only"] = {
            "time_median_of_pairs": round(statistics.median(pairs), 3),
            "time_of_pairs": [round(min(pairs), 3), round(max(pairs), 3)],
            "memory": round(memory[kind] / memory["full-only"], 3),
        }
    if steps.gpu_mib:
        result["gpu"] = torch.cuda.get_device_name()
    if arguments.latency:
        detector = module.detector.to(setting.device)
        ladder = detector.depth_space.ladder()
        latencies, protocol = measure_latency(
            detector,
            ladder,
            precision="bf16" if setting.precision == "bf16-mixed" else "fp32",
            batch_size=setting.batch,
            input_size=(setting.size, setting.size),
        )
        found = zip(ladder, latencies, strict=True)
        result["latency_ms"] = {str(depth): round(latency.median_ms, 2) for depth, latency in found}
        result["latency_protocol"] = str(protocol)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
