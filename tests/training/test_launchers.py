"""Whole runs of two processes, however they are started: figures of one process, and one folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anydepth import zoo
from found_data import unlike_itself, used_to_noise, write_found_data
from small_networks import SMALL_DETECTOR

pytestmark = pytest.mark.slow

TRAIN = ("-m", "anydepth.train")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# So small a learning rate leaves the weights unchanged, so that figures can be compared to the last digit.
SETTINGS = (
    *("recipe.lr=1e-30", "recipe.backbone_lr=1e-30", "recipe.weight_decay=0", "recipe.epochs=1"),
    *("trainer.limit_val_batches=null", "callbacks.averaging=null", "validation.depths=[full,minimal]"),
    *("data=custom", "augmentation=none", "data.eval_batch_size=2"),
)
TWO = ("trainer.devices=2", "trainer.accelerator=cpu")
LAUNCHED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ddp": (TRAIN, ("trainer=ddp",)),
    "ddp_spawn": (TRAIN, ("trainer=ddp_spawn",)),
    "torchrun": ((*TORCHRUN, *TRAIN), ("trainer=multi_node", "trainer.num_nodes=1")),
    "two backward passes": (TRAIN, ("trainer=ddp", "backward=separate")),
}


def _start(folder: Path, *command: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command, f"hydra.run.dir={folder}"],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: "subprocess.Popen[str]") -> str:
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def _figures(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


@pytest.fixture(scope="module")
def settings(small_run: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings of a network that detects something, on data of which each depth finds another part."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    detector = used_to_noise(unlike_itself(zoo.build("detr_tiny", 2, **SMALL_DETECTOR), ("cat", "dog")))
    weights = zoo.save(detector, folder / "weights.safetensors")
    root = write_found_data(folder / "data", detector, ("train", "val"))
    return (*small_run, *SETTINGS, f"weights={weights}", f"data.root={root}")


@pytest.fixture(scope="module")
def alone(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Figures of one process."""
    folder = tmp_path_factory.mktemp("alone")
    _finish(_start(folder, *TRAIN, *settings, "data.batch_size=4"))
    figures = _figures(folder)
    assert figures["val/full/AP"] > 0.01
    assert figures["val/minimal/AP"] > 0
    assert figures["val/full/AP"] != figures["val/minimal/AP"]
    return figures


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_two_processes_have_the_figures_of_one(
    launcher: str, alone: dict[str, Any], settings: tuple[str, ...], tmp_path: Path
) -> None:
    """Five validation images do not divide by 2."""
    command, trainer = LAUNCHED[launcher]
    printed = _finish(_start(tmp_path / "run", *command, *settings, *trainer, *TWO, "data.batch_size=2"))
    assert "2 x cpu" in printed
    assert _figures(tmp_path / "run") == alone
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _slurm(rank: int, job: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
    }


def test_processes_that_slurm_starts_have_the_figures_of_one(
    alone: dict[str, Any], settings: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*settings, *TWO, "trainer=multi_node", "trainer.num_nodes=1", "data.batch_size=2")
    started = [_start(tmp_path, *TRAIN, *settings, **_slurm(rank, job=str(os.getpid()))) for rank in range(2)]
    assert "2 x cpu" in "".join(_finish(process) for process in started)
    assert _figures(tmp_path) == alone


def test_processes_with_other_settings_stop_and_name_them(small_run: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*small_run, *TWO, "trainer=multi_node", "trainer.num_nodes=1", "recipe.epochs=1")
    job = str(os.getpid() + 1)
    started = [
        _start(tmp_path, *TRAIN, *settings, *changed, **_slurm(rank, job))
        for rank, changed in enumerate([(), ("recipe.lr=0.5",)])
    ]
    for process in started:
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 1, printed
        assert "setting recipe.lr: 0.5 in process 1" in printed
        assert "Start all processes with the same command" in printed
