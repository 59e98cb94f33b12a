"""Run folders as training leaves them, read for comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.evaluation.curve_summary import CurveSummary
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.report.gallery import Gallery
from anydepth.report.logs import Series

__all__ = ["ReportError", "Run", "Series", "UnusableRun"]


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
    # The type of module `compatibility` once that has come.
    compatibility: Any
    gallery: Gallery | None
    notes: tuple[str, ...]

    @property
    def seed(self) -> int | None:
        """Seed of the run; None where neither file says so."""
        seed = self.config.get("seed", self.provenance.get("seed"))
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class UnusableRun:
    """A run folder without a curve that can be shown.

    Attributes:
        folder: Absolute path.
        reason: Why not: it failed (with its message), was interrupted, drew no curve, or a file is damaged.
    """

    folder: Path
    reason: str
