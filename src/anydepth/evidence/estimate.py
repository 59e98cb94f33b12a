"""How long jobs take: measured in the same study where it can be, or else guessed from another machine."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from anydepth.evidence.plan import Job
from anydepth.evidence.run import TIMES, Machine

# Seconds of one step of the full network, batch 4, 256 pixels, on one thread of a server CPU at 2.5 GHz, and
# on a data-centre GPU, where starting operations takes the time.
_STEP_ON_CPU: Final = 0.5
_STEP_ON_GPU: Final = 0.1
_JOB: Final = 15.0
"""Seconds of imports, of converting and of scoring a hundred images."""


def estimate_seconds(jobs: Sequence[Job], study: Path, machine: Machine) -> Callable[[Job], float]:
    """Return a function that estimates the seconds of a job from those of jobs that have finished.

    Steps cost as many times a step of the full network as their passes do, see
    :attr:`anydepth.evidence.arms.Arm.passes`.

    Args:
        jobs: Jobs of the plan.
        study: Folder of the study.
        machine: How they run.
    """
    by_name = {job.name: job for job in jobs}
    measured: dict[tuple[str, str], list[float]] = {}
    others: list[float] = []
    for name, seconds in _read_times(study):
        job = by_name.get(name)
        if job is None:
            continue
        if job.kind == "train":
            own = measured.setdefault((job.cell.dataset, job.cell.detector), [])
            own.append(max(seconds - _JOB, 0.0) / (job.steps * job.arm.passes))
        else:
            others.append(seconds)
    guess = _STEP_ON_GPU if machine.gpu else _STEP_ON_CPU

    def estimate(job: Job) -> float:
        if job.kind != "train":
            return median(others) if others else _JOB
        own = measured.get((job.cell.dataset, job.cell.detector))
        return _JOB + job.steps * job.arm.passes * (median(own) if own else guess)

    return estimate


def _read_times(study: Path) -> list[tuple[str, float]]:
    """Return names and seconds of the jobs that ran from start to end."""
    try:
        lines = (study / TIMES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["whole"]:
                found.append((str(entry["job"]), float(entry["seconds"])))
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut off
    return found
