"""Runs that are interrupted and resumed equal uninterrupted ones, bit for bit."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from anydepth.config.compose import compose
from anydepth.train import run
from anydepth.training.checkpointing.last import LastCheckpoint
from anydepth.training.checkpointing.newest import NewestCheckpoint, find_newest_checkpoint
from anydepth.training.checkpointing.read import read_checkpoint
from anydepth.training.checkpointing.write import CheckpointWriteError
from runs import assert_equal_runs, end_run, run_settings, start_run

SHORT = ("recipe.epochs=2", "logger=none")


class LostMachineError(RuntimeError):
    """The machine is lost."""


class MachineLoss(pl.Callback):
    """Simulates the loss of the machine before a training batch, or during the validation of an epoch."""

    def __init__(self, *, epoch: int, batch: int | None = None) -> None:
        self.epoch = epoch
        self.batch = batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise LostMachineError

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch:
            raise LostMachineError


@pytest.fixture(autouse=True)
def _clean_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


Train = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def train(small_run: tuple[str, ...]) -> Train:
    """Train a detector of a family in a folder; return the metrics."""

    def start(folder: Path, family: str, *settings: str) -> dict[str, float]:
        every = [*run_settings(family, small_run), f"paths.output_dir={folder}", *settings]
        return run(compose("train", every, hydra_config=True))[0]

    return start


def interrupt(train: Train, folder: Path, family: str, moment: str, *settings: str) -> int:
    """Train until the machine is lost; return the number of saved steps."""
    stop = f"+callbacks.loss={{_target_: {__name__}.MachineLoss,{moment}}}"
    with pytest.raises(LostMachineError):
        train(folder, family, stop, *settings)
    step = read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert isinstance(step, int)
    return step


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Folder and metrics of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, "detr", *SHORT)


@pytest.mark.slow
def test_a_run_that_is_interrupted_twice_equals_an_uninterrupted_one(
    train: Train, whole: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Between batches whose gradients are accumulated, and in a validation."""
    # Steps of two, two and one batches: the step of batch 3 is not finished, and is repeated from batch 2 on.
    assert interrupt(train, tmp_path, "detr", "epoch: 0,batch: 3", *SHORT) == 1
    assert interrupt(train, tmp_path, "detr", "epoch: 1", "ckpt_path=auto", *SHORT) == 6
    found = train(tmp_path, "detr", "ckpt_path=auto", *SHORT)
    assert _validation(found) == _validation(whole[1])
    assert_equal_runs(tmp_path, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "workers"), [("detr", 0), ("detr", 2), ("yolo", 0), ("yolo", 2)])
def test_runs_may_be_interrupted_anywhere(train: Train, tmp_path: Path, family: str, workers: int) -> None:
    """At every kind of moment, each time in a run that was resumed before."""
    settings = (*SHORT, f"data.num_workers={workers}")
    expected = train(tmp_path / "whole", family, *settings)
    folder = tmp_path / "lost"
    assert interrupt(train, folder, family, "epoch: 0,batch: 3", *settings) == 1
    assert interrupt(train, folder, family, "epoch: 0", "ckpt_path=auto", *settings) == 3
    assert interrupt(train, folder, family, "epoch: 1,batch: 0", "ckpt_path=auto", *settings) == 3
    assert interrupt(train, folder, family, "epoch: 1,batch: 2", "ckpt_path=auto", *settings) == 4
    assert interrupt(train, folder, family, "epoch: 1,batch: 4", "ckpt_path=auto", *settings) == 5
    assert interrupt(train, folder, family, "epoch: 1", "ckpt_path=auto", *settings) == 6
    found = train(folder, family, "ckpt_path=auto", *settings)
    assert _validation(found) == _validation(expected)
    assert_equal_runs(folder, tmp_path / "whole")


def _validation(figures: dict[str, float]) -> dict[str, float]:
    assert "val/score" in figures
    return {name: value for name, value in figures.items() if name.startswith("val/")}


