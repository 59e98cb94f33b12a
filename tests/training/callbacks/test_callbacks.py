"""The plan of each step, the wall-time limit, the guard over processes, and the console."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig

from anydepth.detector import Detector
from anydepth.train import run
from anydepth.training.callbacks.progress import ConsoleProgress
from anydepth.training.callbacks.self_distillation import SelfDistillation
from anydepth.training.callbacks.time_limit import TimeLimit
from anydepth.training.checkpointing.read import read_checkpoint
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.training.recipes import AdamWRecipe
from losses import detr_losses


@pytest.fixture
def module(small_detector: Detector) -> DetectionModule:
    recipe = AdamWRecipe(lr=1.0, backbone_lr=1.0, weight_decay=0.0, epochs=1)
    return DetectionModule(
        detector=small_detector, objective=detr_losses(), recipe=recipe, evaluator=None, seed=0
    )


def _trainer(**state: Any) -> pl.Trainer:
    strategy = SimpleNamespace(broadcast=lambda value: value)
    defaults = {"strategy": strategy, "should_stop": False, "check_val_every_n_epoch": 5}
    return cast(pl.Trainer, SimpleNamespace(**{**defaults, **state}))


def test_each_optimizer_step_has_its_plan_and_micro_batches_share_it(module: DetectionModule) -> None:
    schedule = DepthSchedule(depths=("full",), random_points=1)
    callback = SelfDistillation(schedule=schedule, seed=4)
    plans = {}
    for step in range(8):
        for batch_idx in (0, 1):
            callback.on_train_batch_start(_trainer(global_step=step), module, None, batch_idx)
            assert plans.setdefault(step, module.plan) == module.plan
        assert module.plan == schedule.sample(module.detector.depth_space, 4, step)
    assert len({plan[1].depth for plan in plans.values()}) > 1


def test_a_schedule_that_does_not_fit_the_detector_stops_before_training(module: DetectionModule) -> None:
    callback = SelfDistillation(schedule=DepthSchedule(depths=("stage7",)), seed=0)
    with pytest.raises(ValueError, match="unknown stage 'stage7'"):
        callback.on_fit_start(_trainer(), module)


def test_the_time_limit_drives_progress_stops_and_validates(module: DetectionModule) -> None:
    now = 100.0
    limit = TimeLimit(minutes=2, clock=lambda: now)
    trainer = _trainer(max_epochs=None)
    limit.on_train_start(trainer, module)
    for elapsed, progress in ((30, 0.25), (119, 119 / 120)):
        now = 100.0 + elapsed
        limit.on_train_batch_start(trainer, module, None, 0)
        limit.on_train_batch_end(trainer, module, None, None, 0)
        assert module.time_progress == pytest.approx(progress)
        assert not trainer.should_stop
    now = 100.0 + 121
    limit.on_train_batch_start(trainer, module, None, 0)
    limit.on_train_batch_end(trainer, module, None, None, 0)
    assert module.time_progress == 1
    assert trainer.should_stop
    assert trainer.check_val_every_n_epoch == 1


def test_a_resumed_run_has_the_rest_of_its_time(module: DetectionModule) -> None:
    now = 0.0
    first = TimeLimit(minutes=2, clock=lambda: now)
    first.on_train_start(_trainer(max_epochs=None), module)
    now = 90.0
    saved = first.state_dict()
    assert saved == {"elapsed": 90.0}
    first.on_train_end(_trainer(), module)
    now = 5000.0
    assert first.elapsed == 90.0

    second = TimeLimit(minutes=2, clock=lambda: now)
    second.load_state_dict(saved)
    second.on_train_start(_trainer(max_epochs=None), module)
    now = 5015.0
    second.on_train_batch_start(_trainer(), module, None, 0)
    assert module.time_progress == pytest.approx(105 / 120)


def test_a_checkpoint_of_before_the_renaming_keeps_its_elapsed_time(
    module: DetectionModule, tmp_path: Path
) -> None:
    """Lightning finds a callback's state by ``state_key``, whose default is the name of the class."""
    limit = TimeLimit(minutes=2)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[limit],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.strategy._lightning_module = module
    old = {"callbacks": {"TrainingBudget": {"elapsed": 90.0}}, "pytorch-lightning_version": pl.__version__}
    trainer._checkpoint_connector._loaded_checkpoint = old
    trainer._checkpoint_connector.restore_callbacks()
    assert limit.elapsed == 90.0


