"""One job of training: what it leaves in its folder, and in a sweep what it finds there.

A run folder ends with ``result.json`` or with ``failure.json``; one that holds neither was interrupted. A
sweep that is started again in its folder passes over finished jobs, goes on with interrupted ones and runs
the rest.
"""

import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import get_console

from anydepth.config import resolvers
from anydepth.config.compose import resolve_config
from anydepth.config.errors import explain, readable_errors
from anydepth.config.key_effects import effect_of
from anydepth.config.resolvers import is_sweep
from anydepth.distributed import is_first_process
from anydepth.runs import provenance
from anydepth.runs.identity import is_resumed, result_hash
from anydepth.training.checkpointing.newest import AUTO, Newest, newest_checkpoint
from anydepth.training.checkpointing.read import CheckpointError
from anydepth.training.checkpointing.sigterm import Terminated, ended_by_sigterm
from anydepth.utils.files import write_text
from anydepth.utils.yaml_text import load_yaml

RESULT: Final = "result.json"
FAILURE: Final = "failure.json"
REFUSAL: Final = "refused.json"
VISIT: Final = "visit.json"
SCORE = "val/score"
BEST_SCORE = "val/best_score"

# What a killed process leaves of a file that it was writing.
_PARTIAL = (".*.partial*", "checkpoints/.*.partial*")
_LEFT_BY_A_RUN = (
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
_MARKS_OF_TRAINING = ("weights.safetensors", RESULT, "checkpoints")

Train = Callable[[DictConfig], tuple[dict[str, float], Any]]
"""Trains what a configuration says; returns figures by name, and whatever else."""


class RunFolderError(ValueError):
    """A run folder that must not be written to; the message says what to do."""


def execute(cfg: DictConfig, train: Train) -> float | None:
    """Train, and record in the run folder what became of it.

    In a sweep an error is recorded and told in one line, and the next job has its turn; only an interruption
    ends the sweep. A job that its folder holds the result of is not trained again. A single run replaces what
    an earlier one left in its folder, unless it goes on from a checkpoint there.

    Args:
        cfg: Of this job.
        train: What trains it.

    Returns:
        The best validation score for the sweeper; NaN for a job that failed, None where there was no
        validation.

    Raises:
        SystemExit: Outside a sweep, after an error that the user can do something about; and after any error
            in a process of a job that is not its first one.
        Exception: Outside a sweep, a defect.
    """
    if not is_sweep():
        with readable_errors(), _explained_resume(_folder(cfg)):
            _check_single_job()
            cfg = resolve_checkpoint(cfg)
            _make_room(cfg)
            return _recorded(cfg, train)
    try:
        with _explained_resume(_folder(cfg)):
            return _run_sweep_job(cfg, train)
    except Exception as error:
        _tell(error, _folder(cfg))
        if not is_first_process():
            # The first process of the job waits for this one; Hydra would catch the error itself.
            raise SystemExit(1) from error
        return math.nan


def resolve_checkpoint(cfg: DictConfig) -> DictConfig:
    """The settings with the file that ``ckpt_path`` stands for, where it is ``auto`` or a folder.

    The console tells which file that is, and which newer ones are damaged.

    Args:
        cfg: Of a run.

    Returns:
        ``ckpt_path`` is a file, or None where ``auto`` finds no checkpoint in the run's own folder.

    Raises:
        FileNotFoundError: A folder without any checkpoint.
        CheckpointError: All checkpoints that are there are damaged. What is left of them is not cleared away
            for a fresh start without being asked.
    """
    given = cfg.get("ckpt_path")
    if not given or (given != AUTO and not Path(str(given)).is_dir()):
        return cfg
    folder = _folder(cfg) if given == AUTO else Path(str(given))
    found = newest_checkpoint(folder)
    _print_ignored(found)
    if found.path is not None:
        _say(f"goes on   from {found.path}, after step {found.step}")
    elif found.passed_over:
        raise CheckpointError(
            f"ckpt_path={given}: no checkpoint in {folder} is whole ({'; '.join(found.passed_over)}). If "
            "they are lost, delete them to begin anew"
        )
    elif given != AUTO:
        raise FileNotFoundError(f"ckpt_path={given}: no checkpoint in this folder; give the one of a run")
    else:
        _say(f"begins    as there is no checkpoint in {folder}")
    return _set_checkpoint(cfg, found.path)


def check_output(folder: str | Path) -> None:
    """Check that results other than those of training may be written to a folder.

    Raises:
        RunFolderError: It holds a training run, whose record would be replaced; or it is not the folder of
            this job of a sweep.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in _MARKS_OF_TRAINING):
        raise RunFolderError(
            f"output={folder}: this folder holds a training run, whose settings and provenance would be "
            f"replaced; give another one, e.g. output={folder / 'analysis'}"
        )
    if is_sweep() and folder.resolve() != Path(HydraConfig.get().runtime.output_dir).resolve():
        raise RunFolderError(
            f"output={folder}: all jobs of --multirun would write to this folder; give "
            f"hydra.sweep.dir={folder} instead, in which each job gets a folder of its own"
        )


def explain_restarted_sweep(strategy: str) -> str:
    """Why the jobs of a sweep cannot have several processes of this strategy, and what can be done."""
    return (
        f"a sweep (--multirun) with trainer.strategy={strategy} would start the whole sweep again in every "
        "process: take trainer.strategy=ddp_spawn, a launcher with one job per configuration "
        "(hydra/launcher=slurm), or trainer.devices=1"
    )


def best_score(metrics: Mapping[str, float]) -> float | None:
    """The validation score of the exported weights; the last one where no best checkpoint was kept."""
    return metrics.get(BEST_SCORE, metrics.get(SCORE))


def read_record(
    folder: Path, name: Literal["result.json", "failure.json", "refused.json", "visit.json"]
) -> dict[str, Any]:
    """A record of a run folder; empty where there is none, or none that can be read."""
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def run_folders(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs, by name."""
    marks = (provenance.CONFIG, RESULT, FAILURE, REFUSAL)
    return sorted(path for path in sweep.glob("*") if any((path / mark).is_file() for mark in marks))


# -- one job ---------------------------------------------------------------------------------------------


def _run_sweep_job(cfg: DictConfig, train: Train) -> float | None:
    """A job of a sweep: recognised, gone on with, or begun."""
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
        _forget(folder, FAILURE, REFUSAL)
        _say(f"skipped   {folder.name}: finished {done.get('finished', 'before')}")
        score = best_score(done.get("metrics", {}))
        return None if score is None else float(score)
    checkpoint = _checkpoint(folder, fingerprint)
    if checkpoint is None:
        _forget(folder, *_LEFT_BY_A_RUN)
        _say(f"begins    {folder.name}")
        cfg = _set_checkpoint(cfg, None) if cfg.get("ckpt_path") == AUTO else cfg
    else:
        cfg = _set_checkpoint(cfg, checkpoint)
        _say(f"goes on   {folder.name}: from its last checkpoint")
    _forget(folder, FAILURE, REFUSAL, *_PARTIAL)
    return _recorded(cfg, train)


def _make_room(cfg: DictConfig) -> None:
    """Remove what an earlier run left in the folder of a single run: curves of other weights than its own."""
    folder = _folder(cfg)
    try:
        config = resolve_config(cfg)
    except ValueError:
        # Recorded as any failure; such a run writes nothing else.
        _forget(folder, RESULT, FAILURE)
        return
    if not (folder / provenance.PROVENANCE).is_file():
        # Never a run's folder; what is in it may be the user's.
        _forget(folder, RESULT, FAILURE)
    elif is_resumed(config):
        _forget(folder, RESULT, FAILURE, *_PARTIAL)
    elif config.get("weights") and Path(config["weights"]).resolve().is_relative_to(folder.resolve()):
        raise RunFolderError(
            f"weights={config['weights']}: lies in the folder of this run, whose former results are "
            "replaced; give another hydra.run.dir"
        )
    else:
        _forget(folder, RESULT, FAILURE, *_LEFT_BY_A_RUN)


def _recorded(cfg: DictConfig, train: Train) -> float | None:
    """Train; then write the result, or the failure before it is raised again."""
    folder, started, fingerprint = _folder(cfg), time.monotonic(), None
    try:
        fingerprint = result_hash(resolve_config(cfg))
        with ended_by_sigterm():
            metrics, _ = train(cfg)
    except Exception as error:
        _write_failure(folder, error, fingerprint)
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


@contextmanager
def _explained_resume(folder: Path) -> Iterator[None]:
    """Within the block, the end by SIGTERM is told in one line: what is saved, and how to go on."""
    try:
        yield
    except Terminated:
        found = newest_checkpoint(folder)
        saved = "before its first checkpoint"
        if found.path is not None:
            saved = f"after step {found.step}, {found.path} is saved"
        again = f"hydra.run.dir={folder} and ckpt_path=auto"
        if is_sweep():
            again = f"hydra.sweep.dir={HydraConfig.get().sweep.dir}"
        _say(f"stopped   by SIGTERM {saved}; go on with the same command and {again}")
        raise


def _check_single_job() -> None:
    """Refuse a study without ``-m``, which would train one job that nobody asked for."""
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
        "another hydra.sweep.dir, or delete that folder to train it again"
    )
    _write(folder / REFUSAL, status="refused", error=str(error), config_hash=fingerprint, finished=_now())
    raise error


