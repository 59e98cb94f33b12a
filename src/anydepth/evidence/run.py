"""Running the jobs of the study: several at a time, each as a process of its own.

A job is finished when its folder holds its result; the same command again runs what is missing, and an
interrupted training goes on from its last checkpoint. A job that fails is recorded in ``failure.json`` of its
folder, those that need it do not run, and the others do.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anydepth.evidence.datasets import StudyData, hydra_setting
from anydepth.evidence.detections import pack_results
from anydepth.evidence.locks import LockedError, inheritable_lock
from anydepth.evidence.plan import CONVERTED, WEIGHTS, Job, train_command
from anydepth.utils.files import write_text

FAILURE: Final = "failure.json"
LOG: Final = "log.txt"
TIMES: Final = "times.jsonl"
SCORING: Final = "scoring"
_SECONDS_TO_END: Final = 120.0
_SECONDS_BETWEEN_LOOKS: Final = 0.2


@dataclass(frozen=True)
class Machine:
    """How jobs run here; no result depends on it, up to rounding.

    Attributes:
        jobs: Jobs at a time.
        threads: Threads of each on the CPU.
        gpu: Whether they run on a GPU.
        workers: Processes of each that load images; 0 loads in the job itself.
    """

    jobs: int
    threads: int
    gpu: bool
    workers: int

    @property
    def train_settings(self) -> tuple[str, ...]:
        """Settings of ``anydepth-train``."""
        return (f"trainer={'gpu' if self.gpu else 'cpu'}", f"data.num_workers={self.workers}")

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the jobs."""
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}


@dataclass
class _Running:
    job: Job
    process: "subprocess.Popen[bytes]"
    started: float
    resumed: bool


