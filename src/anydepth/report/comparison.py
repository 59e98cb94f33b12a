"""Runs put side by side: which may be compared, in what they differ, and what they show."""

from dataclasses import dataclass

from anydepth.report.claims import Finding
from anydepth.report.runs import UnusableRun
from anydepth.report.settings import CurvePoint, Setting

__all__ = ["Comparison", "CurvePoint", "Finding", "Report", "Setting"]


@dataclass(frozen=True)
class Comparison:
    """Runs that may be compared: of the same data and the same classes.

    Attributes:
        title: Names data, number of validation images, classes and detectors.
        settings: At least one, in a fixed order.
        findings: What they say about the claims, per detector.
        warnings: What limits the comparison, e.g. other input sizes or a single seed.
    """

    title: str
    settings: tuple[Setting, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything that a comparison page shows.

    Attributes:
        comparisons: More than one where data or class lists differ; ``notes`` says so.
        unusable: Run folders that are not part of any comparison.
        notes: What holds for the report as a whole.
    """

    comparisons: tuple[Comparison, ...]
    unusable: tuple[UnusableRun, ...]
    notes: tuple[str, ...]
