"""Training jobs and their records: results and failures; jobs that are skipped, resumed or refused."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from anydepth.config.compose import resolve_config
from anydepth.runs.identity import result_hash
from anydepth.runs.interruption import Interrupted
from anydepth.runs.job import (
    FAILURE,
    REFUSAL,
    RESULT,
    RunFolderError,
    check_output,
    execute,
    read_record,
    run_folders,
)
from anydepth.runs.provenance import write_provenance
from anydepth.runs.sweep import read_job
from anydepth.training.checkpointing.sigterm import Terminated

Compose = Callable[..., DictConfig]


class Trainer:
    """Fake training that records its configurations and returns or raises a given outcome."""

    def __init__(self, outcome: float | BaseException = 0.25) -> None:
        self.outcome = outcome
        self.seen: list[DictConfig] = []

    def __call__(self, cfg: DictConfig) -> tuple[dict[str, float], Any]:
        self.seen.append(cfg)
        write_provenance(cfg.paths.output_dir, resolve_config(cfg))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return {"val/score": self.outcome, "val/nothing": math.nan}, None


@pytest.fixture
def job(compose_run: Compose, tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose a job of a sweep in ``tmp_path/job``, or a single run."""

    def compose(*overrides: str, sweep: bool = True) -> DictConfig:
        config = compose_run(tmp_path / "job", *overrides)
        if sweep:
            OmegaConf.set_readonly(config.hydra, False)
            config.hydra.mode = RunMode.MULTIRUN
            HydraConfig.instance().set_config(config)
        return config

    return compose


def _checkpoint(folder: Path) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "detector": {}}, path)
    return path


@pytest.mark.parametrize("sweep", [True, False], ids=["sweep", "single"])
def test_a_result_is_written_last_and_is_plain_json(
    job: Callable[..., DictConfig], tmp_path: Path, sweep: bool
) -> None:
    config = job(sweep=sweep)
    assert execute(config, Trainer()) == 0.25
    record = read_record(tmp_path / "job", RESULT)
    assert (record["status"], record["metrics"]) == ("finished", {"val/score": 0.25, "val/nothing": None})
    assert record["config_hash"] == result_hash(resolve_config(config))
    assert (
        json.loads((tmp_path / "job" / "provenance.json").read_text())["config_hash"] == record["config_hash"]
    )
    assert set(record) == {"status", "config_hash", "seconds", "finished", "metrics"}


