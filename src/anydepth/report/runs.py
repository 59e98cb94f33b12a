"""Reader of run folders of training; nothing in them is ever executed."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anydepth.evaluation.coco_eval import EvaluationError
from anydepth.evaluation.compatibility import Compatibility
from anydepth.evaluation.curve_summary import CurveSummary, summarize
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.report.logs import Series, read_logs
from anydepth.results.gallery import GALLERY_FILE, Gallery, GalleryError, read_gallery
from anydepth.utils.yaml_text import load_yaml

__all__ = ["ReportError", "Run", "Series", "UnusableRun", "find_runs"]

CONFIG_FILE = "config.yaml"
CURVE_FILE = "depth_curve.json"
COMPATIBILITY_FILE = "compatibility.json"

# Folders with a config.yaml of another program, or with many files but no runs. Hidden ones (.hydra) are
# skipped, too.
_NOT_SEARCHED = frozenset({"wandb", "checkpoints", "logs", "pictures", "lightning_logs"})


class ReportError(ValueError):
    """Folders from which no report can be made; the message says what to give instead."""


@dataclass(frozen=True)
class Run:
    """One run with a depth curve.

    Attributes:
        folder: Absolute path of the run folder.
        name: Short name, unique within one report, from the folder.
        config: Content of ``config.yaml``.
        provenance: Content of ``provenance.json``; empty if it is missing or damaged.
        result: Content of ``result.json``; empty if the run did not write it.
        curve: Accuracy and cost by depth.
        summary: Summary figures of the curve.
        log: Series by column of ``metrics.csv``; logs of a resumed run are merged.
        compatibility: Compatibility of features of shallower depths with full depth; None if not measured.
        gallery: Detections at several depths on the same images; None if there are none.
        notes: Notes for the reader, e.g. that the run was resumed from a checkpoint.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    result: Mapping[str, Any]
    curve: DepthCurve
    summary: CurveSummary
    log: Mapping[str, Series]
    compatibility: Compatibility | None
    gallery: Gallery | None
    notes: tuple[str, ...]

    @property
    def seed(self) -> int | None:
        """Seed of the run; None if neither file records it."""
        seed = self.config.get("seed", self.provenance.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def distilled_levels(self) -> frozenset[str] | None:
        """Levels at which the deeper pass taught the shallower one; None if not recorded.

        The objective states them: see :attr:`anydepth.detector.Objective.distilled_levels`.
        """
        levels = self.provenance.get("distilled_levels")
        if not isinstance(levels, list) or not all(isinstance(level, str) for level in levels):
            return None
        return frozenset(levels)


@dataclass(frozen=True)
class UnusableRun:
    """Run folder without a readable depth curve.

    Attributes:
        folder: Absolute path of the run folder.
        reason: Reason, e.g. that the run failed (with its message), was interrupted, or has no curve.
    """

    folder: Path
    reason: str


def find_runs(folders: Sequence[str | Path]) -> tuple[list[Run], list[UnusableRun]]:
    """Read the run folders at and below some folders, each once, in the natural order of their paths.

    A run folder holds ``config.yaml``. Hidden folders, logs, checkpoints, pictures and folders of Weights &
    Biases are not searched; links are followed, cyclic ones once.

    Args:
        folders: Run folders, or folders of runs at any depth.

    Returns:
        Runs with a depth curve, and run folders without a readable one.

    Raises:
        ReportError: No folder is given, or one is missing or holds no run.
    """
    if not folders:
        raise ReportError("got no folder; give run folders or folders of runs, e.g. outputs/train")
    found: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            kind = "is a file" if folder.is_file() else "does not exist"
            raise ReportError(f"{folder}: {kind}; give a run folder or a folder of runs")
        below = set(_run_folders(folder.resolve()))
        if not below:
            raise ReportError(
                f"{folder}: holds no run. A run folder, as written by anydepth-train, holds {CONFIG_FILE} "
                f"and {CURVE_FILE}; looked for {CONFIG_FILE} in it and in all folders below it"
            )
        found |= below
    names = _unique_names(sorted(found, key=_natural_key))
    read = [_read_run(folder, name) for folder, name in names.items()]
    runs = [run for run in read if isinstance(run, Run)]
    return runs, [run for run in read if isinstance(run, UnusableRun)]


# -- finding runs ---------------------------------------------------------------------------------------


def _run_folders(root: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for place, below, files in os.walk(root, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".") and name not in _NOT_SEARCHED]
        if CONFIG_FILE in files:
            yield real


def _natural_key(path: Path) -> list[list[tuple[int, str]]]:
    """Return a sort key that puts 2 before 10."""
    return [
        [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
        for name in path.parts
    ]


def _unique_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return names: paths below the common root; a folder that contains all others keeps its own name."""
    root = folders[0].parent if len(folders) == 1 else Path(os.path.commonpath(folders))
    names: dict[Path, str] = {}
    for folder in folders:
        name = folder.relative_to(root).as_posix() if folder != root else folder.name
        while name in names.values():
            name = f"{root.name}/{name}"
        names[folder] = name
    return names


# -- one run ---------------------------------------------------------------------------------------------


def _read_run(folder: Path, name: str) -> Run | UnusableRun:
    try:
        config = _read_config(folder / CONFIG_FILE)
        notes: list[str] = []
        provenance = _read_json(folder / "provenance.json", notes)
        result = _read_json(folder / "result.json", notes)
        failure = {} if result else _read_json(folder / "failure.json", notes)
        if other := _find_other_command(folder, config):
            return UnusableRun(folder, f"is not a training run, but was written by {other}")
        if not (folder / CURVE_FILE).is_file():
            return UnusableRun(folder, _missing_curve_reason(config, result, failure))
        curve, summary = _read_curve(folder / CURVE_FILE)
    except ReportError as error:
        return UnusableRun(folder, str(error))
    log, log_notes = read_logs(folder)
    compatibility, gallery = _read_compatibility(folder, notes), _read_gallery(folder, notes)
    return Run(
        folder=folder,
        name=name,
        config=config,
        provenance=provenance,
        result=result,
        curve=curve,
        summary=summary,
        log=log,
        compatibility=compatibility,
        gallery=gallery,
        notes=(*_history_notes(config, provenance, result, failure), *notes, *log_notes),
    )


def _find_other_command(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the other command that wrote a folder; None if it holds a curve or is of training."""
    if (folder / CURVE_FILE).is_file() or "losses" in config:
        return None
    if (folder / "analysis.json").is_file() or "chunk" in config:
        return "anydepth-analyze"
    if "source" in config:
        return "anydepth-predict"
    return "anydepth-evaluate, without a depth curve" if "weights" in config else None


def _missing_curve_reason(
    config: Mapping[str, Any], result: Mapping[str, Any], failure: Mapping[str, Any]
) -> str:
    if failure:
        return f"{_kind(failure)}: {failure.get('error', 'its failure.json holds no message')}"
    settings = config.get("curve")
    if isinstance(settings, Mapping) and not settings.get("depths"):
        return "has no depth curve, as its configuration disables it (curve.depths=null)"
    if result:
        return f"finished, but {CURVE_FILE} is missing: restore it, or repeat the run"
    return (
        f"was interrupted, is still running, or is incomplete: found neither {CURVE_FILE} nor "
        "result.json nor failure.json"
    )


def _kind(failure: Mapping[str, Any]) -> str:
    return "interrupted" if failure.get("status") == "interrupted" else "failed"


def _history_notes(
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    result: Mapping[str, Any],
    failure: Mapping[str, Any],
) -> Iterator[str]:
    """Yield notes on the history of a run: failures, resumption, uncommitted code."""
    if failure:
        message = failure.get("error", "without a message")
        yield f"{_kind(failure)} after its depth curve was written: {message}"
    elif not result:
        yield "has no result.json: interrupted, or written by an earlier version or another command"
    if config.get("ckpt_path"):
        yield f"resumed from the checkpoint {config['ckpt_path']}"
    git = provenance.get("git")
    if isinstance(git, Mapping) and git.get("changed"):
        yield "trained by code with uncommitted changes"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        # Plain containers, interpolations as text: no objects are built and no environment is read.
        config = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path.name} is damaged: {_short_message(error)}") from error
    if not isinstance(config, dict):
        raise ReportError(f"{path.name} is damaged: it is not a mapping")
    return {str(key): value for key, value in config.items()}


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return the object of a JSON file; {} if it is missing, or with a note if it is damaged."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        notes.append(f"{path.name} is damaged: it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} is damaged: {_short_message(error)}")
    return {}