def _checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """The newest whole checkpoint of an interrupted run of the same settings."""
    # Other processes of the same job look while the first one clears the folder, checkpoints first: whoever
    # sees these settings written sees no checkpoint of other ones.
    if (provenance.read(folder) or {}).get("config_hash") != fingerprint:
        return None
    found = newest_checkpoint(folder)
    _print_ignored(found)
    return found.path


def _set_checkpoint(cfg: DictConfig, checkpoint: Path | None) -> DictConfig:
    cfg = cfg.copy()
    cfg.ckpt_path = None if checkpoint is None else str(checkpoint)
    return cfg


def _print_ignored(found: Newest) -> None:
    for reason in found.passed_over:
        _say(f"ignored   {reason}")


# -- records ---------------------------------------------------------------------------------------------


def _write_failure(folder: Path, error: Exception, fingerprint: str | None) -> None:
    _write(
        folder / FAILURE,
        status="failed",
        error=_message(error),
        type=type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        config_hash=fingerprint,
        finished=_now(),
    )


def _write(path: Path, **record: object) -> None:
    if is_first_process():
        write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _forget(folder: Path, *names: str) -> None:
    if not is_first_process():
        return
    for path in [path for name in names for path in folder.glob(name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _tell(error: Exception, folder: Path) -> None:
    sys.stdout.flush()
    where = "" if explain(error) else f" (a defect of the program, see {folder / FAILURE})"
    sys.stderr.write(f"\nError in {folder.name}: {_message(error)}{where}\n")


def _message(error: Exception) -> str:
    """In one line; a defect as the last line of its traceback."""
    text = str(error).strip()
    last = text.splitlines()[-1] if text else ""
    return " ".join((explain(error) or f"{type(error).__name__}: {last}".rstrip(": ")).splitlines())


def _say(line: str) -> None:
    if is_first_process():
        get_console().print(line, highlight=False, soft_wrap=True, markup=False)


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
    """What differs between two configurations, apart from what does not matter to a result."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            inner = f"{key}.{name}" if key else str(name)
            if effect_of(inner) != "nothing":
                yield from _differences(first.get(name), second.get(name), folder, inner)
    elif first != second and folder not in str(second):
        yield f"{key}: {first} there, {second} here"
