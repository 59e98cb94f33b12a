"""Looks for bytes that a boundary fails on: changes earlier ones, and keeps what reaches new lines."""

import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from boundaries import Boundary
from mutations import mutated
from watch import HostileError, Watch

import anydepth

PACKAGE = str(Path(anydepth.__file__).parent)
SECONDS_PER_CASE = 20.0
_MOST_KEPT = 2000
_MOST_TRACED = 20_000  # lines of one case; loops repeat theirs
_SLOW_S = 0.05  # of a case that is not changed any further
_LARGE = 20_000  # bytes of a case that takes long to read


@dataclass
class Findings:
    """What a search saw.

    Attributes:
        cases: How many were run.
        accepted: Of them, read without an error.
        seconds: All together.
        slowest: Seconds of the processor for the slowest case.
        lines_of_seeds: Lines of the boundary's files that its seeds reach.
        lines: That all cases reach.
        kept: Cases that reached new lines.
        failures: By kind of failure, the first case and the error.
        last: Seconds of the newest case.
    """

    cases: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    lines_of_seeds: int = 0
    lines: int = 0
    kept: int = 0
    failures: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    last: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.cases:,} cases in {self.seconds:.0f} s, {self.accepted:,} read, the others refused; "
            f"{self.lines} lines reached, by seeds {self.lines_of_seeds} ({self.kept} cases kept); slowest "
            f"{self.slowest * 1000:.0f} ms; {len(self.failures)} kinds of failure"
        )


def search(
    boundary: Boundary,
    watch: Watch,
    *,
    cases: int,
    seed: int = 0,
    trace_every: int = 8,
    tell: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Run cases; equal seeds run equal ones.

    Args:
        boundary: What they are given to.
        watch: Sees what a case does to the system.
        cases: How many, the seeds among them.
        seed: Of the random numbers.
        trace_every: Cases of which one is traced for the lines that it reaches, as that takes time.
        tell: Told how far the search is.
    """
    found, lines = Findings(), _Lines(boundary.files)
    corpus = list(boundary.seeds)
    begin = time.perf_counter()
    for number in range(cases):
        rng = random.Random(f"{seed} {number}")
        data = corpus[number] if number < len(boundary.seeds) else _case(boundary, corpus, rng)
        traced = number < len(boundary.seeds) or number % trace_every == 0
        if number < len(boundary.seeds):
            _attempt(boundary.run, data, watch, Findings(), None)  # Imports what readers import late.
        new = _attempt(boundary.run, data, watch, found, lines if traced else None)
        if number == len(boundary.seeds) - 1:
            found.lines_of_seeds = len(lines.seen)
        quick = found.last < _SLOW_S and len(data) < _LARGE
        if new and quick and len(corpus) < _MOST_KEPT and number >= len(boundary.seeds):
            corpus.append(data)
            found.kept += 1
        if number % 10_000 == 9_999:
            found.seconds, found.lines = time.perf_counter() - begin, len(lines.seen)
            tell(str(found))
    found.seconds, found.lines = time.perf_counter() - begin, len(lines.seen)
    return found


def _case(boundary: Boundary, corpus: list[bytes], rng: random.Random) -> bytes:
    choice = rng.random()
    if choice < 0.4:
        return boundary.invent(rng)
    if choice < 0.45:
        return boundary.seeds[rng.randrange(len(boundary.seeds))][:1] + rng.randbytes(
            rng.choice((0, 3, 40, 3000))
        )
    if choice < 0.55:
        return mutated(boundary.invent(rng), rng.choice(corpus), rng, boundary.words)
    chosen = rng.choice(corpus)
    for _ in range(4):
        if len(chosen) > _LARGE:
            chosen = rng.choice(corpus)
    return mutated(chosen, rng.choice(corpus), rng, boundary.words)


def _attempt(
    run: Callable[[bytes], bool], data: bytes, watch: Watch, found: Findings, lines: "_Lines | None"
) -> bool:
    """Run one case and note what came of it; whether it reached new lines."""
    found.cases += 1
    before = time.process_time()
    known = len(lines.seen) if lines is not None else 0
    try:
        with warnings.catch_warnings(), watch.case(SECONDS_PER_CASE):
            warnings.simplefilter("ignore")
            if lines is None:
                found.accepted += run(data)
            else:
                with lines:
                    found.accepted += run(data)
    except (Exception, HostileError) as error:
        found.failures.setdefault(_kind(error), (data, f"{type(error).__name__}: {error}"[:500]))
    found.last = time.process_time() - before
    found.slowest = max(found.slowest, found.last)
    return lines is not None and len(lines.seen) > known


def _kind(error: BaseException) -> str:
    """Equal for errors of one type from one line of this package (or of whatever raised it)."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    ours = [place for place in places if place[0].startswith(PACKAGE)]
    name, line = (ours or places)[-1]
    return f"{type(error).__name__} at {Path(name).name}:{line}"


class _Lines:
    """Lines of some files of the package that were reached while the block ran."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._files = files
        self._wanted: dict[str, bool] = {}
        self._left = 0

    def __enter__(self) -> None:
        self._left = _MOST_TRACED
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self._wanted:
            inside = name.startswith(PACKAGE) and any(part in name[len(PACKAGE) :] for part in self._files)
            self._wanted[name] = inside
        return self._line if self._wanted[name] else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        self._left -= 1
        if self._left <= 0:
            sys.settrace(None)
        return self._line
