"""Hooks around a sweep: checks before its first job, a table and a comparison page after the last."""

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anydepth.config import resolvers
from anydepth.config.errors import explain
from anydepth.runs.job import (
    FAILURE,
    REFUSAL,
    RESULT,
    VISIT,
    best_score,
    explain_repeated_sweep,
    read_record,
    run_folders,
)
from anydepth.utils.console import print_lines, printable

State = Literal["finished", "skipped", "failed", "refused", "interrupted"]

_COLORS: dict[State, str] = {
    "finished": "green",
    "skipped": "cyan",
    "failed": "red",
    "refused": "red",
    "interrupted": "yellow",
}
# Groups whose options have the same keys, so that keys can be checked before the jobs are composed.
_SAME_KEYS = ("ablation", "depth_schedule")


class SweepError(ValueError):
    """A sweep cannot run as requested; the message says what to change."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as recorded in its folder.

    Attributes:
        name: Name of the job's folder.
        state: ``skipped``: finished before this sweep started; ``interrupted``: stopped or killed.
        score: Score that selects the best checkpoint; None without a result.
        ap_full: AP at full depth in [0, 1], from the depth curve if there is one.
        ap_minimal: The same at minimal depth.
        message: Reason of a failure.
        visited: Whether it is a job of this sweep; False for one that a former sweep left in the folder.
    """

    name: str
    state: State
    score: float | None = None
    ap_full: float | None = None
    ap_minimal: float | None = None
    message: str = ""
    visited: bool = True


class SweepSummary(Callback):
    """Hydra callback around a sweep; Hydra does not call it for single runs."""

    def __init__(self) -> None:
        self._start = datetime.now(UTC)
        self._sweep: str | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the sweep before its first job.

        Raises:
            SystemExit: A plugin is missing, the sweep is over a key that does not exist, or its jobs would
                start the sweep again.
        """
        try:
            check_plugins(config)
            check_keys(config)
            check_processes(config)
        except SweepError as error:
            # Hydra turns exceptions of callbacks into warnings.
            sys.stderr.write(f"\nError: {error}\n")
            raise SystemExit(1) from error
        resolvers.record_sweep(config)
        self._sweep = resolvers.sweep_id(config)
        self._start = datetime.now(UTC).replace(microsecond=0)
        print_lines(f"sweep     {config.hydra.sweep.dir}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write ``report.html``.

        Raises:
            SystemExit: A job of this sweep failed, or the page could not be written.
        """
        folder = Path(str(config.hydra.sweep.dir))
        jobs = [read_job(path, self._start, self._sweep) for path in run_folders(folder)]
        print_jobs(jobs, get_console())
        complete = _write_report(folder, jobs)
        if not complete or any(job.visited and job.state in ("failed", "refused") for job in jobs):
            raise SystemExit(1)


def check_plugins(config: DictConfig) -> None:
    """Check that the chosen launcher and sweeper are installed.

    Raises:
        SweepError: One of them is not.
    """
    for node in (config.hydra.launcher, config.hydra.sweeper):
        package = ".".join(node._target_.split(".")[:2])
        if importlib.util.find_spec(package) is None:
            raise SweepError(f'{node._target_} is not installed: pip install ".[sweep]" in the checkout')


def check_keys(config: DictConfig) -> None:
    """Check that the swept keys exist, which some sweepers notice only in the first job.

    Raises:
        SweepError: One does not; the message names it and similar keys.
    """
    swept = resolvers.swept_overrides(config)
    choices = config.hydra.runtime.choices
    groups = {override.key_or_group for override in swept if override.key_or_group in choices}
    if groups - set(_SAME_KEYS):
        # Each job has keys of its own; Hydra checks them when it composes the jobs.
        return
    known = set(_keys(OmegaConf.to_container(config)))
    for override in swept:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or "/" in key or key in choices or key in known:
            continue
        close = difflib.get_close_matches(key, {*known, *map(str, choices)}, n=3)
        hint = f"; similar keys: {', '.join(close)}" if close else ""
        raise SweepError(
            f"the sweep varies {key}, but detector={choices.detector} with data={choices.data} has no such "
            f"setting{hint}"
        )


