"""One training job: records in its run folder, and in a sweep what to do with existing ones.

A run folder ends with ``result.json`` or with ``failure.json``; one that holds neither was interrupted. A
sweep that is started again in its folder skips finished jobs, resumes interrupted ones and runs the rest.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from anydepth.config import resolvers
from anydepth.config.compose import resolve_config
from anydepth.config.errors import readable_errors
from anydepth.config.key_effects import effect_of
from anydepth.config.resolvers import is_sweep
from anydepth.distributed import is_first_process
from anydepth.runs import provenance
from anydepth.runs.failures import failure_record, print_failure
from anydepth.runs.identity import is_resumed, result_hash
from anydepth.runs.interruption import (
    Interrupted,
    cause_of,
    explain_interruption,
    how_to_resume,
    recognise_interrupt,
)
from anydepth.training.checkpointing.newest import AUTO, NewestCheckpoint, find_newest_checkpoint
from anydepth.training.checkpointing.read import CheckpointError
from anydepth.training.checkpointing.sigterm import Terminated, terminate_on_sigterm
from anydepth.utils.command_line import setting
from anydepth.utils.console import print_lines
from anydepth.utils.files import write_text
from anydepth.utils.yaml_text import load_yaml

RESULT: Final = "result.json"
FAILURE: Final = "failure.json"
REFUSAL: Final = "refused.json"
VISIT: Final = "visit.json"
SCORE = "val/score"
BEST_SCORE = "val/best_score"

# Files that a killed process was writing.
_PARTIAL = (".*.partial*", "checkpoints/.*.partial*")
_RUN_OUTPUTS = (
    *_PARTIAL,
    "checkpoints",
    "logs",
    "pictures",
    "wandb",
    "wandb_id.txt",
    "compatibility.*",
    "depth_curve.*",
    "skipped_images.txt",
    "weights.safetensors",
    "uncommitted*.patch",
    provenance.PROVENANCE,
    provenance.CONFIG,
)
_TRAINING_OUTPUTS = ("weights.safetensors", RESULT, "checkpoints")

Train = Callable[[DictConfig], tuple[dict[str, float], Any]]
"""Function that trains a configuration; returns metrics by name, and anything else."""


class RunFolderError(ValueError):
    """A run folder must not be written to; the message says what to do."""


def execute(cfg: DictConfig, train: Train) -> float | None:
    """Train, and record the outcome in the run folder.

    In a sweep an error is recorded and printed in one line, and the next job starts; only an interruption
    ends the sweep. A job whose folder holds its result is not trained again. A single run replaces the
    outputs of an earlier one in its folder, unless it resumes from a checkpoint there.

    Args:
        cfg: Configuration of this job.
        train: Function that trains it.

    Returns:
        The best validation score for the sweeper; NaN for a job that failed, None without validation.

    Raises:
        SystemExit: Outside a sweep, after an error that the user can fix; after any error in a process of a
            job that is not its first one; and after SIGTERM or Ctrl-C, which ``failure.json`` records, too.
        Exception: Outside a sweep, after a defect of the program.
    """
    if not is_sweep():
        with readable_errors(), explain_interruption(_folder(cfg)):
            _check_single_job()
            cfg = resolve_checkpoint(cfg)
            _remove_former_run(cfg)
            return _train_and_record(cfg, train)
    try:
        with explain_interruption(_folder(cfg)):
            return _run_sweep_job(cfg, train)
    except Exception as error:
        print_failure(error, _folder(cfg) / FAILURE)
        if not is_first_process():
            # The first process of the job waits for this one; Hydra would catch the error itself.
            raise SystemExit(1) from error
        return math.nan


def resolve_checkpoint(cfg: DictConfig) -> DictConfig:
    """Replace a ``ckpt_path`` of ``auto`` or a folder by the newest checkpoint file.

    The console shows which file that is, and which newer ones are damaged.

    Args:
        cfg: Configuration of a run.

    Returns:
        The configuration with a file as ``ckpt_path``, or None if ``auto`` finds no checkpoint in the run's
        own folder.

    Raises:
        FileNotFoundError: A folder without any checkpoint.
        CheckpointError: All checkpoints are damaged. They are never removed for a fresh start without the
            user's consent.
    """
    given = cfg.get("ckpt_path")
    if not given or (given != AUTO and not Path(str(given)).is_dir()):
        return cfg
    folder = _folder(cfg) if given == AUTO else Path(str(given))
    found = find_newest_checkpoint(folder)
    _print_ignored(found)
    if found.path is not None:
        _print(f"resumes   from {found.path}, after step {found.step}")
    elif found.damaged:
        raise CheckpointError(
            f"ckpt_path={given}: all checkpoints in {folder} are damaged ({'; '.join(found.damaged)}). "
            "Delete them to start a new run"
        )
    elif given != AUTO:
        raise FileNotFoundError(
            f"ckpt_path={given}: no checkpoint in this folder; give the folder of a run or a checkpoint file"
        )
    else:
        _print(f"starts    a new run: no checkpoint in {folder}")
    return _set_checkpoint(cfg, found.path)


def check_output(folder: str | Path) -> None:
    """Check that results other than those of training may be written to a folder.

    Raises:
        RunFolderError: It holds a training run, whose record would be replaced; or it is not the folder of
            this job of a sweep.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in _TRAINING_OUTPUTS):
        raise RunFolderError(
            f"output={folder}: this folder holds a training run, whose settings and provenance would be "
            f"overwritten; give another one, e.g. {setting('output', folder / 'analysis')}"
        )
    if is_sweep() and folder.resolve() != Path(HydraConfig.get().runtime.output_dir).resolve():
        raise RunFolderError(
            f"output={folder}: all jobs of --multirun would write to this folder; give "
            f"{setting('hydra.sweep.dir', folder)} instead, in which each job gets a folder of its own"
        )


