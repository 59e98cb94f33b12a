"""Latency, throughput and memory of depths on this machine: how they are measured, and those of a bundle."""

import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anydepth.deploy.runtime.bundle import DESCRIPTION, Bundle
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.runtime.engines import conditions_here
from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions
from anydepth.measurement import Conditions, Measurement, add_measurement
from anydepth.utils.files import write_text

_WARM_UP: Final = 3
_MIN_ROUNDS: Final = 20
# Two standard deviations of a binomial share of one half: the ranks of a 95 % confidence interval of a
# median.
_RANKS: Final = 0.98
_BUSY_LOAD: Final = 0.5


@dataclass(frozen=True)
class Protocol:
    """How latency is measured.

    One measurement is one pass of the engine over noise (no reading, resizing or selection). Depths take
    turns, so that a disturbance of the machine affects all of them alike, until the medians of all are known
    well enough or the time is over.

    Attributes:
        batch: Images of a pass.
        spread: Largest half width of the 95 % confidence interval of a median, as a share of it.
        seconds: Time after which no further round begins, once each depth has 20 passes.
        memory: Whether memory is measured, each depth in a process of its own.
    """

    batch: int = 1
    spread: float = 0.02
    seconds: float = 60.0
    memory: bool = True

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.spread < 1 or not self.seconds > 0:
            raise ValueError(
                f"got batch={self.batch}, spread={self.spread}, seconds={self.seconds}; expected a number of "
                "images from 1, a share between 0 and 1, and a time above 0"
            )


def measure_bundle(
    bundle: Bundle,
    depths: Sequence[str],
    engine: str,
    options: EngineOptions,
    protocol: Protocol,
    on_failure: Callable[[str], object] = warnings.warn,
) -> dict[str, Measurement]:
    """Measure depths of a bundle.

    Args:
        bundle: The bundle; it is not changed.
        depths: Depths of it.
        engine: Name of the engine, or ``auto``.
        options: Device, threads and precision.
        protocol: How to measure.
        on_failure: Function that gets a sentence if the memory of a depth cannot be measured.

    Returns:
        The measurements by the text of the depth.

    Raises:
        DepthError: A depth that was not exported.
        EngineError: The engine is not installed, or cannot open a graph.
    """
    detector = DeployedDetector(bundle, engine=engine, options=options)
    engine = detector.engine
    names = list(dict.fromkeys(str(bundle.depth(depth).config) for depth in depths))
    images = noise(protocol.batch, detector.input_size)
    times = time_in_turns({name: partial(detector.run, images, name) for name in names}, protocol)
    conditions = conditions_here(engine, options, protocol.batch)
    request = {"folder": str(bundle.folder), "engine": engine, "batch": protocol.batch, **asdict(options)}
    memory = measure_memory(
        "anydepth.deploy.runtime.memory", request, names if protocol.memory else (), on_failure
    )
    return {name: summarize(times[name], conditions, memory.get(name)) for name in names}


def summarize(times: Sequence[float], conditions: Conditions, memory_mb: float | None) -> Measurement:
    """Return what was measured of a depth, now.

    Args:
        times: Times of the passes in milliseconds.
        conditions: How they were measured.
        memory_mb: Memory in units of 10^6 bytes; None: not measured.
    """
    median, tail = np.percentile(times, (50, 90))
    return Measurement(
        **conditions._asdict(),
        repetitions=len(times),
        median_ms=round(float(median), 4),
        p90_ms=round(float(tail), 4),
        images_per_second=round(1000 * conditions.batch / float(median), 3),
        memory_mb=memory_mb,
        spread=round(median_spread(times), 5),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def record_measurements(bundle: Bundle, found: dict[str, Measurement]) -> None:
    """Write measurements into the bundle, see :func:`anydepth.measurement.add_measurement`.

    Raises:
        OSError: The description cannot be written; it is unchanged then.
    """
    path = bundle.folder / DESCRIPTION
    description = json.loads(path.read_text(encoding="utf-8"))
    for entry in description["depths"]:
        measured = found.get(entry["depth"])
        if measured is not None:
            former = map(Measurement.from_dict, entry["measurements"])
            entry["measurements"] = [one.to_dict() for one in add_measurement(former, measured)]
    write_text(path, json.dumps(description, indent=2, allow_nan=False) + "\n")


def disturbances() -> list[str]:
    """Return what makes measurements on this machine doubtful now, as sentences."""
    try:
        load = os.getloadavg()[0]
    except OSError:
        return []
    if load < _BUSY_LOAD:
        return []
    return [
        f"the load of this machine was {load:.1f} in the last minute ({os.cpu_count()} cores): what else "
        "runs makes times too long"
    ]


def median_spread(times: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of a median, as a share of it.

    The interval lies between two of the ordered values, so that nothing is assumed about their distribution.

    Example:
        >>> median_spread([10.0] * 50), median_spread([9.0, 10.0, 11.0])
        (0.0, 0.1)
    """
    ordered = sorted(times)
    middle, distance = (len(ordered) - 1) / 2, _RANKS * math.sqrt(len(ordered))
    low, high = max(math.floor(middle - distance), 0), min(math.ceil(middle + distance), len(ordered) - 1)
    return float((ordered[high] - ordered[low]) / 2 / np.median(ordered))


def noise(batch: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the images [B, 3, H, W] float32 in [0, 1] that passes are timed with."""
    return np.random.default_rng(0).random((batch, 3, *size), np.float32)


def time_in_turns(passes: Mapping[str, Callable[[], object]], protocol: Protocol) -> dict[str, list[float]]:
    """Return the times of passes in milliseconds, by depth; each pass is called in turn."""
    for run in passes.values():
        for _ in range(_WARM_UP):
            run()
    times: dict[str, list[float]] = {depth: [] for depth in passes}
    end, rounds = time.monotonic() + protocol.seconds, 0
    while rounds < _MIN_ROUNDS or (
        time.monotonic() < end and max(map(median_spread, times.values())) > protocol.spread
    ):
        for depth, run in passes.items():
            start = time.perf_counter()
            run()
            times[depth].append(1000 * (time.perf_counter() - start))
        rounds += 1
    return times


def measure_memory(
    module: str,
    request: Mapping[str, object],
    depths: Sequence[str],
    on_failure: Callable[[str], object] = warnings.warn,
) -> dict[str, float | None]:
    """Return the memory of processes that run one depth alone, in units of 10^6 bytes; None: not known.

    Args:
        module: Module whose ``main`` takes a request as JSON and prints the memory.
        request: What it runs, as plain values, without the depth.
        depths: Texts of the depths.
        on_failure: Function that gets a sentence for each process that fails. Its depth has no memory then:
            what else was measured took minutes, and stays right.
    """
    found: dict[str, float | None] = {}
    for depth in depths:
        try:
            found[depth] = _measure_memory(module, {**request, "depth": depth})
        except (EngineError, OSError) as error:
            on_failure(f"the memory at depth {depth} is not known, because {error}")
            found[depth] = None
    return found


def _measure_memory(module: str, request: Mapping[str, object]) -> float | None:
    command = [sys.executable, "-m", module, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    # Libraries may have printed something before.
    printed = done.stdout.splitlines()[-1:]
    if done.returncode or not printed:
        said = done.stderr.strip() or done.stdout.strip() or "it said nothing"
        raise EngineError(
            f"the process that measures it ended with exit code {done.returncode}: {said[-500:]}"
        )
    found: float | None = json.loads(printed[0])
    return found
