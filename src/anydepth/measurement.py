"""Measurements of a depth on a device, as a bundle or a file beside weights records them."""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from anydepth.utils.messages import short_repr


class Conditions(NamedTuple):
    """Conditions that comparable measurements share; see :class:`Measurement` for the values."""

    engine: str
    engine_version: str
    device: str
    machine: str
    threads: int | None
    precision: str
    batch: int

    def __str__(self) -> str:
        threads = "threads of the engine's choice" if self.threads is None else f"{self.threads} threads"
        engine = f"{self.engine} {self.engine_version}"
        return f"{engine}, {self.machine}, {self.device}, {threads}, {self.precision}, batch {self.batch}"


@dataclass(frozen=True)
class Measurement:
    """Latency, throughput and memory of one depth, and how they were measured.

    Attributes:
        engine: Name of the inference engine; ``torch`` and ``eager`` for PyTorch, see
            :mod:`anydepth.weights.figures`.
        engine_version: Version of its package.
        device: Device that the engine ran on, such as ``cpu``.
        machine: Name of the processor; with PyTorch also that of the GPU, if it ran there.
        threads: Threads of one pass; None: as many as the engine chose.
        precision: ``fp32`` or ``auto``; with PyTorch also ``bf16`` and ``fp16``.
        batch: Images of a pass.
        repetitions: Timed passes.
        median_ms: Median time of a pass in milliseconds.
        p90_ms: 90th percentile of the time of a pass.
        images_per_second: ``batch`` over the median time.
        memory_mb: Peak memory of a process that runs this depth alone, above that of one that has only
            imported the engine, in units of 10^6 bytes; None: not measured. With PyTorch on a GPU, that of
            the tensors there.
        spread: Half the width of the 95 % confidence interval of the median, as a share of it.
        date: Date of the measurement, ISO 8601.
    """

    engine: str
    engine_version: str
    device: str
    machine: str
    threads: int | None
    precision: str
    batch: int
    repetitions: int
    median_ms: float
    p90_ms: float
    images_per_second: float
    memory_mb: float | None
    spread: float
    date: str

    @property
    def conditions(self) -> Conditions:
        """Conditions that a later measurement must share to replace this one."""
        return Conditions(*(getattr(self, name) for name in Conditions._fields))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which :meth:`from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> "Measurement":
        """Read a measurement from untrusted plain values.

        Raises:
            ValueError: A value that is missing, unknown or of another type.
        """
        if not isinstance(values, Mapping) or set(values) != {field.name for field in fields(cls)}:
            raise ValueError(f"got the measurement {short_repr(values)}, expected all its values")
        for field in fields(cls):
            value, expected = values[field.name], _TYPES[field.name]
            # A bool is an int, but no number.
            if isinstance(value, bool) or not isinstance(value, expected):
                raise ValueError(
                    f"got {field.name}={short_repr(value)} of a measurement, expected "
                    f"{' or '.join(kind.__name__ for kind in expected)}"
                )
            if isinstance(value, int | float) and not 0 <= value <= _LARGEST:
                raise ValueError(
                    f"got {field.name}={short_repr(value)} of a measurement, expected 0 to {_LARGEST:g}"
                )
        return cls(**values)


def add_measurement(former: Iterable[Measurement], measured: Measurement) -> list[Measurement]:
    """Return measurements of a depth with a new one in place of those under the same conditions.

    If the new one is of time alone, it keeps the memory that was known.
    """
    former = list(former)
    before = newest(former, measured.conditions)
    if before is not None and measured.memory_mb is None:
        measured = replace(measured, memory_mb=before.memory_mb)
    return [*(one for one in former if one.conditions != measured.conditions), measured]


def newest(measured: Iterable[Measurement], conditions: Conditions) -> Measurement | None:
    """Return the last measurement under these conditions; None: there is none."""
    same = [one for one in measured if one.conditions == conditions]
    return max(same, key=lambda one: one.date, default=None)


@cache
def machine_name() -> str:
    """Return processor, architecture and number of cores: what tells kinds of machines apart, and no more."""
    return f"{_processor()}, {platform.machine()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" in facts:
        return facts["model name"]
    # On ARM, numbers in place of a name.
    numbers = [facts[key] for key in ("Model", "CPU implementer", "CPU part") if key in facts]
    return " ".join(numbers) or platform.processor() or "unknown processor"


# A day in milliseconds, a terabyte in megabytes: far above anything that is measured.
_LARGEST = 1e9
_NONE = type(None)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("engine", "engine_version", "device", "machine", "precision", "date"), (str,)),
    **dict.fromkeys(("batch", "repetitions"), (int,)),
    **dict.fromkeys(("median_ms", "p90_ms", "images_per_second", "spread"), (int, float)),
    "threads": (int, _NONE),
    "memory_mb": (int, float, _NONE),
}