def explain_repeated_sweep(strategy: str) -> str:
    """Return why the jobs of a sweep cannot have several processes of this strategy, with alternatives."""
    return (
        f"a sweep (--multirun) with trainer.strategy={strategy} would start the whole sweep again in every "
        "process: use trainer.strategy=ddp_spawn, a launcher with one job per configuration "
        "(hydra/launcher=slurm), or trainer.devices=1"
    )


def best_score(metrics: Mapping[str, float]) -> float | None:
    """Return the validation score of the exported weights; the last score if no best checkpoint was kept."""
    return metrics.get(BEST_SCORE, metrics.get(SCORE))


def read_record(
    folder: Path, name: Literal["result.json", "failure.json", "refused.json", "visit.json"]
) -> dict[str, Any]:
    """Read a record of a run folder; return an empty one if it is missing or unreadable."""
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def run_folders(sweep: Path) -> list[Path]:
    """Return the folders of a sweep's jobs, sorted by name."""
    marks = (provenance.CONFIG, RESULT, FAILURE, REFUSAL)
    return sorted(path for path in sweep.glob("*") if any((path / mark).is_file() for mark in marks))


# -- one job ---------------------------------------------------------------------------------------------


def _run_sweep_job(cfg: DictConfig, train: Train) -> float | None:
    """Run a job of a sweep: skip it if finished, resume it if interrupted, or start it."""
    folder = _folder(cfg)
    if sweep := resolvers.sweep_id(cfg):
        _write(folder / VISIT, sweep=sweep, time=_now())
    try:
        fingerprint = result_hash(resolve_config(cfg))
    except Exception as error:
        _write_failure(folder, error, None)
        raise
    done = read_record(folder, RESULT)
    if done:
        _check_same(folder, done, fingerprint, cfg)
        _remove_files(folder, FAILURE, REFUSAL)
        _print(f"skipped   {folder.name}: finished {done.get('finished', 'before')}")
        score = best_score(done.get("metrics", {}))
        return None if score is None else float(score)
    checkpoint = _find_checkpoint(folder, fingerprint)
    if checkpoint is None:
        _remove_files(folder, *_RUN_OUTPUTS)
        _print(f"starts    {folder.name}")
        cfg = _set_checkpoint(cfg, None) if cfg.get("ckpt_path") == AUTO else cfg
    else:
        cfg = _set_checkpoint(cfg, checkpoint)
        _print(f"resumes   {folder.name}: from its last checkpoint")
    _remove_files(folder, FAILURE, REFUSAL, *_PARTIAL)
    return _train_and_record(cfg, train)


def _remove_former_run(cfg: DictConfig) -> None:
    """Remove the outputs of an earlier run from the folder of a single run, which describe other weights."""
    folder = _folder(cfg)
    try:
        config = resolve_config(cfg)
    except ValueError:
        # Recorded as a failure later; such a run writes nothing else.
        _remove_files(folder, RESULT, FAILURE)
        return
    if not (folder / provenance.PROVENANCE).is_file():
        # This was never a run's folder; its files may be the user's.
        _remove_files(folder, RESULT, FAILURE)
    elif is_resumed(config):
        _remove_files(folder, RESULT, FAILURE, *_PARTIAL)
    elif config.get("weights") and Path(config["weights"]).resolve().is_relative_to(folder.resolve()):
        raise RunFolderError(
            f"weights={config['weights']}: this file is in the folder of this run, whose former results are "
            "removed; give another hydra.run.dir"
        )
    else:
        _remove_files(folder, RESULT, FAILURE, *_RUN_OUTPUTS)


