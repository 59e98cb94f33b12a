"""ONNX Runtime, with its providers of GPUs where they are installed."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from anydepth.deploy.runtime.engines.base import (
    DEPTH,
    THRESHOLD,
    EngineError,
    EngineOptions,
    Session,
    check_inputs,
    check_outputs,
    output_names,
)

_PROVIDERS: Final = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "coreml": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
}
# Levels of its log; warnings are about its own choices, which users cannot act on.
_ERRORS: Final = 3


class OnnxRuntimeSession(Session):
    """A graph in ONNX Runtime, whose ``run`` is safe to call from several threads."""

    def __init__(self, session: Any, *, selects: bool = False, features: bool = False) -> None:
        self._session = session
        self._outputs = output_names(selects=selects, features=features)
        self._input = session.get_inputs()[0].name

    def run(
        self, images: NDArray[np.float32], number: int | None = None, threshold: float | None = None
    ) -> tuple[NDArray[Any], ...]:
        """Run the graph on images [B, 3, H, W], see :meth:`Session.run`."""
        inputs: dict[str, object] = {self._input: images}
        if number is not None:
            inputs[DEPTH] = np.array(number, np.int64)
        if threshold is not None:
            inputs[THRESHOLD] = np.array(threshold, np.float32)
        try:
            return tuple(self._session.run(list(self._outputs), inputs))
        # Its exceptions have no common base but Exception.
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {len(images)} images: {error}") from error


def open_session(
    graph: Path,
    options: EngineOptions,
    *,
    several_depths: bool = False,
    selects: bool = False,
    features: bool = False,
) -> OnnxRuntimeSession:
    """Open a graph, see :func:`anydepth.deploy.runtime.engines.open_session`.

    Raises:
        EngineError: An unknown device, one whose provider is not installed, or a graph that cannot be opened.
    """
    providers = _providers(options.device)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS
    # Plans of the memory of a pass, which it would keep for each graph and branch: 1.4 times the memory.
    settings.enable_mem_pattern = not several_depths
    # The threads of a graph wait for work in a loop, also after a pass, unless told otherwise: another depth
    # that runs next then took up to 1.18 times as long.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    try:
        session = onnxruntime.InferenceSession(graph, settings, providers=providers)
    except Exception as error:
        raise EngineError(f"{graph}: ONNX Runtime cannot open the graph: {error}") from error
    outputs = [output.name for output in session.get_outputs()]
    check_outputs(outputs, graph, selects=selects, features=features)
    names = [one.name for one in session.get_inputs()]
    check_inputs(names, graph, several_depths=several_depths, selects=selects)
    return OnnxRuntimeSession(session, selects=selects, features=features)


def check_device(device: str) -> None:
    """Check that a device can be used.

    Raises:
        EngineError: It is unknown, or its provider is not installed.
    """
    _providers(device)


def _providers(device: str) -> list[str]:
    if device not in _PROVIDERS:
        raise EngineError(f"got device={device!r}, expected {', '.join(_PROVIDERS)} for onnxruntime")
    wanted, available = _PROVIDERS[device], onnxruntime.get_available_providers()
    if wanted[0] not in available:
        raise EngineError(
            f"device={device} needs ONNX Runtime's {wanted[0]}, but the installed package has only "
            f"{', '.join(available)}; install the build for this device (onnxruntime-gpu for CUDA and "
            "TensorRT)"
        )
    return [name for name in wanted if name in available]