@pytest.mark.slow
def test_the_last_epoch_is_validated_when_a_run_resumes_within_it(train: Train, tmp_path: Path) -> None:
    settings = (*SHORT, "recipe.validate_every_epochs=9")
    interrupt(train, tmp_path, "detr", "epoch: 1,batch: 2", *settings)
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    assert "val/score" in train(tmp_path, "detr", "ckpt_path=auto", *settings)
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.slow
def test_the_best_checkpoint_is_used_if_the_last_one_is_damaged(
    train: Train, whole: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(train, tmp_path, "detr", "epoch: 1,batch: 2", *SHORT)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    capsys.readouterr()
    train(tmp_path, "detr", "ckpt_path=auto", *SHORT)
    printed = capsys.readouterr().out
    assert f"ignored   {last}: not a complete checkpoint" in printed
    assert f"resumes   from {last.with_name('best.ckpt')}, after step 3\n" in printed
    assert_equal_runs(tmp_path, whole[0])


class FakeClock(pl.Callback):
    """Advances by a minute with each training batch."""

    now = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        FakeClock.now += 60

    def __call__(self) -> float:
        return FakeClock.now


@pytest.mark.parametrize(
    ("minutes", "steps"),
    [
        pytest.param(0, [1, 2, 3, 3], marks=pytest.mark.slow),
        pytest.param(2, [1, 2, 3], marks=pytest.mark.slow),
        (3, [2, 3]),
        pytest.param("null", [3], marks=pytest.mark.slow),
    ],
)
def test_checkpoints_are_written_by_the_clock_between_steps_and_after_epochs(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float | str, steps: list[int]
) -> None:
    """Steps end after 2, 4 and 5 minutes; a validation follows the last one, and the end of the epoch."""
    saved: list[int] = []
    save = pl.Trainer.save_checkpoint

    def record(self: pl.Trainer, path: Path, *rest: Any) -> None:
        saved.extend([self.global_step] if Path(path).name == "last.ckpt" else [])
        save(self, path, *rest)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", record)
    clock = f"{{_target_: {__name__}.FakeClock}}"
    settings = (f"callbacks.last.every_minutes={minutes}", f"+callbacks.last.clock={clock}")
    train(tmp_path, "detr", "recipe.epochs=1", "logger=none", f"+callbacks.clock={clock}", *settings)
    assert saved == steps


@pytest.mark.parametrize("minutes", [-1, -0.1])
def test_a_negative_time_is_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(ValueError, match=f"every_minutes={minutes}: allowed are 0"):
        LastCheckpoint(dirpath=tmp_path, every_minutes=minutes)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_the_former_checkpoint_intact(
    train: Train, whole: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            CheckpointWriteError, match=r"last\.ckpt: .*\(File too large\)\. The one before it"
        ):
            train(tmp_path, "detr", *SHORT, "recipe.epochs=3", "ckpt_path=auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert find_newest_checkpoint(tmp_path) == NewestCheckpoint(tmp_path / "checkpoints" / "last.ckpt", 6)


# -- SIGTERM ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_to_all_processes_saves_the_step_and_prints_how_to_resume(
    tmp_path: Path, small_run: tuple[str, ...]
) -> None:
    """As a batch system sends it: the data loader workers receive it, too."""
    process = start_run(tmp_path, small_run, "recipe.epochs=100000", "data.num_workers=1")
    # The first epoch is saved, the next one has started.
    time.sleep(0.3)
    printed, errors = end_run(process, whole_group=True)
    assert process.returncode == 143, errors
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (line,) = [line for line in printed.splitlines() if line.startswith("stopped")]
    step = read_checkpoint(last)["global_step"]
    assert step > 3, "more than the first epoch"
    assert line.startswith(f"stopped   by SIGTERM after step {step}, ")
    assert line.endswith(
        f"is saved; resume with the same command and hydra.run.dir={last.parents[1]} and ckpt_path=auto"
    )
    assert "Traceback" not in errors
    assert "Error" not in errors
    assert not (last.parents[1] / "result.json").exists()
    assert json.loads((last.parents[1] / "failure.json").read_text())["status"] == "interrupted"