def _train_and_record(cfg: DictConfig, train: Train) -> float | None:
    """Train, then write the result; write a failure before raising it again."""
    folder, started, fingerprint = _folder(cfg), time.monotonic(), None
    try:
        fingerprint = result_hash(resolve_config(cfg))
        with terminate_on_sigterm(), recognise_interrupt():
            metrics, _ = train(cfg)
    except Exception as error:
        _write_failure(folder, error, fingerprint)
        raise
    except (Terminated, Interrupted) as error:
        _write(
            folder / FAILURE,
            status="interrupted",
            error=f"stopped by {cause_of(error)}; resume with {how_to_resume(folder)}",
            type=type(error).__name__,
            config_hash=fingerprint,
            finished=_now(),
        )
        raise
    _write(
        folder / RESULT,
        status="finished",
        config_hash=fingerprint,
        seconds=round(time.monotonic() - started, 3),
        finished=_now(),
        metrics={name: value if math.isfinite(value) else None for name, value in metrics.items()},
    )
    return best_score(metrics)


def _check_single_job() -> None:
    """Refuse a study without ``-m``, which would train a single arbitrary job."""
    if not HydraConfig.initialized():
        return
    hydra_config = cast(DictConfig, HydraConfig.get())
    params = {str(key): str(value) for key, value in (hydra_config.sweeper.get("params") or {}).items()}
    given = {text.partition("=")[0].lstrip("+") for text in hydra_config.overrides.task}
    missing = [key for key in sorted(params) if key not in given and (key != "seed" or len(params) == 1)]
    if missing:
        choices = ", ".join(f"{key} (of {params[key]})" for key in missing)
        raise ValueError(
            f"this is a study over {', '.join(sorted(params))}: add -m to run all of its jobs, or choose "
            f"one of them by giving {choices}"
        )


def _check_same(folder: Path, done: Mapping[str, Any], fingerprint: str, cfg: DictConfig) -> None:
    if done.get("config_hash") == fingerprint:
        return
    different = list(_differences(_read_config(folder), resolve_config(cfg), str(folder)))
    error = RunFolderError(
        f"{folder} holds the result of other settings ({'; '.join(different[:5]) or 'unknown'}): give "
        "another hydra.sweep.dir, or delete that folder to train this job"
    )
    _write(folder / REFUSAL, status="refused", error=str(error), config_hash=fingerprint, finished=_now())
    raise error


def _find_checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """Return the newest undamaged checkpoint of an interrupted run of the same settings."""
    # Other processes of the same job may look while the first one clears the folder. It removes checkpoints
    # first, so a process that reads these settings finds no checkpoint of others.
    if (provenance.read(folder) or {}).get("config_hash") != fingerprint:
        return None
    found = find_newest_checkpoint(folder)
    _print_ignored(found)
    return found.path


def _set_checkpoint(cfg: DictConfig, checkpoint: Path | None) -> DictConfig:
    cfg = cfg.copy()
    cfg.ckpt_path = None if checkpoint is None else str(checkpoint)
    return cfg


def _print_ignored(found: NewestCheckpoint) -> None:
    for reason in found.damaged:
        _print(f"ignored   {reason}")


# -- records ---------------------------------------------------------------------------------------------


def _write_failure(folder: Path, error: Exception, fingerprint: str | None) -> None:
    _write(
        folder / FAILURE,
        **failure_record(error),
        config_hash=fingerprint,
        finished=_now(),
    )


def _write(path: Path, **record: object) -> None:
    if is_first_process():
        write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _remove_files(folder: Path, *names: str) -> None:
    if not is_first_process():
        return
    for path in [path for name in names for path in folder.glob(name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _print(line: str) -> None:
    if is_first_process():
        print_lines(line)


def _folder(cfg: DictConfig) -> Path:
    return Path(str(cfg.paths.output_dir))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        found = load_yaml((folder / provenance.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _differences(first: Any, second: Any, folder: str, key: str = "") -> Iterator[str]:
    """Yield the differences between two configurations that affect a result."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            inner = f"{key}.{name}" if key else str(name)
            if effect_of(inner) != "nothing":
                yield from _differences(first.get(name), second.get(name), folder, inner)
    elif first != second and folder not in str(second):
        yield f"{key}: {first} in the folder, {second} in this job"
