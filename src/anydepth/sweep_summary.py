"""What frames a sweep: checks before its first job; after the last a table and the page that compares all."""

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.console import Console
from rich.table import Table

from anydepth import runtime, sweep_names, sweeps

State = Literal["finished", "skipped", "failed", "refused", "interrupted"]

_COLORS: dict[State, str] = {
    "finished": "green",
    "skipped": "cyan",
    "failed": "red",
    "refused": "red",
    "interrupted": "yellow",
}
# Groups whose options have the same keys.
_SAME_KEYS = ("ablation", "depth_schedule", "seed")


class SweepError(ValueError):
    """A sweep that would not do what it was asked for; the message says what to change."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its folder tells.

    Attributes:
        name: Of its folder.
        state: ``skipped``: finished before this sweep started; ``interrupted``: neither result nor failure.
        score: What selects the best checkpoint; None without a result.
        ap_full: AP in percent at full depth, of the depth curve where there is one.
        ap_minimal: The same at minimal depth.
        message: Why it failed.
    """

    name: str
    state: State
    score: float | None = None
    ap_full: float | None = None
    ap_minimal: float | None = None
    message: str = ""


class SweepSummary(Callback):
    """Hydra's callback around a sweep; single runs pass it by."""

    def __init__(self) -> None:
        self._start = datetime.now(UTC)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check what can be checked before the first job.

        Raises:
            SystemExit: A plugin is missing, or the sweep is over a key that does not exist.
        """
        try:
            check_plugins(config)
            check_keys(config)
        except SweepError as error:
            # Hydra would make a warning of the error itself.
            sys.stderr.write(f"\nError: {error}\n")
            raise SystemExit(1) from error
        sweep_names.remember_sweep(config)
        self._start = datetime.now(UTC).replace(microsecond=0)
        get_console().print(f"sweep     {config.hydra.sweep.dir}", highlight=False, soft_wrap=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write ``report.html``.

        Raises:
            SystemExit: A job failed, or the page could not be written.
        """
        folder = Path(str(config.hydra.sweep.dir))
        jobs = [read_job(path, self._start) for path in sweeps.run_folders(folder)]
        print_jobs(jobs, get_console())
        complete = _write_report(folder, jobs)
        if not complete or any(job.state in ("failed", "refused") for job in jobs):
            raise SystemExit(1)


def check_plugins(config: DictConfig) -> None:
    """Check that the chosen launcher and sweeper are installed.

    Raises:
        SweepError: One of them is not.
    """
    for node in (config.hydra.launcher, config.hydra.sweeper):
        package = ".".join(node._target_.split(".")[:2])
        if importlib.util.find_spec(package) is None:
            raise SweepError(f'{node._target_} is not installed: pip install "anydepth[sweep]"')


def check_keys(config: DictConfig) -> None:
    """Check that the swept keys exist, which some sweepers would notice only in the first job.

    Raises:
        SweepError: One does not; names it and those that are spelled nearly so.
    """
    swept = sweep_names.swept_overrides(config)
    choices = config.hydra.runtime.choices
    groups = {override.key_or_group for override in swept if override.key_or_group in choices}
    if groups - set(_SAME_KEYS):
        # Each job has keys of its own; Hydra checks them as it composes the jobs.
        return
    known = set(_keys(OmegaConf.to_container(config)))
    for override in swept:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or "/" in key or key in choices or key in known:
            continue
        close = difflib.get_close_matches(key, {*known, *map(str, choices)}, n=3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise SweepError(
            f"the sweep varies {key}, but detector={choices.detector} with data={choices.data} has no such "
            f"setting{hint}"
        )


def read_job(folder: Path, start: datetime) -> Job:
    """What became of a job.

    Args:
        folder: Of the job.
        start: Of this sweep; results from before it were found, not made.
    """
    if refusal := sweeps.read_record(folder, sweeps.REFUSAL):
        return Job(folder.name, "refused", message=str(refusal.get("error", "")))
    if failure := sweeps.read_record(folder, sweeps.FAILURE):
        return Job(folder.name, "failed", message=str(failure.get("error", "")))
    result = sweeps.read_record(folder, sweeps.RESULT)
    if not result:
        return Job(folder.name, "interrupted", message="the same command goes on with it")
    metrics = result.get("metrics", {})
    before = datetime.fromisoformat(result["finished"]) < start
    return Job(
        name=folder.name,
        state="skipped" if before else "finished",
        score=metrics.get(sweeps.SCORE),
        ap_full=metrics.get("curve/full/AP", metrics.get("val/full/AP")),
        ap_minimal=metrics.get("curve/minimal/AP", metrics.get("val/minimal/AP")),
    )


def print_jobs(jobs: list[Job], console: Console) -> None:
    """Print one line per job, then why jobs failed, each in one paragraph."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("job", overflow="fold")
    for name in ("state", "AP full", "AP minimal"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for job in jobs:
        state = f"[{_COLORS[job.state]}]{job.state}[/]"
        table.add_row(job.name, state, _percent(job.ap_full), _percent(job.ap_minimal))
    console.print(table)
    for job in jobs:
        if job.message:
            console.print(f"{job.name}: {job.message}", highlight=False, soft_wrap=True, markup=False)


def _write_report(folder: Path, jobs: list[Job]) -> bool:
    """Write the page that compares the curves of finished jobs; False where that failed, which is said."""
    complete = [job.name for job in jobs if job.state in ("finished", "skipped")]
    if not any((folder / name / "depth_curve.json").is_file() for name in complete):
        # A search that asks for no curves has nothing to compare.
        return True
    try:
        # Plotly takes a second to import, and only the end of a sweep needs it.
        from anydepth.report.cli import write_report

        page = write_report([folder], folder / "report.html")
    except Exception as error:
        # Hydra would make a warning of it and forget the exit code; the runs themselves are complete.
        reason = runtime.explain(error) or f"{type(error).__name__}: {error}"
        sys.stderr.write(f"\nError: no comparison page: {reason}\n")
        return False
    get_console().print(f"report    {page}", highlight=False, soft_wrap=True)
    return True


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    """All keys of plain containers, written with dots, those of Hydra itself left out."""
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        if prefix or name != "hydra":
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def _percent(value: float | None) -> str:
    # -1, as pycocotools has it: the images hold no ground truth.
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"
