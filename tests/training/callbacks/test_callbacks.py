"""The plan of each step, the wall-time limit, the guard over processes, and the console."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
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
    assert 0 <= metrics["val/score"] <= 1
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 1
    assert not (tmp_path / "logs").exists()
    printed = capsys.readouterr().out
    assert "detr_tiny, 0.04 M parameters, input 64x64" in printed
    assert "full from ground truth, minimal distilled from full" in printed
    line = next(line for line in printed.splitlines() if line.startswith("100%"))
    assert all(part in line for part in ("epoch 1", "step 1", "loss full", "full AP ", "minimal AP "))


def test_the_console_refreshes_after_a_positive_number_of_steps() -> None:
    with pytest.raises(ValueError, match="1 and above"):
        ConsoleProgress(refresh_steps=0)
