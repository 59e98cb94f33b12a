"""A run meets a bad step, leaves it out, and the script runs that step again."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig
from rich import get_console

from anydepth.config.targets import TargetError
from anydepth.train import run
from anydepth.training.checkpointing.read import read_checkpoint
from anydepth.training.non_finite.recorder import StepFileError

Compose = Callable[..., DictConfig]


class Spoil(pl.Callback):
    """A gradient that is NaN at finite losses in the second step, and infinite boxes in the last one."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parameter = next(p for p in pl_module.parameters() if p.requires_grad)
        parameter.register_hook(lambda g: g * torch.nan if trainer.global_step == 1 else g)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 3:
            batch.targets[0].boxes_cxcywh[:, 2] = torch.inf


@pytest.fixture(scope="module")
def spoilt(compose_run: Compose, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with a bad step, and what it showed."""
    folder = tmp_path_factory.mktemp("run")
    settings = (
        "non_finite.action=skip",
        "recipe.multi_scale_sizes=[64,96,128]",
        f"+callbacks.spoil={{_target_: {__name__}.Spoil}}",
    )
    with get_console().capture() as shown:
        run(compose_run(folder, *settings))
    return folder, shown.get()


def test_a_run_goes_on_and_counts(spoilt: tuple[Path, str]) -> None:
    folder, shown = spoilt
    assert "step 1 of epoch 0 is NaN or infinite and was not taken:\npath 'full': gradient of " in shown
    assert "step 3 of epoch 1 is NaN or infinite and was not taken:\npath 'full': loss " in shown
    assert "skipped 2 of at most 100 steps" in shown
    with next(folder.rglob("metrics.csv")).open() as file:
        skipped = [row["train/skipped_steps"] for row in csv.DictReader(file) if row["train/skipped_steps"]]
    assert list(map(float, skipped)) == [0, 1, 1, 2]
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["numbers"] == {"skipped": 2, "in_a_row": 1, "overflows": 0, "recorded": 2}
    assert checkpoint["callbacks"]["WeightAveraging"]["updates"] == 2
    assert checkpoint["global_step"] == 4, "the schedule goes on"
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_losses_come_out_the_same(spoilt: tuple[Path, str], script: ModuleType) -> None:
    """To the bit: the size of the step, the noise of denoising and the weights are those of the run."""
    file = spoilt[0] / "non_finite" / "step_1_rank_0.pt"
    assert str(file) in spoilt[1]
    full, minimal = script.reproduce(file)
    assert (full.name, minimal.name) == ("full", "minimal")
    for path in (full, minimal):
        assert path.terms == path.recorded
        assert path.finite, "the gradient was spoilt by the test, not by the step"
        assert "recorded" not in str(path)
    other, _ = script.reproduce(file, spoilt[0] / "checkpoints" / "last.ckpt")
    assert other.terms != other.recorded
    assert "recorded: " in str(other)


def test_what_was_not_finite_is_so_again(spoilt: tuple[Path, str], script: ModuleType) -> None:
    for path in script.reproduce(spoilt[0] / "non_finite" / "step_3_rank_0.pt"):
        assert not path.finite
        assert "ground-truth boxes" in path.fault
        assert math.isnan(path.terms["l1"] if path.name == "full" else path.terms["aux_l1"])
        assert "not finite: gradient of " in str(path)


def test_what_is_missing_or_damaged_is_named(
    spoilt: tuple[Path, str], script: ModuleType, tmp_path: Path
) -> None:
    file = spoilt[0] / "non_finite" / "step_1_rank_0.pt"
    alone = tmp_path / file.name
    alone.write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"step_1_weights\.pt: no such weights; give --weights"):
        script.reproduce(alone)
    alone.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StepFileError, match="no complete file of a step"):
        script.reproduce(alone)
    torch.save({"format": 1}, alone)
    with pytest.raises(StepFileError, match="damaged"):
        script.reproduce(alone)
    with pytest.raises(FileNotFoundError, match="no such file"):
        script.reproduce(tmp_path / "none.pt")


def test_a_file_executes_nothing(spoilt: tuple[Path, str], script: ModuleType, tmp_path: Path) -> None:
    folder = spoilt[0] / "non_finite"
    plain = torch.load(folder / "step_1_rank_0.pt", weights_only=True)
    plain["run"]["config"]["recipe"] = {"_target_": "os.system", "command": f"touch {tmp_path}/executed"}
    torch.save(plain, tmp_path / "step_1_rank_0.pt")
    with pytest.raises(TargetError, match=r"_target_ os\.system"):
        script.reproduce(tmp_path / "step_1_rank_0.pt", folder / "step_1_weights.pt")
    assert not (tmp_path / "executed").exists()
