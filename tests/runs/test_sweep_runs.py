"""Whole sweeps through the command line: killed and resumed, with failing jobs, in parallel, searching."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from safetensors.torch import load_file

import anydepth
from anydepth import zoo
from anydepth.runs.job import FAILURE, RESULT, VISIT, read_record, run_folders
from anydepth.train import main

Sweep = Callable[..., int]


@pytest.fixture
def sweep(small_run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sweep:
    """Run ``anydepth-train`` with these settings in this process; return the exit code."""

    monkeypatch.chdir(tmp_path)

    def start(*settings: str) -> int:
        monkeypatch.setattr(sys, "argv", ["anydepth-train", *_ordered(small_run, settings)])
        try:
            main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        return 0

    return start


def _ordered(small_run: tuple[str, ...], settings: tuple[str, ...]) -> list[str]:
    """Put options first: Hydra accepts settings only as one block."""
    flags = [text for text in settings if text.startswith("-")]
    return [*flags, *small_run, *(text for text in settings if text not in flags)]


def _assert_equal_weights(first: Path, second: Path) -> None:
    # Not the bytes of the files: the order of the entries in their header is arbitrary.
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def _jobs(folder: Path) -> dict[str, Path]:
    """Return the folders of jobs by their name before the hash."""
    return {path.name.rpartition("-")[0]: path for path in run_folders(folder)}


def _wait_for(path: Path, process: "subprocess.Popen[bytes]", seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the sweep ended before it was killed"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.005)


class BuildsAnother(Callback):
    """Builds a detector by its name in each job, which composes a configuration inside that of the job."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        anydepth.build("detr_tiny", num_classes=1)


def test_all_jobs_of_a_sweep_lie_in_one_folder_of_its_command(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo._settings.cache_clear()  # as in a new process, so that the first job composes the detector
    build = f"+callbacks.build={{_target_: {__name__}.BuildsAnother}}"
    short = ("recipe.epochs=1", "trainer.limit_train_batches=1")
    assert sweep("-m", "seed=0,1", *short, build, "paths.output_root=x") == 0
    (folder,) = (tmp_path / "x" / "train").iterdir()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["train"]
    jobs = _jobs(folder)
    assert set(jobs) == {"seed_0", "seed_1"}
    commands = [json.loads((path / "provenance.json").read_text())["command"] for path in jobs.values()]
    assert [command.split()[0] for command in commands] == ["anydepth-train"] * 2
    states = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("seed_")]
    assert states == ["finished", "finished"]


