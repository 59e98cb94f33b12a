"""Simulated detectors: how long a frame of each depth takes, on a clock of their own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anydepth.deploy.control import Rung
from anydepth.detections import Detections

LATENCIES = {"minimal": 10.0, "1/4": 12.5, "1/2": 14.0, "full": 20.0}
"""Milliseconds of four depths, by ascending value."""

Noise = Callable[[int, np.random.Generator], float]
"""Function of the frame's number that returns a factor of its latency."""


def rungs(latencies: dict[str, float] | None = None, *, measured: bool = True) -> list[Rung]:
    found = latencies or LATENCIES
    return [Rung(depth, value, ms if measured else None) for value, (depth, ms) in enumerate(found.items())]


def constant(frame: int, random: np.random.Generator) -> float:
    return 1.0


def noisy(frame: int, random: np.random.Generator) -> float:
    return float(np.exp(random.normal(0, 0.1)))


def bounded(frame: int, random: np.random.Generator) -> float:
    return float(random.uniform(0.9, 1.1))


def drifting(frame: int, random: np.random.Generator) -> float:
    """Other load comes and goes: up to 20 % slower and faster over 400 frames, and noise."""
    return (1 + 0.2 * np.sin(2 * np.pi * frame / 400)) * float(np.exp(random.normal(0, 0.05)))


@dataclass
class Plant:
    """A detector whose frames take simulated time, and the clock that shows it."""

    noise: Noise = constant
    latencies: dict[str, float] = field(default_factory=lambda: dict(LATENCIES))
    seed: int = 0
    now: float = 0.0
    ran: list[str] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def predict(self, source: Any, depth: str = "full", threshold: float = 0.5) -> list[Detections]:
        spent = self.latencies[depth] * self.noise(len(self.ran), self.random)
        self.ran.append(depth)
        self.spent.append(spent)
        self.now += spent / 1000
        empty = np.zeros(0, np.float32)
        return [Detections(np.zeros((0, 4), np.float32), empty, empty.astype(np.int64))]

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
