"""Training logs of a run: metrics.csv of Lightning's CSVLogger, merged if the run was resumed."""

import csv
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anydepth.utils.messages import join_few

MAX_POINTS = 10_000
"""Points per metric that :func:`read_logs` keeps: more than a chart can show, few enough for many runs."""

MIN_POINTS = 4
"""Fewest points that :func:`thin` can keep: both ends and the extremes between them."""

_VERSION = re.compile(r"version_(\d+)")
_AXES = ("step", "epoch")
# Columns named in one note: enough for a hint, few enough to read.
_MAX_COLUMNS = 3


@dataclass(frozen=True)
class Series:
    """One logged metric over training; equal lengths, ascending steps, finite values.

    Attributes:
        steps: Numbers of optimizer steps done.
        epochs: Epoch of each step; if the log has none, that of the step before (initially 0).
        values: Finite values.
    """

    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    values: tuple[float, ...]


def read_logs(folder: str | Path) -> tuple[dict[str, Series], tuple[str, ...]]:
    """Read the logs ``logs/version_N/metrics.csv`` of a run folder as one, with notes on what was left out.

    A resumed run writes a further version. From its first step on, the later version replaces the earlier
    ones, whose later steps were lost. Empty cells are gaps; values that are not finite are left out, as is an
    incomplete last line. A metric of more than 10,000 points is thinned to that many, keeping its extremes.

    Args:
        folder: Run folder.

    Returns:
        Metrics by column, in alphabetical order, and notes in plain words.
    """
    merged: dict[str, _Column] = {}
    notes: list[str] = []
    paths = _find_versions(Path(folder) / "logs")
    for path in paths:
        try:
            log = _read_version(path)
        except (OSError, csv.Error, ValueError) as error:
            notes.append(f"{path.parent.name}/{path.name} is damaged and not shown: {error}")
            continue
        notes += [f"{path.parent.name}/{path.name}: {note}" for note in log.notes()]
        for column in merged.values():
            column.truncate(log.first_step)
        for name, column in log.columns.items():
            merged.setdefault(name, _Column()).extend(column)
    found = {name: column.series() for name, column in sorted(merged.items())}
    return {name: thin(series, MAX_POINTS) for name, series in found.items() if series.steps}, tuple(notes)


def thin(series: Series, max_points: int) -> Series:
    """Return a series of at most ``max_points`` points that looks the same in a chart.

    The first and last point are kept; between them, each of several equal buckets keeps its smallest and
    largest value, so that no spike is lost.

    Args:
        series: Series of any length.
        max_points: Maximum of points, at least 4.

    Raises:
        ValueError: ``max_points`` below 4.
    """
    if max_points < MIN_POINTS:
        raise ValueError(f"got max_points={max_points}, expected at least {MIN_POINTS}")
    count = len(series.values)
    if count <= max_points:
        return series
    buckets = (max_points - 2) // 2
    kept = {0, count - 1}
    for number in range(buckets):
        start, stop = (1 + (count - 2) * edge // buckets for edge in (number, number + 1))
        kept.add(min(range(start, stop), key=series.values.__getitem__))
        kept.add(max(range(start, stop), key=series.values.__getitem__))
    order = sorted(kept)
    return Series(
        tuple(series.steps[position] for position in order),
        tuple(series.epochs[position] for position in order),
        tuple(series.values[position] for position in order),
    )


# -- one file --------------------------------------------------------------------------------------------


class _Column:
    """One metric during reading, in flat arrays, which take an eighth of the memory of tuples."""

    def __init__(self) -> None:
        self.steps, self.epochs, self.values = array("q"), array("d"), array("d")

    def add(self, step: int, epoch: float, value: float) -> None:
        self.steps.append(step)
        self.epochs.append(epoch)
        self.values.append(value)

    def extend(self, other: "_Column") -> None:
        self.steps.extend(other.steps)
        self.epochs.extend(other.epochs)
        self.values.extend(other.values)

    def truncate(self, step: int | None) -> None:
        """Remove this step and all later ones; nothing if it is None."""
        kept = [position for position, own in enumerate(self.steps) if step is None or own < step]
        for name in ("steps", "epochs", "values"):
            column: array[float] = getattr(self, name)
            setattr(self, name, array(column.typecode, (column[position] for position in kept)))

    def series(self) -> Series:
        """Return the series by ascending step; a step that was logged twice keeps the later value."""
        latest = {step: position for position, step in enumerate(self.steps)}
        order = [latest[step] for step in sorted(latest)]
        return Series(
            tuple(self.steps[position] for position in order),
            tuple(self.epochs[position] for position in order),
            tuple(self.values[position] for position in order),
        )


@dataclass
class _Log:
    """Content of one metrics.csv during reading, with counts of what was left out."""

    columns: dict[str, _Column] = field(default_factory=dict)
    first_step: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    def add(self, row: Mapping[str, str], epoch: float) -> float:
        """Add a row and return its epoch; ``epoch`` is that of the row before."""
        try:
            step = int(float(row.get("step", "")))
            logged = float(row.get("epoch") or epoch)
            epoch = logged if math.isfinite(logged) else epoch
        except (ValueError, OverflowError):
            self.unreadable += 1
            return epoch
        self.first_step = step if self.first_step is None else min(self.first_step, step)
        for name, cell in row.items():
            if name in _AXES or not cell:
                continue
            value = _parse_number(cell)
            if math.isfinite(value):
                self.columns.setdefault(name, _Column()).add(step, epoch, value)
            else:
                self.left_out[name] += 1
                self.first_left_out.setdefault(name, step)
        return epoch

    def notes(self) -> Iterator[str]:
        """Yield notes on what was left out."""
        if self.unreadable:
            yield f"{self.unreadable} damaged line{'s' if self.unreadable > 1 else ''} left out"
        if self.left_out:
            columns = [
                f"{count} of {name} (first at step {self.first_left_out[name]})"
                for name, count in self.left_out.most_common()
            ]
            yield f"values that are not finite are left out: {join_few(columns, _MAX_COLUMNS)}"


def _find_versions(folder: Path) -> list[Path]:
    numbered = [(_VERSION.fullmatch(path.parent.name), path) for path in folder.glob("*/metrics.csv")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _read_version(path: Path) -> _Log:
    log, epoch, header = _Log(), 0.0, None
    with path.open(encoding="utf-8", newline="") as file:
        for cells in csv.reader(_complete_lines(file, log)):
            # A logger that met a new column during training may have written a second header.
            if "step" in cells:
                header = cells
            elif header is None:
                raise ValueError("its first line has no column `step`")
            elif cells:
                epoch = log.add(_to_row(header, cells), epoch)
    return log


def _complete_lines(lines: Iterable[str], log: _Log) -> Iterator[str]:
    """Yield all lines but an unterminated last one, whose last number may be truncated."""
    for line in lines:
        if line.endswith(("\n", "\r")):
            yield line
        else:
            log.unreadable += 1


def _to_row(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return dict(zip(header, cells, strict=False))


def _parse_number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
