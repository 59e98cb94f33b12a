"""Run folders as training leaves them, read for comparison; nothing in them is ever executed."""

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

# Folders that hold a config.yaml of somebody else, or no runs and many files. Hidden ones (.hydra) go too.
_NOT_SEARCHED = frozenset({"wandb", "checkpoints", "logs", "pictures", "lightning_logs"})


class ReportError(ValueError):
    """Folders that no report can be made of; the message says what to give instead."""


@dataclass(frozen=True)
class Run:
    """One run with a depth curve.

    Attributes:
        folder: Absolute path.
        name: Short and unique within one report, from the folder.
        config: What ``config.yaml`` holds.
        provenance: What ``provenance.json`` holds; empty where it is missing or damaged.
        result: What ``result.json`` holds; empty where the run did not write it.
        curve: Accuracy and cost by depth.
        summary: The curve in a few figures.
        log: By column of ``metrics.csv``, the logs of a run that went on merged.
        compatibility: Features of full and of shallower depths compared; None where it was not measured.
        gallery: Detections at several depths on the same images; None where there are none.
        notes: What a reader should know, e.g. that the run went on from a checkpoint.
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
        """Seed of the run; None where neither file says so."""
        seed = self.config.get("seed", self.provenance.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def distilled_levels(self) -> frozenset[str] | None:
        """Levels of the deeper pass that taught the shallower one; None: not recorded.

        The objective states them, see :attr:`anydepth.detector.Objective.distilled_levels`.
        """
        levels = self.provenance.get("distilled_levels")
        if not isinstance(levels, list) or not all(isinstance(level, str) for level in levels):
            return None
        return frozenset(levels)


@dataclass(frozen=True)
class UnusableRun:
    """A run folder without a curve that can be shown.

    Attributes:
        folder: Absolute path.
        reason: Why not: it failed (with its message), was interrupted, drew no curve, or a file is damaged.
    """

    folder: Path
    reason: str


def find_runs(folders: Sequence[str | Path]) -> tuple[list[Run], list[UnusableRun]]:
    """Read the run folders at and below some folders, each once, in the natural order of their paths.

    A run folder holds ``config.yaml``. Hidden folders, logs, checkpoints, pictures and those of Weights &
    Biases are not searched; links are followed, in circles only once.

    Args:
        folders: Run folders, or folders of runs at any depth.

    Returns:
        Runs with a depth curve, and run folders without one that can be read.

    Raises:
        ReportError: No folder is given, one is missing, or one holds no run.
    """
    if not folders:
        raise ReportError("no folder is given: name run folders or folders of runs, e.g. outputs/train")
    found: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            kind = "is a file" if folder.is_file() else "does not exist"
            raise ReportError(f"{folder}: {kind}; give a run folder or a folder of runs")
        below = set(_run_folders(folder.resolve()))
        if not below:
            raise ReportError(
                f"{folder}: holds no run. A run folder, as anydepth-train leaves it, holds {CONFIG_FILE} and "
                f"{CURVE_FILE}; looked for {CONFIG_FILE} in it and in all folders below it"
            )
        found |= below
    names = _names(sorted(found, key=_natural))
    read = [_read_run(folder, name) for folder, name in names.items()]
    runs = [run for run in read if isinstance(run, Run)]
    return runs, [run for run in read if isinstance(run, UnusableRun)]


# -- where runs are --------------------------------------------------------------------------------------


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


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Sorts 2 before 10."""
    return [
        [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
        for name in path.parts
    ]


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Paths below what all folders have in common; a folder that holds all others keeps its own name."""
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
        if other := _other_command(folder, config):
            return UnusableRun(folder, f"is no training run, but of {other}")
        if not (folder / CURVE_FILE).is_file():
            return UnusableRun(folder, _why_no_curve(config, result, failure))
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
        notes=(*_story(config, provenance, result, failure), *notes, *log_notes),
    )


def _other_command(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Which other command left a folder; None: it holds a curve, or it is of training."""
    if (folder / CURVE_FILE).is_file() or "losses" in config:
        return None
    if (folder / "analysis.json").is_file() or "chunk" in config:
        return "anydepth-analyze"
    if "source" in config:
        return "anydepth-predict"
    return "anydepth-evaluate, without a depth curve" if "weights" in config else None


def _why_no_curve(config: Mapping[str, Any], result: Mapping[str, Any], failure: Mapping[str, Any]) -> str:
    if failure:
        return f"failed: {failure.get('error', 'its failure.json holds no message')}"
    settings = config.get("curve")
    if isinstance(settings, Mapping) and not settings.get("depths"):
        return "has no depth curve, as its configuration asks for none (curve.depths=null)"
    if result:
        return f"finished, but {CURVE_FILE} is missing: restore it, or run it again"
    return (
        f"was interrupted, is still running, or is half written: neither {CURVE_FILE} nor result.json nor "
        "failure.json is there"
    )


def _story(
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    result: Mapping[str, Any],
    failure: Mapping[str, Any],
) -> Iterator[str]:
    """What the run's files say about how it came about."""
    if failure:
        yield f"failed after its curve was drawn: {failure.get('error', 'without a message')}"
    elif not result:
        yield "holds no result.json: written by an earlier version or by another command, or interrupted"
    if config.get("ckpt_path"):
        yield f"went on from the checkpoint {config['ckpt_path']}"
    git = provenance.get("git")
    if isinstance(git, Mapping) and git.get("changed"):
        yield "trained by code with uncommitted changes"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        # Plain containers, interpolations as text: neither objects nor the environment get in.
        config = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path.name} is damaged: {_short(error)}") from error
    if not isinstance(config, dict):
        raise ReportError(f"{path.name} is damaged: it holds no settings")
    return {str(key): value for key, value in config.items()}


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object of a JSON file; {} where it is missing, and with a note where it is damaged."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        notes.append(f"{path.name} is damaged: it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} is damaged: {_short(error)}")
    return {}


def _read_curve(path: Path) -> tuple[DepthCurve, CurveSummary]:
    try:
        curve = DepthCurve.from_json(path.read_text(encoding="utf-8"))
        _check_curve(curve)
        return curve, summarize(curve)
    except (OSError, EvaluationError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ReportError(f"{path.name} is damaged: {_short(error)}") from error


def _check_curve(curve: DepthCurve) -> None:
    depths = [row.depth for row in curve.rows]
    if not depths:
        raise EvaluationError("it has no depth")
    if len(set(depths)) < len(depths):
        raise EvaluationError(f"a depth is there twice: {depths}")
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
        notes.append(f"{path.name} is damaged: {_short(error)}")
        return None


def _read_gallery(folder: Path, notes: list[str]) -> Gallery | None:
    if not (folder / "pictures" / GALLERY_FILE).is_file():
        return None
    try:
        gallery = read_gallery(folder / "pictures")
    except GalleryError as error:
        notes.append(f"pictures/{GALLERY_FILE} is damaged: {_short(error)}")
        return None
    depths = {depth.depth for depth in gallery.depths}
    whole = tuple(image for image in gallery.images if image.path.is_file() and depths <= image.found.keys())
    if len(whole) < len(gallery.images):
        missing = len(gallery.images) - len(whole)
        notes.append(f"pictures: {missing} of {len(gallery.images)} images are missing or lack a depth")
    return replace(gallery, images=whole) if whole else None


def _short(error: Exception) -> str:
    """The message on one line, without an endless tail."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
