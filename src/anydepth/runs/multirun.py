"""Jobs of a multirun of a command other than training: an outcome of each, and a table after the last."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anydepth.config import resolvers
from anydepth.config.errors import readable_errors
from anydepth.config.resolvers import is_sweep
from anydepth.runs.failures import failure_record, print_failure
from anydepth.runs.sweep import SweepError, check_plugins
from anydepth.utils.console import print_lines, printable
from anydepth.utils.files import write_text

OUTCOME: Final = "outcome.json"

Run = Callable[[DictConfig], tuple[dict[str, float], Any]]
"""Function that runs a command; returns figures by name, and anything else."""


def run_job(cfg: DictConfig, run: Run, summarize: Callable[[Mapping[str, float]], str]) -> float | None:
    """Run a command. In a multirun, an error is recorded and printed in one line, and the next job starts.

    Args:
        cfg: Configuration of this job.
        run: Function that runs it.
        summarize: Function that puts its figures into a line for the table of a multirun.

    Returns:
        NaN for a job of a multirun that failed; else None.

    Raises:
        SystemExit: Outside a multirun, after an error that the user can fix.
        Exception: Outside a multirun, after a defect of the program.
    """
    if not is_sweep():
        with readable_errors():
            run(cfg)
        return None
    path = Path(HydraConfig.get().runtime.output_dir) / OUTCOME
    sweep = resolvers.sweep_id(cfg)
    path.unlink(missing_ok=True)
    try:
        figures, _ = run(cfg)
    except Exception as error:
        _write(path, sweep=sweep, **failure_record(error))
        print_failure(error, path)
        return math.nan
    _write(path, sweep=sweep, status="finished", summary=summarize(figures))
    return None


class MultirunSummary(Callback):
    """Hydra callback around a multirun; Hydra does not call it for single jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check that launcher and sweeper are there, before the first job.

        Raises:
            SystemExit: One of them is not installed.
        """
        try:
            check_plugins(config)
        except SweepError as error:
            # Hydra turns exceptions of callbacks into warnings.
            sys.stderr.write(f"\nError: {error}\n")
            raise SystemExit(1) from error
        resolvers.record_sweep(config)
        print_lines(f"sweep     {config.hydra.sweep.dir}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table.

        Raises:
            SystemExit: A job of this multirun failed, or none left an outcome.
        """
        outcomes = read_outcomes(Path(str(config.hydra.sweep.dir)), resolvers.sweep_id(config))
        print_outcomes(outcomes, get_console())
        # Without any outcome, a job ended before it could write one.
        if not outcomes or any(outcome["status"] != "finished" for outcome in outcomes.values()):
            raise SystemExit(1)


def summarize_ap(figures: Mapping[str, float]) -> str:
    """Return the AP of each depth in percent, from figures ``DEPTH/AP`` in [0, 1]; empty if there are none.

    Example:
        >>> summarize_ap({"full/AP": 0.318, "full/AP50": 0.5, "1/2/AP": 0.3, "minimal/AP": -1.0})
        'AP full 31.8, 1/2 30.0, minimal -'
    """
    values = {name.removesuffix("/AP"): value for name, value in figures.items() if name.endswith("/AP")}
    # -1: images without ground truth.
    shown = [f"{depth} {'-' if value < 0 else f'{100 * value:.1f}'}" for depth, value in values.items()]
    return f"AP {', '.join(shown)}" if shown else ""


def read_outcomes(folder: Path, sweep: str | None) -> dict[str, Mapping[str, Any]]:
    """Return the outcomes of one multirun by the names of its jobs' folders.

    Args:
        folder: Folder of the multirun; it may hold jobs of former ones.
        sweep: Id of the multirun.
    """
    outcomes: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.rglob(OUTCOME)):  # hydra.sweep.subdir may hold folders
        try:
            outcome = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(outcome, dict) and outcome.get("sweep") == sweep:
            outcomes[path.parent.relative_to(folder).as_posix()] = outcome
    return outcomes


def print_outcomes(outcomes: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print one line per job."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("job", "state", "result"):
        table.add_column(name, overflow="fold")
    for name, outcome in outcomes.items():
        color = "green" if outcome["status"] == "finished" else "red"
        text = str(outcome.get("summary") or outcome.get("error", ""))
        # Text and not strings: names of jobs are made of settings, whose brackets would be markup.
        job, result = (Text(printable(cell, console)) for cell in (name, text))
        table.add_row(job, Text(str(outcome["status"]), style=color), result)
    console.print(table)


def _write(path: Path, **outcome: object) -> None:
    record = {**outcome, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=2) + "\n")
