"""The entry point of training: invalid settings, and two processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

import anydepth
from anydepth import zoo
from anydepth.train import best_score, main, run
from anydepth.training.checkpointing.last import LastCheckpoint
from small_networks import SMALL_DETECTOR

Compose = Callable[..., DictConfig]


def test_classes_that_contradict_the_data_are_refused(compose_run: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes=3, but the data set has 1 classes"):
        run(compose_run(tmp_path, "detector.num_classes=3"))


def test_a_missing_checkpoint_is_named_before_any_work(compose_run: Compose, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        run(compose_run(tmp_path, "ckpt_path=none.ckpt"))


def test_a_fixed_depth_detector_needs_a_schedule_of_one_depth(compose_run: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depth_schedule=full_only"):
        run(compose_run(tmp_path, "detector.any_depth=false", "validation.depths=[full]"))


def test_a_sweep_does_not_start_processes_that_sweep_again(compose_run: Compose, tmp_path: Path) -> None:
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    config = compose_run(tmp_path, *devices)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.mode = RunMode.MULTIRUN
    HydraConfig.instance().set_config(config)
    with pytest.raises(ValueError, match=r"trainer\.strategy=ddp_spawn"):
        run(config)


def test_training_starts_from_given_weights(compose_run: Compose, tmp_path: Path) -> None:
    """With a negligible learning rate and no averaging, a run ends with its initial weights."""
    torch.manual_seed(1)
    first = zoo.save(zoo.build("detr_tiny", 1, **SMALL_DETECTOR), tmp_path / "first.safetensors")
    still = ("recipe.lr=1e-30", "recipe.backbone_lr=0", "recipe.weight_decay=0", "callbacks.averaging=null")
    short = ("recipe.epochs=1", "trainer.limit_train_batches=1")
    run(compose_run(tmp_path / "run", *short, *still, "seed=2", f"weights={first}"))
    given, trained = anydepth.load(first), anydepth.load(tmp_path / "run" / "weights.safetensors")
    for (name, one), two in zip(given.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-20, msg=name)


@pytest.mark.slow
def test_two_processes_train_together_and_one_of_them_writes(
    tmp_path: Path, small_run: tuple[str, ...]
) -> None:
    """The real command line; steps leave parameters unused, and 19 images do not divide by 2."""
    settings = [
        *small_run,
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false"),
        *("depth_schedule=random", "recipe.epochs=1", "trainer.limit_train_batches=1"),
        *("trainer.limit_val_batches=null", "curve.depths=[full,minimal]", "curve.latency_repetitions=0"),
        *("curve.pictures=0", "detector.denoising_queries=20"),  # enough for all boxes, or it would warn
    ]
    command = [sys.executable, "-m", "anydepth.train", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stdout
    (folder,) = (tmp_path / "outputs" / "train").iterdir()
    curve = json.loads((folder / "depth_curve.json").read_text())
    assert curve["images"] == 19
    assert [row["depth"] for row in curve["rows"]] == ["full", "minimal"]
    assert anydepth.load(folder / "weights.safetensors").class_names
    assert len(list(folder.rglob("metrics.csv"))) == 1
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("data=custom data.root=nowhere", "nowhere", marks=pytest.mark.slow),
        ("detector=detr_r5", "detr_r50"),
        ("curve.depths=[full,bogus]", "unknown stage 'bogus'"),
        pytest.param("curve.pictures=-1", "curve.pictures=-1: allowed are 0", marks=pytest.mark.slow),
        pytest.param("curve.threshold=2", "curve.threshold=2: allowed are 0 to 1", marks=pytest.mark.slow),
        ("recipe.lrr=1", "Could not override 'recipe.lrr'"),
        pytest.param("validation.depths=[stage9]", "unknown stage 'stage9'", marks=pytest.mark.slow),
        ("recipe.lr=-1", "recipe.lr=-1: allowed are above 0\n(in the configuration key"),
        pytest.param(
            "data=coco",
            "datasets/coco: no such folder; give the data set's folder as data.root",
            marks=pytest.mark.slow,
        ),
        ("seed=???", "seed has no value: give seed=VALUE"),
    ],
)
def test_the_command_line_refuses_in_one_message(
    override: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anydepth-train", *override.split(), "hydra.run.dir=out"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in printed
    assert "Traceback" not in printed


def test_the_best_score_is_read_from_its_checkpoint_if_only_that_was_returned(tmp_path: Path) -> None:
    """As by processes that Lightning starts from Python."""
    best = ModelCheckpoint(monitor="val/score", dirpath=tmp_path)
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[LastCheckpoint(dirpath=tmp_path), best])
    assert best_score(trainer) == {}
    states = {best.state_key: {"best_model_score": torch.tensor(0.25)}}
    torch.save({"state_dict": {}, "detector": {}, "callbacks": states}, tmp_path / "best.ckpt")
    best.best_model_path = str(tmp_path / "best.ckpt")
    assert best_score(trainer) == {"val/best_score": 0.25}
    best.best_model_score = torch.tensor(0.5)
    assert best_score(trainer) == {"val/best_score": 0.5}
