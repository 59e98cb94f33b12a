"""OpenVINO."""

from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np
import openvino
from numpy.typing import NDArray

from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions, Session

_DEVICES: Final = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}


class OpenVinoSession(Session):
    """A graph in OpenVINO; each pass has a request of its own, because one request serves one thread."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(self, images: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Run the graph on images [B, 3, H, W]."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        # Copied: the request's own memory holds the next pass.
        outputs = [np.array(value) for value in request.infer([images]).values()]
        self._idle.put(request)
        return outputs


def open_session(graph: Path, options: EngineOptions) -> OpenVinoSession:
    """Open a graph.

    Raises:
        EngineError: An unknown device, or a graph that cannot be opened.
    """
    if options.device not in _DEVICES:
        raise EngineError(f"got device={options.device!r}, expected {', '.join(_DEVICES)} for openvino")
    settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.precision == "fp32":
        # By default it computes in bfloat16 where the processor has it, which finds other boxes.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    try:
        core = openvino.Core()
        return OpenVinoSession(core.compile_model(core.read_model(graph), _DEVICES[options.device], settings))
    except Exception as error:
        raise EngineError(f"{graph}: OpenVINO cannot open the graph: {error}") from error