def _read_curve(path: Path) -> tuple[DepthCurve, CurveSummary]:
    try:
        curve = DepthCurve.from_json(path.read_text(encoding="utf-8"))
        _check_curve(curve)
        return curve, summarize(curve)
    except (OSError, EvaluationError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ReportError(f"{path.name} is damaged: {_short_message(error)}") from error


def _check_curve(curve: DepthCurve) -> None:
    depths = [row.depth for row in curve.rows]
    if not depths:
        raise EvaluationError("it has no rows")
    if len(set(depths)) < len(depths):
        raise EvaluationError(f"it has a depth twice: {depths}")
    for row in curve.rows:
        if not math.isfinite(row.figures.get("AP", math.nan)) or not row.gflops > 0:
            raise EvaluationError(f"depth {row.depth!r} has no AP or no GFLOPs")


def _read_compatibility(folder: Path, notes: list[str]) -> Compatibility | None:
    path = folder / COMPATIBILITY_FILE
    if not path.is_file():
        return None
    try:
        return Compatibility.from_json(path.read_text(encoding="utf-8"))
    except (OSError, EvaluationError, UnicodeDecodeError, RecursionError) as error:
        notes.append(f"{path.name} is damaged: {_short_message(error)}")
        return None


def _read_gallery(folder: Path, notes: list[str]) -> Gallery | None:
    if not (folder / "pictures" / GALLERY_FILE).is_file():
        return None
    try:
        gallery = read_gallery(folder / "pictures")
    except GalleryError as error:
        notes.append(f"pictures/{GALLERY_FILE} is damaged: {_short_message(error)}")
        return None
    depths = {depth.depth for depth in gallery.depths}
    complete = tuple(
        image for image in gallery.images if image.path.is_file() and depths <= image.found.keys()
    )
    if len(complete) < len(gallery.images):
        missing = len(gallery.images) - len(complete)
        notes.append(f"pictures: {missing} of {len(gallery.images)} images are missing or lack a depth")
    return replace(gallery, images=complete) if complete else None


def _short_message(error: Exception) -> str:
    """Return the message on one line of at most 300 characters, enough for a path and a reason."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
