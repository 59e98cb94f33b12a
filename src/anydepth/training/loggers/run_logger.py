"""Weights & Biases logger with depth curves, resumed runs and an offline fallback."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger

from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.results import wandb_media
from anydepth.results.gallery import read_gallery
from anydepth.training.loggers.wandb_connection import Mode, choose_connection
from anydepth.utils.console import print_lines
from anydepth.utils.files import write_text

ID_FILE = "wandb_id.txt"
"""File in a run's folder with the run's id at Weights & Biases."""


class RunLogger(WandbLogger):
    """Logs a run to Weights & Biases: online, or offline if requested or if the server cannot be used.

    The run starts with the first logged value, in the first process only. The server is checked before that,
    within seconds; if it cannot be used, one line on the console says why and how to upload later.

    Args:
        project: Project at Weights & Biases.
        save_dir: Folder of the run; wandb writes below it, and ``provenance.json`` is read from it.
        entity: User or team; None: the default of the API key.
        name: Name of the run; None: wandb chooses one.
        group: Group of runs that belong together, e.g. those of a sweep.
        job_type: Role of the run in its group, e.g. the arm of an ablation.
        tags: Tags to filter by.
        notes: Free text.
        id: Id of the run at wandb to resume; None: a new run, or the one of ``save_dir`` if training resumes
            from a checkpoint in it.
        ckpt_path: Checkpoint that training resumes from; None: a new training.
        offline: Whether to write files only; ``WANDB_MODE=offline`` does the same.
        connect_seconds: Seconds to wait for the server's answer.
        upload_weights: Whether the weights are uploaded as an artifact; they are the only large upload.

    Raises:
        ValueError: ``connect_seconds`` is not positive.
    """

    def __init__(
        self,
        *,
        project: str,
        save_dir: str | Path,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        id: str | None = None,  # noqa: A002 wandb's own word
        ckpt_path: str | Path | None = None,
        offline: bool = False,
        connect_seconds: float = 5.0,
        upload_weights: bool = True,
    ) -> None:
        if connect_seconds <= 0:
            raise ValueError(f"connect_seconds={connect_seconds}: allowed are values above 0")
        id = id or _resume_id(Path(save_dir), ckpt_path)  # noqa: A001
        super().__init__(project=project, save_dir=save_dir, name=name, id=id)
        self.upload_weights = upload_weights
        self._asked_offline = offline
        self._connect_seconds = connect_seconds
        self._options: dict[str, Any] = {
            "project": project,
            "dir": str(save_dir),
            "entity": entity,
            "name": name,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "notes": notes,
            "id": id,
            "resume": "allow" if id else None,
        }

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return wandb's run, started on first use; a dummy in all processes but the first."""
        # Spawned processes attach to the run of their parent.
        if self._experiment is None and getattr(self, "_attach_id", None) is None:
            self._experiment = self._start_run()
        return super().experiment

    def log_results(
        self,
        *,
        weights: Path,
        alias: str,
        curve: DepthCurve | None,
        files: Sequence[Path],
        pictures: Path | None,
    ) -> None:
        """Log the results of a finished run: its curve, its pictures and its weights.

        Args:
            weights: Weight file.
            alias: Alias of the weights, ``best`` or ``last``.
            curve: Depth curve; None: the run has none.
            files: Files to upload with the weights.
            pictures: Folder of the gallery; None: there is none.
        """
        self._log_provenance()
        if curve is not None:
            wandb_media.log_curve(self.experiment, curve)
        if pictures is not None:
            wandb_media.log_gallery(self.experiment, read_gallery(pictures))
        if self.upload_weights:
            wandb_media.log_weights(self.experiment, weights, curve, files, alias=alias)

    def _start_run(self) -> Any:
        connection = choose_connection(offline=self._asked_offline, seconds=self._connect_seconds)
        mode, reason = connection.mode, connection.reason
        run = self._init(mode)
        if run is None:
            mode, reason = "offline", "the server did not accept the run"
            run = self._init(mode)
        if mode == "offline":
            _print_offline(run, reason)
        if mode != "disabled":
            write_text(Path(self._options["dir"]) / ID_FILE, f"{run.id}\n")
        wandb_media.define_axes(run)
        self._experiment = run
        self._log_provenance()
        return run

    def _init(self, mode: Mode) -> Any:
        """Start a run; return None if an online one could not be started."""
        import wandb

        if mode != "online":
            # Our own line about the offline run replaces the many that wandb prints.
            return wandb.init(mode=mode, settings=wandb.Settings(silent=True), **self._options)
        settings = wandb.Settings(quiet=True, init_timeout=2 * self._connect_seconds)
        try:
            return wandb.init(mode=mode, settings=settings, **self._options)
        except wandb.errors.Error:
            return None

    def _log_provenance(self) -> None:
        path = Path(self._options["dir"]) / "provenance.json"
        if path.is_file():
            provenance = json.loads(path.read_text(encoding="utf-8"))
            self.experiment.config.update({"provenance": provenance}, allow_val_change=True)


def log_results(loggers: Iterable[Logger], files: Mapping[str, Path], curve: DepthCurve | None) -> None:
    """Send the results of a run to every logger that takes them (Weights & Biases).

    Args:
        loggers: Loggers of the Trainer.
        files: Files of the run by description, as the entry point lists them.
        curve: Depth curve; None: there is none.
    """
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.log_results(
                weights=files["weights"],
                alias="best" if "best checkpoint" in files else "last",
                curve=curve,
                files=[path for path in files.values() if path.name == "depth_curve.json"],
                pictures=files.get("pictures"),
            )


def close_loggers(loggers: Iterable[Logger]) -> None:
    """Finish the loggers' runs, so that the next job of a sweep starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


@contextmanager
def end_runs_on_failure() -> Iterator[None]:
    """If the block raises, finish wandb's run as failed, so that the next job of a sweep starts its own."""
    try:
        yield
    except BaseException:
        run = sys.modules["wandb"].run if "wandb" in sys.modules else None
        if run is not None:
            run.finish(exit_code=1)
        raise


def _resume_id(folder: Path, ckpt_path: str | Path | None) -> str | None:
    """Return the id of the interrupted run in a folder, or None for a new run."""
    if not ckpt_path or not Path(ckpt_path).resolve().is_relative_to(folder.resolve()):
        return None
    try:
        return (folder / ID_FILE).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _print_offline(run: Any, reason: str | None) -> None:
    because = f" because {reason}" if reason else ""
    print_lines(f"{'wandb':9} offline{because}; upload later with: wandb sync {Path(run.dir).parent}")
