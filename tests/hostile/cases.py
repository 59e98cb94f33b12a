"""Cases for a boundary, made of its seeds and of its own inventions; equal seeds make equal ones."""

import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from boundaries import Boundary
from mutations import mutated
from watch import HostileError, Watch

import anydepth

PACKAGE = str(Path(anydepth.__file__).parent)
SECONDS_PER_CASE = 20.0
MOST_BYTES = 1 << 16


@dataclass
class Findings:
    """What came of many cases.

    Attributes:
        accepted: How many were read without an error; the others were refused as documented, or failed.
        failures: By kind of failure, the first case and the error.
    """

    accepted: int = 0
    failures: dict[str, tuple[bytes, str]] = field(default_factory=dict)


def make_case(boundary: Boundary, rng: random.Random, former: bytes | None = None) -> bytes:
    """A case that knows the format, or changed bytes.

    Args:
        boundary: What it is for.
        rng: Decides.
        former: A case to change; None: one of the seeds.
    """
    choice = rng.random()
    if choice < 0.4:
        return boundary.invent(rng)[:MOST_BYTES]
    base = rng.choice(boundary.seeds) if former is None or choice < 0.5 else former
    if choice < 0.6:
        base = boundary.invent(rng)
    return mutated(base, rng.choice(boundary.seeds), rng, boundary.words)[:MOST_BYTES]


def attempt(boundary: Boundary, watch: Watch, data: bytes) -> bool:
    """Run a case; whether it was read.

    Raises:
        HostileError: It did what is forbidden, or took too long.
        Exception: Whatever the boundary fails with.
    """
    with warnings.catch_warnings(), watch.case(SECONDS_PER_CASE):
        warnings.simplefilter("ignore")
        return boundary.run(data)


def run_cases(boundary: Boundary, watch: Watch, *, cases: int, seed: int = 0) -> Findings:
    """Run the seeds, then as many cases as are wanted."""
    found = Findings()
    for number in range(-len(boundary.seeds), cases):
        data = (
            boundary.seeds[number] if number < 0 else make_case(boundary, random.Random(f"{seed} {number}"))
        )
        try:
            if number < 0:
                boundary.run(data)  # Imports what readers import late.
            found.accepted += attempt(boundary, watch, data)
        except (Exception, HostileError) as error:
            found.failures.setdefault(_kind(error), (data, f"{type(error).__name__}: {error}"[:500]))
    return found


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
