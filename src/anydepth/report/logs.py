"""What a run logged while it trained: metrics.csv of Lightning's CSVLogger, also where a run went on."""

import csv
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_POINTS = 10_000
"""Of one metric that :func:`read_logs` keeps: more than a chart can show, little enough for many runs."""

FEWEST_POINTS = 4
"""That :func:`thin` can leave: both ends and the extremes between."""

_VERSION = re.compile(r"version_(\d+)")
_AXES = ("step", "epoch")
# Columns named in one note.
_NAMED = 3


@dataclass(frozen=True)
class Series:
    """One logged metric over training; equal lengths, ascending steps, finite values.

    Attributes:
        steps: Optimizer steps done.
        epochs: The epoch of each step; where the log names none, that of the step before (at first 0).
        values: Finite figures.
    """

    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    values: tuple[float, ...]


def read_logs(folder: str | Path) -> tuple[dict[str, Series], tuple[str, ...]]:
    """The logs ``logs/version_N/metrics.csv`` of a run folder as one, with notes on what was left out.

    A run that went on writes a further version. From its first step on, the later version replaces the
    earlier ones: what they hold beyond it was trained in vain. Empty cells are gaps; values that are not
    finite are left out, as is a last line that was half written. Of a metric of more than 10,000 points, that
    many are kept, the extremes among them.

    Args:
        folder: The run folder.

    Returns:
        Metrics by column, in alphabetical order, and notes in plain words.
    """
    merged: dict[str, _Column] = {}
    notes: list[str] = []
    paths = _versions(Path(folder) / "logs")
    for path in paths:
        try:
            log = _read(path)
        except (OSError, csv.Error, ValueError) as error:
            notes.append(f"{path.parent.name}/{path.name} is damaged and not shown: {error}")
            continue
        notes += [f"{path.parent.name}/{path.name}: {note}" for note in log.notes()]
        for column in merged.values():
            column.cut(log.first_step)
        for name, column in log.columns.items():
            merged.setdefault(name, _Column()).extend(column)
    found = {name: column.series() for name, column in sorted(merged.items())}
    return {name: thin(series, MOST_POINTS) for name, series in found.items() if series.steps}, tuple(notes)


def thin(series: Series, most: int) -> Series:
    """A series of at most ``most`` points that looks the same in a chart.

    The first and the last point stay; between them, equal runs of points give their smallest and their
    largest value, so that no spike is lost.

    Args:
        series: Any length.
        most: At least 4.

    Raises:
        ValueError: Fewer points than that.
    """
    if most < FEWEST_POINTS:
        raise ValueError(f"most={most}: a thinned series needs at least {FEWEST_POINTS} points")
    count = len(series.values)
    if count <= most:
        return series
    buckets = (most - 2) // 2
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
    """One metric while it is read: flat arrays, an eighth of the memory of tuples."""

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

    def cut(self, step: int | None) -> None:
        """Forget this step and all after it."""
        kept = [position for position, own in enumerate(self.steps) if step is None or own < step]
        for name in ("steps", "epochs", "values"):
            column: array[float] = getattr(self, name)
            setattr(self, name, array(column.typecode, (column[position] for position in kept)))

    def series(self) -> Series:
        """By ascending step; of a step that was logged twice, the later value."""
        latest = {step: position for position, step in enumerate(self.steps)}
        order = [latest[step] for step in sorted(latest)]
        return Series(
            tuple(self.steps[position] for position in order),
            tuple(self.epochs[position] for position in order),
            tuple(self.values[position] for position in order),
        )


@dataclass
class _Log:
    columns: dict[str, _Column] = field(default_factory=dict)
    first_step: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    def add(self, row: Mapping[str, str], epoch: float) -> float:
        """Keep a row; returns its epoch."""
        try:
            step = int(float(row.get("step", "")))
            named = float(row.get("epoch") or epoch)
            epoch = named if math.isfinite(named) else epoch
        except (ValueError, OverflowError):
            self.unreadable += 1
            return epoch
        self.first_step = step if self.first_step is None else min(self.first_step, step)
        for name, cell in row.items():
            if name in _AXES or not cell:
                continue
            value = _number(cell)
            if math.isfinite(value):
                self.columns.setdefault(name, _Column()).add(step, epoch, value)
            else:
                self.left_out[name] += 1
                self.first_left_out.setdefault(name, step)
        return epoch

    def notes(self) -> Iterator[str]:
        """What was left out, in words."""
        if self.unreadable:
            yield f"{self.unreadable} damaged line{'s' if self.unreadable > 1 else ''} left out"
        if self.left_out:
            named = [
                f"{count} of {name} (first at step {self.first_left_out[name]})"
                for name, count in self.left_out.most_common(_NAMED)
            ]
            further = len(self.left_out) - len(named)
            more = f" and of {further} further columns" if further else ""
            yield f"values that are not finite are left out: {', '.join(named)}{more}"


def _versions(folder: Path) -> list[Path]:
    numbered = [(_VERSION.fullmatch(path.parent.name), path) for path in folder.glob("*/metrics.csv")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _read(path: Path) -> _Log:
    log, epoch, header = _Log(), 0.0, None
    with path.open(encoding="utf-8", newline="") as file:
        for cells in csv.reader(_whole_lines(file, log)):
            # A logger that met a new column in the middle may have written a second header.
            if "step" in cells:
                header = cells
            elif header is None:
                raise ValueError("its first line names no column `step`")
            elif cells:
                epoch = log.add(_row(header, cells), epoch)
    return log


def _whole_lines(lines: Iterable[str], log: _Log) -> Iterator[str]:
    """All lines but a last one that does not end: its last number may be cut."""
    for line in lines:
        if line.endswith(("\n", "\r")):
            yield line
        else:
            log.unreadable += 1


def _row(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return dict(zip(header, cells, strict=False))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