@pytest.mark.slow
def test_a_sweep_killed_in_its_third_job_runs_only_the_missing_jobs(
    sweep: Sweep, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    """Seeds 0 and 1 keep their files, 2 resumes to the weights of an uninterrupted run."""
    settings = ("-m", "experiment=seeds", "seed=0,1,2,3", "recipe.epochs=4", "hydra.sweep.dir=study")
    command = [sys.executable, "-m", "anydepth.train", *_ordered(small_run, settings)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    study = tmp_path / "study"
    try:
        while len(_jobs(study)) < 3:
            assert process.poll() is None, "the sweep ended before it was killed"
            time.sleep(0.005)
        third = _jobs(study)["seed_2"]
        _wait_for(third / "checkpoints" / "last.ckpt", process)
    finally:
        process.kill()
        process.wait()
    assert not {"result.json", "failure.json"} & {path.name for path in third.iterdir()}
    assert "seed_3" not in _jobs(study)
    before = {
        path: path.stat().st_mtime_ns for seed in (0, 1) for path in _files(_jobs(study)[f"seed_{seed}"])
    }

    assert sweep(*settings) == 0
    jobs = _jobs(study)
    assert set(jobs) == {f"seed_{seed}" for seed in range(4)}
    for job in jobs.values():
        record = read_record(job, RESULT)
        assert record["status"] == "finished"
        assert 0 <= record["metrics"]["val/score"] <= 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [path.name for path in sorted((third / "logs").iterdir())] == ["version_0", "version_1"]
    assert [path.name for path in (jobs["seed_3"] / "logs").iterdir()] == ["version_0"]

    # The recorded settings, as a run of their own.
    overrides = json.loads((third / "provenance.json").read_text())["overrides"]
    assert "seed=2" in overrides
    assert sweep(*(text for text in overrides if text not in small_run), "hydra.run.dir=alone") == 0
    _assert_equal_weights(tmp_path / "alone" / "weights.safetensors", third / "weights.safetensors")


@pytest.mark.slow
def test_sigterm_to_all_processes_ends_a_sweep_within_its_job(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    """As a batch system sends it. The loader's workers end first, which must not count as a failed job."""
    settings = ("-m", "seed=0,1", "recipe.epochs=100000", "data.num_workers=1", "hydra.sweep.dir=study")
    command = [sys.executable, "-m", "anydepth.train", *_ordered(small_run, settings)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while len(_jobs(tmp_path / "study")) < 1:
            assert process.poll() is None, "the sweep ended before it was killed"
            time.sleep(0.005)
        _wait_for(_jobs(tmp_path / "study")["seed_0"] / "checkpoints" / "last.ckpt", process)
        os.killpg(process.pid, signal.SIGTERM)
        _, printed = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert set(_jobs(tmp_path / "study")) == {"seed_0"}
    assert not (_jobs(tmp_path / "study")["seed_0"] / "result.json").exists()


def _files(folder: Path) -> list[Path]:
    kept = ("checkpoints", "logs", "weights.safetensors", "result.json", "config.yaml", "provenance.json")
    return [
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in kept
    ]


@pytest.mark.slow
def test_a_job_killed_after_its_last_step_gets_its_figures(sweep: Sweep, tmp_path: Path) -> None:
    """Nothing is left to train, only to evaluate; the record equals that of the uninterrupted job."""
    settings = ("-m", "seed=0", "hydra.sweep.dir=study")
    assert sweep(*settings) == 0
    (job,) = _jobs(tmp_path / "study").values()
    whole = read_record(job, RESULT)["metrics"]
    for name in ("result.json", "weights.safetensors"):
        (job / name).unlink()
    assert sweep(*settings) == 0
    again = read_record(job, RESULT)["metrics"]
    validation = {name for name in whole if name.startswith("val/")}
    assert "val/score" in validation
    assert {name: again[name] for name in validation} == {name: whole[name] for name in validation}
    assert (job / "weights.safetensors").is_file()


@pytest.mark.slow
def test_a_failing_job_does_not_affect_the_others(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("-m", "experiment=ablation_losses", "ablation=both,full_only", "recipe.lr=-1,0.001")
    curve = ("curve.depths=[full,minimal]", "curve.latency_repetitions=0", "curve.pictures=0")
    assert sweep(*settings, *curve, "recipe.epochs=1") == 1
    (study,) = (tmp_path / "outputs" / "sweeps" / "ablation_losses").iterdir()
    jobs = _jobs(study)
    states = {name: (path / "result.json").exists() for name, path in jobs.items()}
    assert states == {
        "ablation_both-lr_-1": False,
        "ablation_both-lr_0.001": True,
        "ablation_full_only-lr_-1": False,
        "ablation_full_only-lr_0.001": True,
    }
    failure = read_record(jobs["ablation_both-lr_-1"], FAILURE)
    assert failure["error"] == "recipe.lr=-1: allowed are above 0 (in the configuration key `recipe`)"
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert printed.err.count("\nError in ") == 2
    rows = [
        line.split() for line in printed.out.splitlines() if line.split()[1:2] in (["failed"], ["finished"])
    ]
    assert [row[1] for row in rows] == ["failed", "finished", "failed", "finished"]
    assert (study / "report.html").exists()
    provenance = json.loads((jobs["ablation_both-lr_0.001"] / "provenance.json").read_text())
    assert provenance["device"]["type"] == "cpu"
    assert provenance["data"]["train_images"] == 56
    assert provenance["data"]["val_images"] == 19
    assert len(provenance["data"]["fingerprint"]) == 64


@pytest.mark.slow
def test_a_search_learns_from_scores_survives_failures_and_finds_its_trials_again(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    settings = (
        "-m",
        "experiment=search",
        "hydra.sweeper.n_trials=3",
        "recipe.epochs=1",
        "hydra.sweep.dir=study",
    )
    assert sweep(*settings) == 0
    jobs = _jobs(tmp_path / "study")
    scores = [read_record(job, RESULT)["metrics"]["val/best_score"] for job in jobs.values()]
    assert len(scores) == 3
    best = OmegaConf.load(tmp_path / "study" / "optimization_results.yaml")
    assert best.best_value == max(scores)
    assert "recipe.lr" in best.best_params
    before = {path: path.stat().st_mtime_ns for job in jobs.values() for path in _files(job)}
    capsys.readouterr()
    assert sweep(*settings) == 0
    assert capsys.readouterr().out.count("\nskipped   ") == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    broken = (
        "-m",
        "hydra/sweeper=search",
        "hydra.sweeper.n_trials=4",
        "recipe.lr=choice(-1,0.001)",
        "recipe.epochs=1",
    )
    assert sweep(*broken, "hydra.sweep.dir=broken") == 1
    states = {name: (path / "result.json").exists() for name, path in _jobs(tmp_path / "broken").items()}
    assert states == {"lr_-1": False, "lr_0.001": True}


def test_a_search_does_not_start_processes_that_draw_again(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    settings = ("-m", "experiment=search", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=study", *devices)
    assert sweep(*settings) == 1
    assert _jobs(tmp_path / "study") == {}
    assert capsys.readouterr().err.count("trainer.strategy=ddp_spawn") == 1


@pytest.mark.slow
def test_jobs_run_in_parallel_in_their_own_processes(sweep: Sweep, tmp_path: Path) -> None:
    """As on SLURM, with the local executor of the same launcher."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = ("-m", "recipe.lr=0.001,-1", "recipe.epochs=1", "hydra/launcher=local_jobs")
    assert sweep(*settings, "hydra.sweep.dir=study") == 1
    jobs = _jobs(tmp_path / "study")
    states = {name: (path / "result.json").exists() for name, path in jobs.items()}
    assert states == {"lr_0.001": True, "lr_-1": False}
    assert list((tmp_path / "study" / ".submitit").iterdir())
    # The sweep's id reaches jobs in other processes.
    assert len({read_record(path, VISIT)["sweep"] for path in jobs.values()}) == 1
    # A former failure does not fail a sweep without that job.
    other = ("-m", "recipe.lr=0.001", "recipe.epochs=1", "hydra.sweep.dir=study")
    assert sweep(*other) == 0


@pytest.mark.slow
def test_two_runs_of_one_configuration_are_equal(sweep: Sweep, tmp_path: Path) -> None:
    """Weights and every logged figure, bit by bit, with everything on that draws random numbers."""
    settings = (
        "depth_schedule=sandwich",
        "recipe.multi_scale_sizes=[64,96]",
        "trainer.accumulate_grad_batches=2",
    )
    for name in ("first", "second"):
        assert sweep(*settings, "trainer.limit_train_batches=4", f"hydra.run.dir={name}") == 0
    weights = [tmp_path / name / "weights.safetensors" for name in ("first", "second", "third")]
    logs = [tmp_path / name / "logs" / "version_0" / "metrics.csv" for name in ("first", "second", "third")]
    assert sweep(*settings, "trainer.limit_train_batches=4", "hydra.run.dir=third", "seed=1") == 0
    _assert_equal_weights(weights[0], weights[1])
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert logs[0].read_bytes() != logs[2].read_bytes()
