"""A run meets a bad step and skips it, and ``anydepth-replay`` runs that step again."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig
from rich import get_console

from anydepth.commands import replay_step
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
def bad_run(compose_run: Compose, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the console output of a run with two bad steps."""
    folder = tmp_path_factory.mktemp("run")
    settings = (
        "non_finite.action=skip",
        "recipe.multi_scale_sizes=[64,96,128]",
        "recipe.lr=0.05",  # so that the weights of the end differ
        f"+callbacks.spoil={{_target_: {__name__}.Spoil}}",
    )
    with get_console().capture() as shown:
        run(compose_run(folder, "recipe.epochs=2", *settings))
    return folder, shown.get()


def test_a_run_continues_and_counts(bad_run: tuple[Path, str]) -> None:
    folder, shown = bad_run
    assert "step 1 of epoch 0 is NaN or infinite and was not taken:\npass 'full': gradient of " in shown
    assert "step 3 of epoch 1 is NaN or infinite and was not taken:\npass 'full': loss " in shown
    assert "skipped 2 of at most 100 steps" in shown
    with next(folder.rglob("metrics.csv")).open() as file:
        skipped = [row["train/skipped_steps"] for row in csv.DictReader(file) if row["train/skipped_steps"]]
    assert list(map(float, skipped)) == [0, 1, 1, 2]
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["numbers"] == {"skipped": 2, "in_a_row": 1, "overflows": 0, "recorded": 2}
    assert checkpoint["callbacks"]["WeightAveraging"]["updates"] == 2
    assert checkpoint["global_step"] == 4, "the schedule continues"
    weights = checkpoint["state_dict"]
    assert any(name.endswith(".weight") for name in weights)
    assert all(value.isfinite().all() for value in weights.values())


def test_losses_are_those_of_the_run(bad_run: tuple[Path, str]) -> None:
    """To the bit: the input size, the noise of denoising and the weights are those of the run."""
    file = bad_run[0] / "non_finite" / "step_1_rank_0.pt"
    assert str(file) in bad_run[1]
    full, minimal = replay_step.replay(file)
    assert (full.name, minimal.name) == ("full", "minimal")
    for one in (full, minimal):
        assert one.terms == one.recorded
        assert one.finite, "the test made the gradient NaN, not the step"
        assert "recorded" not in str(one)
    other, _ = replay_step.replay(file, bad_run[0] / "checkpoints" / "last.ckpt")
    assert other.terms != other.recorded
    assert "recorded: " in str(other)


def test_a_step_that_was_not_finite_is_not_finite_again(bad_run: tuple[Path, str]) -> None:
    replayed = replay_step.replay(bad_run[0] / "non_finite" / "step_3_rank_0.pt")
    assert [one.name for one in replayed] == ["full", "minimal"]
    for one in replayed:
        assert not one.finite
        assert "ground-truth boxes" in one.fault
        assert math.isnan(one.terms["l1"] if one.name == "full" else one.terms["aux_l1"])
        assert "not finite: gradient of " in str(one)


def test_the_command_prints_the_message_the_losses_and_the_verdict(
    bad_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    replay_step.main([str(bad_run[0] / "non_finite" / "step_3_rank_0.pt")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 3 of epoch 1 is NaN or infinite")
    assert "pass full" in lines
    assert "pass minimal" in lines
    assert lines[-1] == "not finite again"


def test_a_missing_file_ends_the_command_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        replay_step.main([str(tmp_path / "none.pt")])
    assert caught.value.code == 1
    assert "none.pt: no such file" in capsys.readouterr().err


def test_missing_and_damaged_files_are_named(bad_run: tuple[Path, str], tmp_path: Path) -> None:
    file = bad_run[0] / "non_finite" / "step_1_rank_0.pt"
    alone = tmp_path / file.name
    alone.write_bytes(file.read_bytes())
    with pytest.raises(
        FileNotFoundError, match=r"step_1_weights\.pt: no such file; give weights with --weights"
    ):
        replay_step.replay(alone)
    alone.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StepFileError, match="not a complete step file"):
        replay_step.replay(alone)
    torch.save({"format": 1}, alone)
    with pytest.raises(StepFileError, match="damaged"):
        replay_step.replay(alone)
    with pytest.raises(FileNotFoundError, match="no such file"):
        replay_step.replay(tmp_path / "none.pt")


def test_a_file_executes_nothing(bad_run: tuple[Path, str], tmp_path: Path) -> None:
    folder = bad_run[0] / "non_finite"
    plain = torch.load(folder / "step_1_rank_0.pt", weights_only=True)
    plain["run"]["config"]["recipe"] = {"_target_": "os.system", "command": f"touch {tmp_path}/executed"}
    torch.save(plain, tmp_path / "step_1_rank_0.pt")
    with pytest.raises(TargetError, match=r"_target_ os\.system"):
        replay_step.replay(tmp_path / "step_1_rank_0.pt", folder / "step_1_weights.pt")
    assert not (tmp_path / "executed").exists()
