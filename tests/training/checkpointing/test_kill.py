"""Runs that are killed at random moments, also while writing a checkpoint, resume to the same result."""

import os
import random
import signal
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from anydepth.config.compose import compose
from runs import assert_equal_runs, run_settings

TRIALS = 20
# Every trial is killed twice: a resumed run has to be resumable, too.
KILLS = 2
WORKERS = {"detr": 0, "yolo": 2}


def _train(folder: str, settings: tuple[str, ...], seconds_per_write: float) -> None:
    """Run a whole training in its own process group, writing checkpoints as slowly as a slow disk."""
    from anydepth.train import run
    from anydepth.training.checkpointing import write

    os.setsid()
    output = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    write = write._File.write

    def slow(self: Any, data: bytes) -> int:
        time.sleep(seconds_per_write)
        return write(self, data)

    write._File.write = slow  # type: ignore[method-assign, assignment]
    every = [*settings, f"paths.output_dir={folder}", "ckpt_path=auto"]
    run(compose("train", every, hydra_config=True))
    Path(folder, "finished").touch()


def _start(folder: Path, settings: tuple[str, ...], seconds_per_write: float) -> Any:
    process = get_context("forkserver").Process(
        target=_train, args=(str(folder), settings, seconds_per_write)
    )
    process.start()
    return process


def _kill(process: Any) -> None:
    """Kill the process and its data loader workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["detr", "yolo"])
def test_runs_killed_at_random_moments_equal_an_uninterrupted_one(
    tmp_path: Path, small_run: tuple[str, ...], family: str
) -> None:
    workers = f"data.num_workers={WORKERS[family]}"
    settings = (*run_settings(family, small_run), workers, "logger=none", "recipe.epochs=2")
    whole = tmp_path / "whole"
    context = get_context("forkserver")
    # Imported once, before the duration of a run is measured.
    context.set_forkserver_preload(["anydepth.train"])
    process = context.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    started = time.monotonic()
    process = _start(whole, settings, 0.0)
    process.join()
    assert process.exitcode == 0, Path(f"{whole}.log").read_text()
    seconds = time.monotonic() - started
    rng = random.Random(0)
    kills = writing = 0
    for trial in range(TRIALS):
        folder = tmp_path / f"trial{trial}"
        for _ in range(KILLS):
            # With the delay, writing checkpoints takes about as long as the rest.
            process = _start(folder, settings, rng.choice([0.0, 0.002]))
            process.join(rng.uniform(0, 1.2 * seconds))
            if process.exitcode is None:
                kills += 1
                _kill(process)
                writing += bool(list(folder.glob("checkpoints/.*.partial.ckpt")))
        process = _start(folder, settings, 0.0)
        process.join(20 * seconds + 60)
        log = Path(f"{folder}.log").read_text()
        assert process.exitcode == 0, f"trial {trial}: {log}"
        assert (folder / "finished").exists()
        assert "ignored" not in log, "every checkpoint that a killed process left is undamaged"
        assert_equal_runs(folder, whole)
    print(f"measured: {TRIALS} trials, {kills} kills, {writing} of them while a checkpoint was written")
    assert kills >= TRIALS
    assert writing >= 1