def test_the_last_epoch_is_validated(module: DetectionModule) -> None:
    limit = TimeLimit(minutes=None)
    trainer = _trainer(max_epochs=7, current_epoch=5)
    limit.on_train_epoch_start(trainer, module)
    assert trainer.check_val_every_n_epoch == 5
    trainer = _trainer(max_epochs=7, current_epoch=6)
    limit.on_train_epoch_start(trainer, module)
    assert trainer.check_val_every_n_epoch == 1
    # Also if a run resumes within it: Lightning then does not call on_train_epoch_start.
    trainer = _trainer(max_epochs=7, current_epoch=6)
    limit.on_train_start(trainer, module)
    assert trainer.check_val_every_n_epoch == 1


def test_a_run_ends_with_its_time_and_reports_on_the_console(
    compose_run: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that is over at once: the first step is done, validated, saved; without any logger."""
    progress = "callbacks.progress={_target_: anydepth.training.callbacks.progress.ConsoleProgress}"
    limits = ("recipe.epochs=null", "recipe.minutes=1e-6", "recipe.validate_every_epochs=9", "logger=none")
    metrics, objects = run(compose_run(tmp_path, progress, *limits))
    assert objects["trainer"].global_step == 1
    assert (metrics["train/steps"], metrics["train/ended_by_minutes"]) == (1, 1)
    assert 0 <= metrics["val/score"] <= 1
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 1
    assert not (tmp_path / "logs").exists()
    printed = capsys.readouterr().out
    assert "detr_tiny, 0.04 M parameters, input 64x64" in printed
    assert "full from ground truth, minimal distilled from full" in printed
    assert "ended by recipe.minutes=1e-06 after 1 steps: another machine" in printed
    line = next(line for line in printed.splitlines() if line.startswith("100%"))
    assert all(part in line for part in ("epoch 1", "step 1", "loss full"))
    for path in ("full", "minimal"):
        found = re.search(rf" {path} AP (\d+\.\d|-) ", line)
        assert found is not None, line
        percent = f"{100 * metrics[f'val/{path}/AP']:.1f}"
        assert found[1] in (percent, "-")


def test_a_log_file_has_a_line_of_training_a_minute(
    module: DetectionModule, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes with batches of 4, so 8 images per step of 2 seconds; a validation of 1,000."""
    now = 0.0
    progress = ConsoleProgress(clock=lambda: now)
    optimizer = SimpleNamespace(param_groups=[{"lr": 2e-4}, {"lr": 1.0}])
    metrics = {"train/full/loss": torch.tensor(1.25), "train/minimal/loss": torch.tensor(0.5)}
    metrics |= {"val/full/AP": torch.tensor(0.123), "val/full/AP50": torch.tensor(0.5)}
    trainer = _trainer(
        world_size=2,
        global_step=0,
        current_epoch=2,
        estimated_stepping_batches=400,
        optimizers=[optimizer],
        callback_metrics=metrics,
    )
    module.plan = DepthSchedule(depths=("full", "minimal")).sample(module.detector.depth_space, 0, 0)
    batch = SimpleNamespace(images=torch.zeros(4, 3, 2, 2))
    progress.on_train_start(trainer, module)
    for step in range(1, 46):
        now += 2
        cast(Any, trainer).global_step = step
        progress.on_train_batch_end(trainer, module, None, batch, 0)
        if step == 40:
            progress.on_validation_start(trainer, module)
            now += 1000
            progress.on_validation_end(trainer, module)
    progress.on_train_end(trainer, module)
    minute, validation, later = capsys.readouterr().out.strip("\n").splitlines()
    assert minute.startswith(
        "  8% · epoch 3 · step 30 · loss full 1.250 minimal 0.500 · 4.0 images/s · lr 0.0002 · "
    )
    assert re.fullmatch(r".* · \d+\.\d GiB · 0:12:20 left", minute), minute  # 370 steps of 2 seconds
    assert validation.endswith("full AP 12.3 AP50 50.0")
    # 22 seconds of training since the line before: steps 31 to 41, without the validation between them.
    assert "step 41 ·" in later
    assert "4.0 images/s" in later


@pytest.mark.parametrize("wrong", [{"refresh_steps": 0}, {"line_seconds": 0}, {"line_seconds": float("nan")}])
def test_the_console_refuses_intervals_that_are_not_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*allowed"):
        ConsoleProgress(**wrong)