class Runner:
    """Runs jobs until all have ended.

    Args:
        study: Folder of the study.
        jobs: Jobs in their order.
        datasets: Data sets by name.
        machine: How they run.
        report: Called with a line for the console for each event.
    """

    def __init__(
        self,
        *,
        study: Path,
        jobs: Sequence[Job],
        datasets: Mapping[str, StudyData],
        machine: Machine,
        report: Callable[[str], None],
    ) -> None:
        self.study = study
        self.jobs = jobs
        self.datasets = datasets
        self.machine = machine
        self.report = report
        self.failed: dict[str, str] = {}
        self._running: list[_Running] = []
        self._elsewhere: dict[str, None] = {}

    def run(self) -> None:
        """Run what is not finished.

        Raises:
            KeyboardInterrupt: After Ctrl-C or SIGTERM, once the running jobs have written a checkpoint.
        """
        pending = [job for job in self.jobs if not self._is_finished(job)]
        if skipped := len(self.jobs) - len(pending):
            self.report(f"finished  {skipped} of {len(self.jobs)} jobs, from before")
        with _interrupt_on_sigterm():
            try:
                while pending or self._running:
                    self._start_ready(pending)
                    if not self._running:
                        break
                    self._collect()
            finally:
                self._stop()
        for job in pending:
            self._explain(job)

    # -- starting ----------------------------------------------------------------------------------------

    def _start_ready(self, pending: list[Job]) -> None:
        """Start jobs whose needs are met, in their order, while there is room."""
        for job in list(pending):
            if len(self._running) >= self.machine.jobs:
                return
            early = job.split == "test" and self._anything_but_test(pending)
            if not early and self._needs_met(job):
                pending.remove(job)
                self._start(job)

    def _anything_but_test(self, pending: Sequence[Job]) -> bool:
        """Whether jobs that choose are not over yet: those that can still run."""
        return any(one.job.split != "test" for one in self._running) or any(
            job.split != "test" and self._needs_met(job) for job in pending
        )

    def _needs_met(self, job: Job) -> bool:
        by_name = {one.name: one for one in self.jobs}
        return all(name in by_name and self._is_finished(by_name[name]) for name in job.needs)

    def _is_finished(self, job: Job) -> bool:
        return (self.study / job.result).is_file()

    def _start(self, job: Job) -> None:
        folder = self.study / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with inheritable_lock(folder / ".lock") as descriptors:
                if self._is_finished(job):  # by another runner, since this one looked
                    return
                resumed = (folder / LOG).is_file()
                (folder / FAILURE).unlink(missing_ok=True)
                command = self._command(job)
                with (folder / LOG).open("ab") as log:
                    log.write(f"$ {' '.join(command)}\n".encode())
                    log.flush()
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=self.machine.environment,
                        # Ctrl-C goes to this process, which ends the jobs in its own way.
                        start_new_session=True,
                        pass_fds=descriptors,
                    )
        except LockedError:
            self._elsewhere[job.name] = None
            return
        self._running.append(_Running(job, process, time.monotonic(), resumed))
        self.report(f"{'continues' if resumed else 'starts':9} {job.kind:7} {job.name}")

    def _command(self, job: Job) -> list[str]:
        python, cell = [sys.executable, "-m"], self.study / job.cell.folder
        if job.kind == "train":
            settings = train_command(job, self.study, self.machine.train_settings)
            return [*python, "anydepth.train", *settings]
        if job.kind == "convert":
            # Its folder is made for this job: what a killed one left in it is replaced.
            output = self.study / job.folder / CONVERTED
            return [
                *(*python, "anydepth.commands.convert", str(cell / job.arm.name / WEIGHTS)),
                *(f"output={output}", f"detector={job.cell.detector}", "overwrite=true"),
            ]
        source = cell / job.arm.name / WEIGHTS if job.arm.is_trained else cell / "convert" / CONVERTED
        return [
            *(*python, "anydepth.evaluate", hydra_setting("weights", source.resolve()), f"split={job.split}"),
            *("depths=ladder", "results=true", "latency.repetitions=0"),
            *(f"device={'cuda' if self.machine.gpu else 'cpu'}", f"data.num_workers={self.machine.workers}"),
            *self.datasets[job.cell.dataset].settings,
            hydra_setting("output", (self.study / job.folder / SCORING).resolve()),
        ]

    # -- ending ------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Wait until at least one job has ended, and record how."""
        while not (ended := [one for one in self._running if one.process.poll() is not None]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        for one in ended:
            self._running.remove(one)
            self._record(one)

    def _record(self, one: _Running) -> None:
        job, seconds = one.job, time.monotonic() - one.started
        reason = self._finish(job, one.process.returncode)
        if reason is None:
            entry = {"job": job.name, "seconds": round(seconds, 1), "whole": not one.resumed}
            with (self.study / TIMES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self.report(f"finished  {job.kind:7} {job.name}  ({seconds / 60:.1f} min)")
        else:
            self.failed[job.name] = reason
            self.report(f"failed    {job.kind:7} {job.name}: {reason}; see {self.study / job.folder / LOG}")

    def _finish(self, job: Job, code: int) -> str | None:
        """Return why a job that has ended failed, recorded in its folder; None if it did not."""
        folder = self.study / job.folder
        if code == 0 and job.kind == "score":
            try:
                assert job.split is not None
                pack_results(folder / SCORING, folder)
            except (OSError, ValueError) as error:
                return self._fail(folder, f"{type(error).__name__}: {error}")
        if self._is_finished(job):
            (folder / FAILURE).unlink(missing_ok=True)
            return None
        return self._fail(folder, f"it ended with code {code} and without a result")

    def _fail(self, folder: Path, reason: str) -> str:
        """Record a failure unless the job did so itself; return the reason that is recorded."""
        try:
            own = json.loads((folder / FAILURE).read_text(encoding="utf-8"))["error"]
        except (OSError, KeyError, ValueError, TypeError):
            write_text(folder / FAILURE, json.dumps({"status": "failed", "error": reason}, indent=2) + "\n")
            return reason
        return str(own)

    def _stop(self) -> None:
        """End running jobs, which write a checkpoint first."""
        for one in self._running:
            one.process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        for one in self._running:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            self.report(f"stopped   {one.job.kind:7} {one.job.name}")
        self._running.clear()

    def _explain(self, job: Job) -> None:
        """Report why a job did not run."""
        missing = ", ".join(name for name in job.needs if not (self._by_name_finished(name)))
        self.report(f"not run   {job.kind:7} {job.name}: needs {missing or 'the jobs before the test'}")

    def _by_name_finished(self, name: str) -> bool:
        return any(one.name == name and self._is_finished(one) for one in self.jobs)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM within the block, so that running jobs are ended as after Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
