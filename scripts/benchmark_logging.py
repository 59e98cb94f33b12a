"""Cost of logging: training steps without it, and with each logger, in alternating blocks of one run.

Usage: ``python scripts/benchmark_logging.py --rounds 8``, with overrides: ``... detector=detr_r18``

One Trainer trains the default job, modified by the overrides. Every round trains one block of steps per kind,
in random order, so that other load on the machine affects all kinds alike:

  silent     nothing is logged, and ``self.log`` of the losses has no effect
  none       ``logger=none``: losses are logged to the Trainer, for the progress bar, but to no logger
  csv        ``logger=csv``: metrics.csv
  wandb      ``logger=wandb`` offline, which writes metrics.csv too

Printed are, for each kind, the median ratio of its blocks to the ``silent`` block of the same round, in wall
time and in CPU time of the training process, and the share of that CPU time inside logging calls. CPU time
depends less on other processes; it excludes wandb's own process.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from anydepth.config.compose import compose, resolve_config
from anydepth.train import assemble

KINDS = ("silent", "none", "csv", "wandb")
# No validation, no checkpoint and no bar within the blocks; the time limit would end the run.
SETTINGS = (
    *("logger=wandb", "logger.wandb.offline=true", "trainer.limit_val_batches=0", "curve.depths=null"),
    *("callbacks.progress=null", "callbacks.best=null", "callbacks.last=null", "callbacks.time_limit=null"),
    *("recipe.minutes=null", "recipe.epochs=100000"),
)


class Blocks(pl.Callback):
    """Switches loggers from block to block, and measures each.

    Args:
        loggers: Loggers by kind.
        steps: Steps of a block.
        rounds: Measured rounds; one warm-up round precedes them.
    """

    def __init__(self, *, loggers: dict[str, list[Logger]], steps: int, rounds: int) -> None:
        self.loggers = loggers
        self.steps = steps
        draw = random.Random(0)
        self.order = [kind for _ in range(rounds + 1) for kind in draw.sample(KINDS, len(KINDS))]
        self.kind = KINDS[0]
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.cpu_seconds: dict[str, list[float]] = defaultdict(list)
        self.inside: dict[str, float] = defaultdict(float)
        self._start = (0.0, 0.0)

    def timed(self, function: Callable[..., Any], *, switched: bool) -> Callable[..., Any]:
        """Wrap a function to sum its time by kind; if ``switched``, it does nothing when silent."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if switched and self.kind == "silent":
                return None
            start = time.process_time()
            result = function(*args, **kwargs)
            self.inside[self.kind] += time.process_time() - start
            return result

        return call

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """End a block and start the next one; work after a step, such as logging, is part of its block."""
        # Lightning sends metrics to the loggers after on_train_batch_end: only here is a step over.
        block, position = divmod(trainer.global_step, self.steps)
        if position:
            return
        now = (time.perf_counter(), time.process_time())
        if block:
            self.seconds[self.kind].append(now[0] - self._start[0])
            self.cpu_seconds[self.kind].append(now[1] - self._start[1])
        if block == len(KINDS):
            self.inside.clear()
        if block == len(self.order):
            trainer.should_stop = True
            return
        self.kind = self.order[block]
        trainer.loggers = self.loggers[self.kind]
        self._start = (time.perf_counter(), time.process_time())


def measure(overrides: Sequence[str], folder: Path, steps: int, rounds: int) -> tuple[Blocks, str]:
    """Train all blocks; return the measurements and a description of the job."""
    cfg = compose("train", [*SETTINGS, f"paths.output_dir={folder}", *overrides], hydra_config=True)
    config = resolve_config(cfg)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data, module, trainer = assemble(cfg)
    csv, wandb = trainer.loggers
    interval = config["trainer"]["log_every_n_steps"]
    if steps % interval:
        raise SystemExit(f"--steps {steps}: give a multiple of trainer.log_every_n_steps={interval}")
    blocks = Blocks(
        loggers={"silent": [], "none": [], "csv": [csv], "wandb": [csv, wandb]}, steps=steps, rounds=rounds
    )
    trainer.callbacks.append(blocks)
    for owner, name in ((module, "log"), (module, "log_dict"), (csv, "log_metrics"), (wandb, "log_metrics")):
        setattr(owner, name, blocks.timed(getattr(owner, name), switched=owner is module))
    csv.save = blocks.timed(csv.save, switched=False)
    # One step more, in which the end of the last block stops the run.
    trainer.fit_loop.epoch_loop.max_steps = steps * len(blocks.order) + 1
    trainer.fit(module, datamodule=data)
    wandb.experiment.finish()
    job = (
        f"{config['detector_name']}, batch {config['data']['batch_size']}, {len(data.source('train'))} images"
    )
    return blocks, job


def report(blocks: Blocks, job: str, steps: int) -> dict[str, object]:
    """Return the medians and ratios of the measurements, without the first round."""
    result: dict[str, object] = {"job": job, "steps_per_block": steps, "threads": torch.get_num_threads()}
    seconds = {kind: blocks.seconds[kind][1:] for kind in KINDS}
    cpu_seconds = {kind: blocks.cpu_seconds[kind][1:] for kind in KINDS}
    result["rounds"] = len(seconds["silent"])
    for kind in KINDS:
        result[kind] = {
            "seconds_per_step": round(statistics.median(seconds[kind]) / steps, 5),
            "ratio": _ratio(seconds[kind], seconds["silent"]),
            "cpu_ratio": _ratio(cpu_seconds[kind], cpu_seconds["silent"]),
            "share_inside_logging": round(blocks.inside[kind] / sum(cpu_seconds[kind]), 4),
        }
    return result


def _ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times, reference, strict=True)), 4)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="measured blocks per kind")
    parser.add_argument("--steps", type=int, default=20, help="per block; a multiple of the logging interval")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("overrides", nargs="*", help="settings of anydepth-train, e.g. detector=detr_r18")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as folder:
        blocks, job = measure(arguments.overrides, Path(folder), arguments.steps, arguments.rounds)
    print(json.dumps(report(blocks, job, arguments.steps), indent=2))


if __name__ == "__main__":
    main()
