"""Latency that is measured when a server starts, for bundles that know none of this machine."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from anydepth.deploy.runtime.benchmark import Protocol, measure_bundle
from anydepth.deploy.runtime.bundle import Bundle, read_bundle
from anydepth.deploy.runtime.detector import depth_figures
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.measurement import Measurement

# A server should start soon; `anydepth-benchmark` measures longer, and memory, too.
_SECONDS: Final = 3.0


def measure_missing(bundle: Bundle, engine: str, options: EngineOptions) -> dict[str, Measurement]:
    """Measure the depths whose latency on this machine the bundle does not know.

    Returns:
        The measurements by the text of the depth.
    """
    missing = [row.depth for row in depth_figures(bundle, engine, options) if row.milliseconds is None]
    if not missing:
        return {}
    protocol = Protocol(bundle.input.batch or 1, seconds=_SECONDS, memory=False)
    return measure_bundle(bundle, missing, engine, options, protocol)


def read_measured_bundle(folder: Path, measured: Mapping[str, Measurement]) -> Bundle:
    """Read a bundle and add measurements to it, in memory alone.

    Args:
        folder: Folder of the bundle.
        measured: Measurements by the text of the depth.

    Raises:
        BundleError: No bundle, or one that is damaged.
    """
    bundle = read_bundle(folder)
    depths = [
        replace(entry, measurements=(*entry.measurements, measured[name]))
        if (name := str(entry.config)) in measured
        else entry
        for entry in bundle.depths
    ]
    return replace(bundle, depths=tuple(depths))
