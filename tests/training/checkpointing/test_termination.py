"""Commands that SIGTERM ends: their processes stop together, and their runs resume to the same result."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from anydepth.training.checkpointing.read import read_checkpoint
from runs import differences, end_run, start_run

DEVICES = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
STRATEGIES = {
    "one process": (),
    "ddp": ("trainer=ddp", *DEVICES),
    "ddp_spawn": ("trainer=ddp_spawn", *DEVICES),
}
EPOCHS = "recipe.epochs=20"


def _finished(process: "subprocess.Popen[str]") -> str:
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return printed


def _assert_gone(group: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("processes of the run are left")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_runs_that_sigterm_ends_resume_to_the_same_result(
    tmp_path: Path, small_run: tuple[str, ...], strategy: str
) -> None:
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    settings = (*STRATEGIES[strategy], EPOCHS)
    _finished(start_run(tmp_path / "whole", small_run, *settings))
    # To the command alone, which has to forward it to the other processes, and to all of them at once.
    steps = []
    for whole_group in (False, True):
        more = ("ckpt_path=auto",) if steps else ()
        process = start_run(tmp_path / "ended", small_run, *settings, *more)
        time.sleep(0.3)
        printed, errors = end_run(process, whole_group=whole_group)
        assert process.returncode == 143, f"{printed}\n{errors}"
        assert printed.count("stopped   by SIGTERM") == 1
        assert "Traceback" not in errors
        _assert_gone(process.pid)
        steps.append(read_checkpoint(tmp_path / "ended" / "run" / "checkpoints" / "last.ckpt")["global_step"])
    assert 3 <= steps[0] <= steps[1] <= 60
    _finished(start_run(tmp_path / "ended", small_run, *settings, "ckpt_path=auto"))
    found, expected = (
        read_checkpoint(tmp_path / name / "run" / "checkpoints" / "last.ckpt") for name in ("ended", "whole")
    )
    assert found["global_step"] == 60
    assert differences(found, expected) == []


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_record_and_a_line(tmp_path: Path, small_run: tuple[str, ...]) -> None:
    process = start_run(tmp_path, small_run, "recipe.epochs=100000")
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert printed.count("stopped   by Ctrl-C after step ") == 1
    assert f"resume with the same command and hydra.run.dir={tmp_path / 'run'} and ckpt_path=auto" in printed
    assert "Traceback" not in errors
    record = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert record["status"] == "interrupted"
    _finished(start_run(tmp_path, small_run, "recipe.epochs=100000", "recipe.minutes=0.01", "ckpt_path=auto"))
    assert not (tmp_path / "run" / "failure.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_a_checkpoint_that_cannot_be_written_ends_all_processes(
    tmp_path: Path, small_run: tuple[str, ...], strategy: str
) -> None:
    process = start_run(tmp_path, small_run, *STRATEGIES[strategy], "recipe.epochs=100000")
    folder = tmp_path / "run" / "checkpoints"
    last = read_checkpoint(folder / "last.ckpt")["global_step"]
    # Not even root can write into a folder that is a file.
    folder.rename(tmp_path / "checkpoints")
    folder.write_text("no folder")
    _, errors = process.communicate(timeout=120)
    # Lightning kills a command whose other processes have failed before it did.
    assert process.returncode in (1, -signal.SIGKILL)
    assert "this checkpoint could not be written" in errors
    _assert_gone(process.pid)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] >= last