def test_a_finished_job_is_skipped(
    job: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    execute(job(), Trainer())
    capsys.readouterr()
    again = Trainer(0.5)
    # Other loggers or console output do not make it another job.
    assert execute(job("logger=none", "+callbacks.progress={_target_: x}"), again) == 0.25
    assert again.seen == []
    assert capsys.readouterr().out.startswith("skipped   job: finished 20")


def test_a_folder_with_the_result_of_other_settings_is_refused_and_kept(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(job(), Trainer())
    before = (tmp_path / "job" / "result.json").read_bytes()
    other = Trainer()
    assert math.isnan(execute(job("recipe.lr=0.5"), other) or 0)
    printed = " ".join(capsys.readouterr().err.split())
    assert "recipe.lr: 0.001 in the folder, 0.5 in this job" in printed
    assert "delete that folder" in printed
    assert other.seen == []
    assert (tmp_path / "job" / "result.json").read_bytes() == before
    assert "recipe.lr" in read_record(tmp_path / "job", REFUSAL)["error"]
    # The settings of the result are still accepted.
    assert execute(job(), other) == 0.25
    assert not (tmp_path / "job" / "refused.json").exists()


def test_an_interrupted_job_resumes_from_its_last_checkpoint(
    job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        execute(job(), Trainer(KeyboardInterrupt()))
    folder = tmp_path / "job"
    assert not (folder / "result.json").exists()
    checkpoint = _checkpoint(folder)
    second = Trainer()
    assert execute(job(), second) == 0.25
    assert second.seen[0].ckpt_path == str(checkpoint)
    assert execute(job(), Trainer(0.9)) == 0.25


@pytest.mark.parametrize(
    "reason", ["other settings", "damaged", pytest.param("none", marks=pytest.mark.slow)]
)
def test_a_job_that_cannot_be_resumed_starts_in_a_clean_folder(
    job: Callable[..., DictConfig], tmp_path: Path, reason: str
) -> None:
    folder = tmp_path / "job"
    with pytest.raises(SystemExit):
        execute(job("recipe.lr=0.5") if reason == "other settings" else job(), Trainer(SystemExit(1)))
    if reason != "none":
        _checkpoint(folder)
    if reason == "damaged":
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"cut")
    (folder / "logs" / "version_0").mkdir(parents=True)
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    leftovers = ("compatibility.csv", "compatibility.png", "wandb_id.txt", "uncommitted.1.patch")
    for name in (*leftovers, "depth_curve.json", ".weights.12.partial.safetensors", "notes.txt"):
        (folder / name).touch()
    second = Trainer()
    assert execute(job(), second) == 0.25
    assert second.seen[0].ckpt_path is None
    left = {path.name for path in folder.iterdir()} - {"uncommitted.patch"}
    assert left == {"config.yaml", "provenance.json", "result.json", "notes.txt"}


@pytest.mark.parametrize(
    ("error", "kind", "printed"),
    [
        pytest.param(
            MissingMandatoryValue("no root"),
            "MissingMandatoryValue",
            "Error in job: no root\n",
            id="user error",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ZeroDivisionError("many\nlines"),
            "ZeroDivisionError",
            "Error in job: ZeroDivisionError: lines (a defect of the program, see",
            id="defect",
        ),
    ],
)
def test_a_failing_job_is_recorded_and_the_sweep_continues(
    job: Callable[..., DictConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    kind: str,
    printed: str,
) -> None:
    score = execute(job(), Trainer(error))
    assert score is not None
    assert math.isnan(score)
    record = read_record(tmp_path / "job", FAILURE)
    assert (record["status"], record["type"]) == ("failed", kind)
    assert "in __call__" in record["traceback"]
    assert record["config_hash"] == result_hash(resolve_config(job()))
    output = capsys.readouterr().err
    assert printed in output
    assert "Traceback" not in output
    assert not (tmp_path / "job" / "result.json").exists()
    assert run_folders(tmp_path) == [tmp_path / "job"]
    assert execute(job(), Trainer()) == 0.25
    assert not (tmp_path / "job" / "failure.json").exists()


def test_a_job_whose_settings_do_not_resolve_fails_alone(
    job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    assert math.isnan(execute(job("seed=???"), Trainer()) or 0)
    record = read_record(tmp_path / "job", FAILURE)
    assert (record["error"], record["config_hash"]) == ("seed has no value: give seed=VALUE", None)


def test_a_single_run_records_its_failure_and_ends_as_before(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        execute(job(sweep=False), Trainer(FileNotFoundError("gone")))
    assert "\nError: gone\n" in capsys.readouterr().err
    assert read_record(tmp_path / "job", FAILURE)["error"] == "gone"
    with pytest.raises(ZeroDivisionError):
        execute(job(sweep=False), Trainer(ZeroDivisionError()))
    # A single run in the same folder is always trained again.
    again = Trainer(0.5)
    assert execute(job(sweep=False), again) == 0.5
    assert execute(job(sweep=False), again) == 0.5
    assert len(again.seen) == 2


def test_only_the_first_process_writes(
    job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert execute(job(), Trainer()) == 0.25
    assert not (tmp_path / "job" / "result.json").exists()


def test_an_error_in_another_process_ends_that_process(
    job: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first process waits for it; Hydra turns all but SystemExit into exit code 0."""
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit) as stopped:
        execute(job(), Trainer(ValueError("no room")))
    assert stopped.value.code == 1
    assert "ValueError: no room" in capsys.readouterr().err
    assert not (tmp_path / "job" / "failure.json").exists()


def test_a_study_without_m_is_refused_unless_one_job_is_chosen(
    job: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        execute(job("experiment=ablation_losses", sweep=False), Trainer())
    assert "add -m to run all of its jobs" in capsys.readouterr().err
    assert execute(job("experiment=ablation_losses", "ablation=both", sweep=False), Trainer()) == 0.25


def test_one_job_of_a_study_needs_all_its_settings_but_the_seed(
    job: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    for given in ("seed=3", "+extra=1"):
        with pytest.raises(SystemExit):
            execute(job("experiment=ablation", given, sweep=False), trainer)
        assert "by giving ablation (of both,prediction_only," in capsys.readouterr().err
    some = ("losses.distillation.giou_weight=1", "teaching.shares.features=0.1")
    with pytest.raises(SystemExit):
        execute(job("experiment=ablation_loss_weights", *some, sweep=False), trainer)
    assert "by giving losses.distillation.softmax_kl_weight (of auto,12.0)" in capsys.readouterr().err
    assert trainer.seen == []
    assert execute(job("experiment=ablation", "ablation=both", sweep=False), trainer) == 0.25
    assert execute(job("experiment=seeds", "seed=3", sweep=False), trainer) == 0.25


def _old_results(folder: Path) -> None:
    """Create outputs of an earlier run."""
    (folder / "logs" / "version_0").mkdir(parents=True)
    for name in ("depth_curve.json", "weights.safetensors", "compatibility.png", "notes.txt"):
        (folder / name).touch()


def test_a_single_run_that_dies_leaves_no_results_of_the_former_one(
    job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """Otherwise its settings would be next to the curve and the weights of other settings."""
    folder = tmp_path / "job"
    execute(job(sweep=False), Trainer())
    _old_results(folder)
    with pytest.raises(SystemExit):
        execute(job("recipe.lr=0.5", sweep=False), Trainer(KeyboardInterrupt()))
    left = {path.name for path in folder.iterdir()} - {"uncommitted.patch"}
    assert left == {"config.yaml", "provenance.json", "notes.txt", "failure.json"}


def _lightning_exit() -> SystemExit:
    """Lightning's exit after Ctrl-C, raised while the interrupt was handled."""
    error = SystemExit(1)
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("outcome", "code", "cause", "sweep"),
    [
        pytest.param(KeyboardInterrupt(), 130, "Ctrl-C", True, id="Ctrl-C in a sweep"),
        pytest.param(_lightning_exit(), 130, "Ctrl-C", False, id="Ctrl-C in Lightning"),
        pytest.param(Terminated(), 143, "SIGTERM", False, id="SIGTERM"),
        pytest.param(KeyboardInterrupt(), 130, "Ctrl-C", False, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(Terminated(), 143, "SIGTERM", True, id="SIGTERM in a sweep", marks=pytest.mark.slow),
    ],
)
def test_an_interruption_is_recorded_explained_and_resumed(
    job: Callable[..., DictConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outcome: BaseException,
    code: int,
    cause: str,
    sweep: bool,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        execute(job(sweep=sweep), Trainer(outcome))
    assert stopped.value.code == code
    record = read_record(tmp_path / "job", FAILURE)
    assert record["status"] == "interrupted"
    assert record["error"].startswith(f"stopped by {cause}; resume with the same command and hydra.")
    printed = capsys.readouterr().out
    assert f"stopped   by {cause} before its first checkpoint; resume with the same command" in printed
    assert read_job(tmp_path / "job", datetime.now(UTC)).state == "interrupted"
    assert execute(job(sweep=sweep), Trainer(0.5)) == 0.5
    assert not (tmp_path / "job" / FAILURE).exists()


def test_other_exits_keep_their_code(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        execute(job(sweep=False), Trainer(SystemExit(7)))
    assert stopped.value.code == 7
    assert not (tmp_path / "job" / FAILURE).exists()


def test_a_single_run_that_resumes_keeps_its_folder(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    folder = tmp_path / "job"
    execute(job(sweep=False), Trainer())
    _old_results(folder)
    checkpoint = _checkpoint(folder)
    assert execute(job(f"ckpt_path={checkpoint}", sweep=False), Trainer(0.5)) == 0.5
    assert (folder / "depth_curve.json").exists()
    assert checkpoint.exists()
    (part,) = json.loads((folder / "provenance.json").read_text())["history"]
    assert set(part) >= {"time", "commit", "changed", "versions"}


def test_a_single_run_clears_only_folders_of_runs(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    _old_results(tmp_path / "job")
    execute(job(sweep=False), Trainer())
    assert (tmp_path / "job" / "logs" / "version_0").is_dir()


def test_initial_weights_are_not_removed(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(job(sweep=False), Trainer())
    weights = tmp_path / "job" / "weights.safetensors"
    weights.touch()
    with pytest.raises(SystemExit):
        execute(job(f"weights={weights}", sweep=False), Trainer())
    assert "give another hydra.run.dir" in capsys.readouterr().err
    assert weights.exists()


def test_a_sweeper_gets_the_score_of_the_best_checkpoint(job: Callable[..., DictConfig]) -> None:
    """Weights of the best validation are exported, not those of the last one."""

    def train(cfg: DictConfig) -> tuple[dict[str, float], Any]:
        return {"val/score": 0.25, "val/best_score": 0.5}, None

    assert execute(job(), train) == 0.5
    # And again from the record.
    assert execute(job(), train) == 0.5


@pytest.mark.parametrize("mark", ["weights.safetensors", "result.json", "checkpoints/last.ckpt"])
def test_other_commands_do_not_write_into_a_training_run(tmp_path: Path, mark: str) -> None:
    HydraConfig.instance().cfg = None
    (tmp_path / "run" / mark).parent.mkdir(parents=True)
    (tmp_path / "run" / mark).touch()
    with pytest.raises(RunFolderError, match=r"holds a training run.*output=.*run/analysis"):
        check_output(tmp_path / "run")
    check_output(tmp_path / "run" / "analysis")
    check_output(tmp_path)


# -- ckpt_path=auto --------------------------------------------------------------------------------------


def _stopped(job: Callable[..., DictConfig], *names: str) -> list[Path]:
    """Create checkpoints of an interrupted run, the first one of 10 steps, the next of 20."""
    with pytest.raises(Interrupted):
        execute(job(sweep=False), Trainer(KeyboardInterrupt()))
    folder = Path(str(job(sweep=False).paths.output_dir)) / "checkpoints"
    folder.mkdir()
    for number, name in enumerate(names):
        torch.save({"state_dict": {}, "detector": {}, "global_step": 10 + 10 * number}, folder / name)
    return [folder / name for name in names]


def test_auto_resumes_from_the_newest_checkpoint_and_keeps_the_folder(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = _stopped(job, "best.ckpt", "last.ckpt")
    _old_results(tmp_path / "job")
    (tmp_path / "job" / "checkpoints" / ".last.12.partial.ckpt").touch()
    second = Trainer(0.5)
    assert execute(job("ckpt_path=auto", sweep=False), second) == 0.5
    assert second.seen[0].ckpt_path == str(last)
    assert f"resumes   from {last}, after step 20\n" in capsys.readouterr().out
    assert (tmp_path / "job" / "depth_curve.json").exists()
    assert sorted((tmp_path / "job" / "checkpoints").iterdir()) == [best, last]
    assert len(json.loads((tmp_path / "job" / "provenance.json").read_text())["history"]) == 1


def test_auto_starts_a_new_run_without_a_checkpoint(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(job(sweep=False), Trainer())
    _old_results(tmp_path / "job")
    second = Trainer(0.5)
    assert execute(job("ckpt_path=auto", sweep=False), second) == 0.5
    assert second.seen[0].ckpt_path is None
    assert f"starts    a new run: no checkpoint in {tmp_path / 'job'}\n" in capsys.readouterr().out
    # As for any new run, no results of the former one remain.
    assert not (tmp_path / "job" / "depth_curve.json").exists()


def test_auto_names_damaged_checkpoints_and_removes_none(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = _stopped(job, "best.ckpt", "last.ckpt")
    last.write_bytes(b"cut")
    second = Trainer(0.5)
    assert execute(job("ckpt_path=auto", sweep=False), second) == 0.5
    assert second.seen[0].ckpt_path == str(best)
    assert f"ignored   {last}: not a complete checkpoint" in capsys.readouterr().out
    best.write_bytes(b"")
    with pytest.raises(SystemExit):
        execute(job("ckpt_path=auto", sweep=False), second)
    assert "Delete them to start a new run" in " ".join(capsys.readouterr().err.split())
    assert len(second.seen) == 1
    assert best.exists()


@pytest.mark.parametrize("inner", [".", pytest.param("checkpoints", marks=pytest.mark.slow)])
def test_a_folder_stands_for_its_newest_checkpoint(
    job: Callable[..., DictConfig], tmp_path: Path, inner: str
) -> None:
    *_, last = _stopped(job, "best.ckpt", "last.ckpt")
    (tmp_path / "job").rename(tmp_path / "other")
    second = Trainer(0.5)
    assert execute(job(f"ckpt_path={tmp_path / 'other' / inner}", sweep=False), second) == 0.5
    assert Path(second.seen[0].ckpt_path).resolve() == tmp_path / "other" / "checkpoints" / last.name


def test_a_folder_without_checkpoints_is_refused(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        execute(job(f"ckpt_path={tmp_path}", sweep=False), Trainer())
    assert f"ckpt_path={tmp_path}: no checkpoint in this folder" in capsys.readouterr().err


def test_auto_in_a_sweep_starts_or_resumes_as_the_sweep_does(
    job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    first = Trainer(KeyboardInterrupt())
    with pytest.raises(Interrupted):
        execute(job("ckpt_path=auto"), first)
    assert first.seen[0].ckpt_path is None
    checkpoint = _checkpoint(tmp_path / "job")
    second = Trainer()
    assert execute(job("ckpt_path=auto"), second) == 0.25
    assert second.seen[0].ckpt_path == str(checkpoint)


@pytest.mark.parametrize("sweep", [True, False], ids=["sweep", "single"])
def test_the_end_by_sigterm_is_printed_in_one_line(
    job: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str], sweep: bool
) -> None:
    def train(cfg: DictConfig) -> tuple[dict[str, float], Any]:
        _checkpoint(tmp_path / "job")
        raise Terminated

    with pytest.raises(SystemExit) as stopped:
        execute(job("hydra.sweep.dir=study", sweep=sweep), train)
    assert stopped.value.code == 143
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("stopped")]
    saved = f"after step 0, {tmp_path / 'job' / 'checkpoints' / 'last.ckpt'} is saved; resume with the same"
    again = "hydra.sweep.dir=study" if sweep else f"hydra.run.dir={tmp_path / 'job'} and ckpt_path=auto"
    assert line == f"stopped   by SIGTERM {saved} command and {again}"
    assert not (tmp_path / "job" / "result.json").exists()