def check_processes(config: DictConfig) -> None:
    """Check that no job would start further processes by running the command line, i.e. the sweep, again.

    Each job checks itself what is unknown before the jobs, such as the number of devices of ``auto``.

    Raises:
        SweepError: A job would; the message names alternatives.
    """
    swept = {override.key_or_group.partition(".")[0] for override in resolvers.swept_overrides(config)}
    # SLURM starts all processes of a job itself.
    if "trainer" in swept or config.hydra.launcher._target_.endswith("SlurmLauncher"):
        return
    devices, strategy = config.trainer.devices, str(config.trainer.strategy)
    count = len(devices) if OmegaConf.is_list(devices) else devices
    several = (isinstance(count, int) and count > 1) or config.trainer.num_nodes > 1
    if several and not any(way in strategy for way in ("spawn", "fork", "notebook")):
        raise SweepError(explain_repeated_sweep(strategy))


def read_job(folder: Path, start: datetime, sweep: str | None = None) -> Job:
    """Read the outcome of a job from its folder.

    Args:
        folder: Folder of the job.
        start: Start of this sweep; earlier results belong to skipped jobs.
        sweep: Id that this start of the sweep wrote into the folders of its jobs; None: unknown, every folder
            counts as visited.
    """
    visited = sweep is None or read_record(folder, VISIT).get("sweep") == sweep
    return replace(_read_job(folder, start), visited=visited)


def _read_job(folder: Path, start: datetime) -> Job:
    if refusal := read_record(folder, REFUSAL):
        return Job(folder.name, "refused", message=str(refusal.get("error", "")))
    if failure := read_record(folder, FAILURE):
        state: State = "interrupted" if failure.get("status") == "interrupted" else "failed"
        return Job(folder.name, state, message=str(failure.get("error", "")))
    result = read_record(folder, RESULT)
    if not result:
        return Job(folder.name, "interrupted", message="the same command resumes it")
    metrics = result.get("metrics", {})
    before = datetime.fromisoformat(result["finished"]) < start
    return Job(
        name=folder.name,
        state="skipped" if before else "finished",
        score=best_score(metrics),
        ap_full=metrics.get("curve/full/AP", metrics.get("val/full/AP")),
        ap_minimal=metrics.get("curve/minimal/AP", metrics.get("val/minimal/AP")),
    )


def print_jobs(jobs: list[Job], console: Console) -> None:
    """Print one line per job, then one paragraph per failed job with the reason."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("job", overflow="fold")
    for name in ("state", "AP full", "AP minimal"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for job in jobs:
        state = Text(job.state, style=_COLORS[job.state])
        state.append("" if job.visited else " (former sweep)", style="default")
        # Text and not a string: names of jobs are made of settings, whose brackets would be markup.
        table.add_row(
            Text(printable(job.name, console)), state, _percent(job.ap_full), _percent(job.ap_minimal)
        )
    console.print(table)
    for job in jobs:
        if job.message:
            print_lines(f"{job.name}: {job.message}", console=console)


def _write_report(folder: Path, jobs: list[Job]) -> bool:
    """Write the page that compares the curves of finished jobs; if that fails, print why and return False."""
    complete = [job.name for job in jobs if job.state in ("finished", "skipped")]
    if not any((folder / name / "depth_curve.json").is_file() for name in complete):
        # A search without curves has nothing to compare.
        return True
    try:
        # Plotly takes a second to import, and only the end of a sweep needs it.
        from anydepth.report.cli import write_report

        page = write_report([folder], folder / "report.html")
    except Exception as error:
        # Hydra would turn it into a warning with exit code 0; the runs themselves are complete.
        reason = explain(error) or f"{type(error).__name__}: {error}"
        sys.stderr.write(f"\nError: no comparison page: {reason}\n")
        return False
    print_lines(f"report    {page}")
    return True


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    """Yield all keys of plain containers, with dots, except those of Hydra itself."""
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        if prefix or name != "hydra":
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def _percent(value: float | None) -> str:
    # pycocotools returns -1 if the images hold no ground truth.
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"
