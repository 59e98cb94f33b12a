"""Small whole runs of both families with everything that draws random numbers or counts steps."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from anydepth.structures import Batch
from anydepth.training.checkpointing.read import read_checkpoint
from anydepth.training.module import DetectionModule
from small_networks import SMALL_YOLO

# Random depths, sizes, denoising; five batches in steps of two, two and one; a checkpoint after each step.
_COMMON = (
    "depth_schedule=sandwich",
    "recipe.epochs=3",
    "recipe.multi_scale_sizes=[64,96]",
    "trainer.accumulate_grad_batches=2",
    "trainer.limit_train_batches=5",
    "callbacks.last.every_minutes=0",
    f"+callbacks.diary={{_target_: {__name__}.Diary,path: '${{paths.output_dir}}/diary.txt'}}",
)
# Momentum and the learning rate of biases warm up beyond the end of the run.
_YOLO = (
    "detector=yolo_tiny",
    *(f"detector.{key}={value}".replace(" ", "") for key, value in SMALL_YOLO.items()),
    "recipe=yolo",
    "recipe.warmup_steps=30",
    "recipe.nominal_batch=4",
    "augmentation=yolo",
    "data.unmixed_epochs=1",
)
# Entries that may differ: the time of a run, its folder, and what Lightning records and does not restore.
_FREE = ("elapsed", "dirpath", "best_model_path", "kth_best_model_path", "best_k_models", "current_score")


def run_settings(family: str, small_run: Sequence[str]) -> tuple[str, ...]:
    """Return the settings of a run.

    Args:
        family: Family of the detector, ``detr`` or ``yolo``.
        small_run: The fixture of that name.
    """
    if family == "detr":
        return (*small_run, *_COMMON)
    return (*(text for text in small_run if not text.startswith("detector.")), *_YOLO, *_COMMON)


class Diary(pl.Callback):
    """Records the inputs of each step: images, their augmentation, depths."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DetectionModule)
        pixels = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()[:16]
        depths = " ".join(str(planned.depth) for planned in pl_module.plan)
        with self.path.open("a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx}: {list(batch.image_ids)} {pixels} {depths}\n")


def diary(folder: Path) -> set[str]:
    """Return the inputs of all steps of a run, including repeated ones."""
    return set((folder / "diary.txt").read_text().splitlines())


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Return where two parts of checkpoints differ, bit by bit."""
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [where]
    if isinstance(first, dict):
        keys = [key for key in first.keys() | second.keys() if key not in _FREE]
        missing = [f"{where}/{key}" for key in keys if (key in first) != (key in second)]
        both = [key for key in keys if key in first and key in second]
        return missing + [
            found for key in both for found in differences(first[key], second[key], f"{where}/{key}")
        ]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [where]
        pairs = zip(first, second, strict=True)
        return [found for i, (a, b) in enumerate(pairs) for found in differences(a, b, f"{where}/{i}")]
    return [] if first == second else [f"{where}: {first} and {second}"]


def assert_equal_runs(folder: Path, whole: Path) -> None:
    """Compare weights, averages, optimizer, learning rates, best score, counters, and inputs of steps."""
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = (read_checkpoint(run / "checkpoints" / name) for run in (folder, whole))
        different = differences(found, expected)
        assert not different, f"{name} of {folder}: {different[:20]}"
        assert {"optimizer_states", "lr_schedulers", "weights_in_training", "callbacks"} <= found.keys()
    assert not diary(folder) ^ diary(whole), f"inputs only of {folder}: {diary(folder) - diary(whole)}"


# -- as commands -----------------------------------------------------------------------------------------


def start_run(
    folder: Path, small_run: Sequence[str], *settings: str, family: str = "detr"
) -> "subprocess.Popen[str]":
    """Start ``anydepth-train`` in ``folder/run``, in its own process group; return after a checkpoint."""
    last = folder / "run" / "checkpoints" / "last.ckpt"
    before = _written(last)
    own = [text for text in run_settings(family, small_run) if "diary" not in text]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "anydepth.train", *own, "callbacks.last.every_minutes=null"),
            *(f"hydra.run.dir={folder / 'run'}", *settings),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 300
    while _written(last) == before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no checkpoint was written"
        time.sleep(0.01)
    return process


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def end_run(process: "subprocess.Popen[str]", *, whole_group: bool) -> tuple[str, str]:
    """Send SIGTERM to the command alone, or to all its processes; return its output."""
    try:
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
        return process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
