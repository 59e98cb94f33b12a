"""Latency, throughput and memory of the depths of a bundle on this machine."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from anydepth.deploy.runtime.bundle import DESCRIPTION, Bundle
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.runtime.engines import engine_version
from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions
from anydepth.deploy.runtime.measurement import Measurement, machine_name
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
    turns,
    so that a disturbance of the machine affects all of them alike, until the medians of all are known well
    enough or the time is over.

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
    bundle: Bundle, depths: Sequence[str], engine: str, options: EngineOptions, protocol: Protocol
) -> dict[str, Measurement]:
    """Measure depths of a bundle.

    Args:
        bundle: The bundle; it is not changed.
        depths: Depths of it.
        engine: Name of the engine.
        options: Device, threads and precision.
        protocol: How to measure.

    Returns:
        The measurements by the text of the depth.

    Raises:
        DepthError: A depth that was not exported.
        EngineError: The engine is not installed, or cannot open a graph.
    """
    detector = DeployedDetector(bundle, engine=engine, options=options)
    names = list(dict.fromkeys(str(bundle.depth(depth).config) for depth in depths))
    times = _time_in_turns(detector, names, protocol)
    found = {}
    for name in names:
        median, tail = np.percentile(times[name], (50, 90))
        found[name] = Measurement(
            engine=engine,
            engine_version=engine_version(engine),
            device=options.device,
            machine=machine_name(),
            threads=options.threads,
            precision=options.precision,
            batch=protocol.batch,
            repetitions=len(times[name]),
            median_ms=round(float(median), 4),
            p90_ms=round(float(tail), 4),
            images_per_second=round(1000 * protocol.batch / float(median), 3),
            memory_mb=_measure_memory(bundle, name, engine, options, protocol) if protocol.memory else None,
            spread=round(median_spread(times[name]), 5),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    return found


def record_measurements(bundle: Bundle, found: dict[str, Measurement]) -> None:
    """Write measurements into the bundle; former ones under the same conditions are replaced.

    Raises:
        OSError: The description cannot be written; it is unchanged then.
    """
    path = bundle.folder / DESCRIPTION
    description = json.loads(path.read_text(encoding="utf-8"))
    for entry in description["depths"]:
        measured = found.get(entry["depth"])
        if measured is not None:
            former = map(Measurement.from_dict, entry["measurements"])
            kept = [one for one in former if one.conditions != measured.conditions]
            entry["measurements"] = [one.to_dict() for one in (*kept, measured)]
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


def _time_in_turns(
    detector: DeployedDetector, depths: Sequence[str], protocol: Protocol
) -> dict[str, list[float]]:
    """Return the times of the passes in milliseconds, by depth."""
    images = np.random.default_rng(0).random((protocol.batch, 3, *detector.input_size), np.float32)
    for depth in depths:
        for _ in range(_WARM_UP):
            detector.run(images, depth)
    times: dict[str, list[float]] = {depth: [] for depth in depths}
    end = time.monotonic() + protocol.seconds
    while len(times[depths[0]]) < _MIN_ROUNDS or (
        time.monotonic() < end and max(map(median_spread, times.values())) > protocol.spread
    ):
        for depth in depths:
            start = time.perf_counter()
            detector.run(images, depth)
            times[depth].append(1000 * (time.perf_counter() - start))
    return times


def _measure_memory(
    bundle: Bundle, depth: str, engine: str, options: EngineOptions, protocol: Protocol
) -> float | None:
    """Return the memory of a process that runs this depth alone, in units of 10^6 bytes."""
    request = {
        "folder": str(bundle.folder),
        "depth": depth,
        "engine": engine,
        "device": options.device,
        "threads": options.threads,
        "precision": options.precision,
        "batch": protocol.batch,
    }
    command = [sys.executable, "-m", "anydepth.deploy.runtime.memory", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the process that measures memory failed: {done.stderr.strip()[-500:]}")
    found: float | None = json.loads(done.stdout)
    return found
