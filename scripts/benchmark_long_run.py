"""Stability of a long run: memory, open files, threads and time per step, over its steps.

Usage: ``python scripts/benchmark_long_run.py --steps 2000``, with overrides: ``... detector=yolo_tiny``

Trains a small network on the embedded sample, with all parts of a run: data loader workers, averaged weights,
logging, validations and checkpoints. Printed are, for each quarter of the steps, the resident memory of the
training process, its open files and threads at the end of the quarter, and the median seconds of a step, in
wall time and in CPU time, which depends less on other programs. The first quarter is the warm-up; the last
one should equal the second. Linux.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from anydepth.config.compose import compose
from anydepth.train import assemble

SETTINGS = (
    *("detector=detr_tiny", "detector.input_size=[128,128]", "data.batch_size=2", "data.num_workers=1"),
    *("recipe.minutes=null", "recipe.epochs=100000", "recipe.validate_every_epochs=5"),
    *("curve.depths=null", "callbacks.progress=null", "trainer.accelerator=cpu"),
)
QUARTERS = 4


@dataclass(frozen=True)
class Quarter:
    """Measurements at the end of a quarter of the steps.

    Attributes:
        steps: Steps done so far.
        resident_mib: Resident memory of the training process.
        open_files: Number of its file descriptors.
        threads: Number of its threads.
        seconds_per_step: Median wall time of a step in the quarter, without validations.
        processor_seconds_per_step: Median CPU time of the training process, over all cores.
    """

    steps: int
    resident_mib: float
    open_files: int
    threads: int
    seconds_per_step: float
    processor_seconds_per_step: float


class ResourceMonitor(pl.Callback):
    """Records the resources that a run uses.

    Args:
        steps: Steps of the run.
    """

    def __init__(self, *, steps: int) -> None:
        self.quarter = steps // QUARTERS
        self.quarters: list[Quarter] = []
        self._seconds: list[tuple[float, float]] = []
        self._start = (0.0, 0.0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clocks of a step."""
        self._start = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clocks; at the end of a quarter, measure the process."""
        clock, processor = self._start
        self._seconds.append((time.perf_counter() - clock, time.process_time() - processor))
        if len(self._seconds) == self.quarter:
            gc.collect()
            self.quarters.append(_measure_process(trainer.global_step, self._seconds))
            self._seconds.clear()


def measure(steps: int, folder: Path, overrides: Sequence[str] = ()) -> list[Quarter]:
    """Train and measure.

    Args:
        steps: Training steps, a multiple of 4.
        folder: Folder of the run.
        overrides: Settings, as on the command line of ``anydepth-train``.
    """
    monitor = ResourceMonitor(steps=steps)
    settings = [*SETTINGS, f"trainer.max_steps={steps}", f"paths.output_dir={folder}", *overrides]
    data, module, trainer = assemble(compose("train", settings, hydra_config=True))
    trainer.callbacks.append(monitor)
    trainer.fit(module, datamodule=data)
    return monitor.quarters


def _measure_process(steps: int, seconds: Sequence[tuple[float, float]]) -> Quarter:
    clock, processor = map(statistics.median, zip(*seconds, strict=True))
    process = Path("/proc/self")
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Quarter(
        steps=steps,
        resident_mib=round(int(fields["VmRSS"].split()[0]) / 1024, 1),
        open_files=len(list((process / "fd").iterdir())),
        threads=int(fields["Threads"]),
        seconds_per_step=round(clock, 4),
        processor_seconds_per_step=round(processor, 4),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="a multiple of 4")
    parser.add_argument("overrides", nargs="*", help="settings, as on the command line of anydepth-train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        quarters = measure(arguments.steps, Path(folder) / "run", arguments.overrides)
    print(json.dumps([asdict(quarter) for quarter in quarters], indent=2))


if __name__ == "__main__":
    main()
