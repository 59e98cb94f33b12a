"""The script of a SLURM job, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_train.sh"

# Notes its arguments, and ends after SIGTERM as training does, or with the code that the test gives.
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$FOLDER/srun"
echo $$ > "$FOLDER/pid"
[[ -z $CODE ]] || exit "$CODE"
trap 'sleep 0.3; exit 143' TERM
while true; do sleep 0.05; done
"""
SCANCEL = """#!/usr/bin/env bash
echo "$@" >> "$FOLDER/scancel"
kill -TERM "$(cat "$FOLDER/pid")"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$FOLDER/scontrol"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FOLDER": str(tmp_path),
        "CODE": "",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "4",
    }


def start(environment: dict[str, str], *settings: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *settings],
        env=environment,
        cwd=environment["FOLDER"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    pid = Path(environment["FOLDER"], "pid")
    while not (pid.exists() and pid.read_text()) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    return process


def test_every_process_trains_with_its_part_in_the_folder_of_the_job(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start({**environment, "CODE": "0"}, "data=coco", "data.root=/a b")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    arguments = (tmp_path / "srun").read_text().splitlines()
    assert arguments[arguments.index("-m") :] == [
        "-m",
        "anydepth.train",
        "trainer=multi_node",
        "trainer.num_nodes=2",
        "trainer.devices=4",
        "hydra.run.dir=outputs/slurm/77",
        "ckpt_path=auto",
        "data=coco",
        "data.root=/a b",
    ]
    assert not (tmp_path / "scontrol").exists()


def test_when_the_time_is_up_training_is_ended_and_the_job_queued_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start(environment)
    process.send_signal(signal.SIGUSR1)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 77\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"
    assert printed == "the time of job 77 is up: it is queued again\n"


def test_a_cancelled_job_waits_for_training_and_is_not_queued_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Pre-empted jobs are queued again by SLURM itself."""
    process = start(environment)
    process.send_signal(signal.SIGTERM)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not (tmp_path / "scontrol").exists()


def test_a_failure_is_handed_on(environment: dict[str, str], tmp_path: Path) -> None:
    process = start({**environment, "CODE": "3"})
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert not (tmp_path / "scontrol").exists()


def test_it_refuses_to_run_outside_of_a_job(environment: dict[str, str]) -> None:
    del environment["SLURM_JOB_ID"]
    process = start(environment)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "start this script with sbatch" in errors


def test_its_syntax_and_its_options_of_sbatch() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    options = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if "#SBATCH" in line]
    assert {"--requeue", "--signal=B:USR1@180", "--open-mode=append"} <= set(options)
