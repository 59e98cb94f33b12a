"""Inference engines by name, imported when one is used."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions, Session
from anydepth.measurement import Conditions, machine_name

ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {"onnxruntime": "onnxruntime", "openvino": "openvino", "aotinductor": "torch"}
)
"""Package that an engine needs, by its name; there is an extra of this package with the name of each package
but torch."""

_READERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "torch": ("aotinductor",)}
)


def open_session(
    engine: str,
    graph: Path,
    options: EngineOptions,
    *,
    several_depths: bool = False,
    selects: bool = False,
    features: bool = False,
) -> Session:
    """Open a graph in an engine.

    Args:
        engine: One of :data:`ENGINES`.
        graph: A file of a bundle; its weights lie beside it.
        options: Threads and device.
        several_depths: Whether the graph has several depths, and an input that chooses among them.
        selects: Whether the graph selects detections, and has an input for their lowest score.
        features: Whether the graph returns feature maps, too.

    Raises:
        EngineError: An unknown engine, one that is not installed, or a graph that it cannot open.
    """
    session: Session = check_engine(engine).open_session(
        graph, options, several_depths=several_depths, selects=selects, features=features
    )
    return session


def check_engine(engine: str) -> Any:
    """Return the module of an engine.

    Raises:
        EngineError: An unknown engine, or one that is not installed.
    """
    if engine not in ENGINES:
        raise EngineError(f"got engine={engine!r}, expected {' or '.join(ENGINES)}")
    try:
        return import_module(f"anydepth.deploy.runtime.engines.{engine}_engine")
    except ImportError as error:
        raise EngineError(
            f"engine={engine} needs the package {ENGINES[engine]}, which cannot be imported ({error}); "
            f"install it with `pip install {ENGINES[engine]}`"
            + ("" if ENGINES[engine] == "torch" else f", or the extra `{engine}` of this package")
        ) from error


def choose_engine(engine: str, graph_format: str) -> str:
    """Return the engine that is named, or for ``auto`` the first that reads graphs of a format.

    Args:
        engine: One of :data:`ENGINES`, or ``auto``.
        graph_format: See :attr:`anydepth.deploy.runtime.bundle.Bundle.graph_format`.
    """
    return _READERS[graph_format][0] if engine == "auto" else engine


def check_graphs(engine: str, graph_format: str, precision: str) -> None:
    """Check that an engine reads graphs of a format, and computes them rightly.

    Args:
        engine: One of :data:`ENGINES`.
        graph_format: See :attr:`anydepth.deploy.runtime.bundle.Bundle.graph_format`.
        precision: ``fp32`` or ``int8``, see :attr:`anydepth.deploy.runtime.bundle.Bundle.precision`.

    Raises:
        EngineError: It does not: OpenVINO 2026.4.1 computed other scores with ONNX graphs in int8 than ONNX
            Runtime, by which AP fell from 31 to below 1.
    """
    readers = _READERS[graph_format]
    if engine not in readers:
        raise EngineError(
            f"got engine={engine} for a bundle of graph_format={graph_format}, which is read by "
            f"{' and '.join(readers)} alone; use engine={readers[0]}, or export it again with format=onnx"
        )
    if (engine, graph_format, precision) == ("openvino", "onnx", "int8"):
        raise EngineError(
            "got engine=openvino for a bundle of ONNX graphs in int8, which it computes wrongly; use "
            "engine=onnxruntime, the float bundle, or one that was quantised with format=openvino"
        )


def conditions_here(engine: str, options: EngineOptions, batch: int) -> Conditions:
    """Return the conditions of a measurement with the installed version of an engine on this machine."""
    return Conditions(
        engine,
        engine_version(engine),
        options.device,
        machine_name(),
        options.threads,
        options.precision,
        batch,
    )


@cache
def engine_version(engine: str) -> str:
    """Return the version of the package of an engine that is installed."""
    from importlib.metadata import version

    return version(ENGINES[engine])
