"""OpenVINO."""

from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np
import openvino
from numpy.typing import NDArray

from anydepth.deploy.runtime.engines.base import (
    OUTPUTS,
    EngineError,
    EngineOptions,
    Session,
    check_inputs,
    check_outputs,
)
from anydepth.utils.messages import join_few

_DEVICES: Final = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}


class OpenVinoSession(Session):
    """A graph in OpenVINO; each pass has a request of its own, because one request serves one thread."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(
        self, images: NDArray[np.float32], number: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the graph on images [B, 3, H, W], at the depth of a number if it has several."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        # Copied: the request's own memory holds the next pass.
        outputs = request.infer([images] if number is None else [images, np.array(number, np.int64)])
        boxes, scores = (np.array(outputs[name]) for name in OUTPUTS)
        self._idle.put(request)
        return boxes, scores


def open_session(graph: Path, options: EngineOptions, *, several_depths: bool = False) -> OpenVinoSession:
    """Open a graph, of one depth or of several.

    Raises:
        EngineError: An unknown device, or a graph that cannot be opened.
    """
    check_device(options.device)
    settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.precision == "fp32":
        # By default it computes in bfloat16 where the processor has it, which finds other boxes.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    try:
        core = openvino.Core()
        model = core.read_model(graph)
        compiled = core.compile_model(model, _DEVICES[options.device], settings)
    except Exception as error:
        # It refuses weights outside the folder of the graph, where links lead, as in a cache of downloads.
        links = [path.name for path in graph.parent.iterdir() if path.is_symlink()]
        remedy = f". {join_few(links)} are links: copy the bundle with `cp -rL`" if links else ""
        raise EngineError(f"{graph}: OpenVINO cannot open the graph: {error}{remedy}") from error
    check_outputs([output.get_any_name() for output in compiled.outputs], graph)
    check_inputs([one.get_any_name() for one in compiled.inputs], graph, several_depths=several_depths)
    return OpenVinoSession(compiled)


def check_device(device: str) -> None:
    """Check that a device can be used.

    Raises:
        EngineError: It is unknown.
    """
    if device not in _DEVICES:
        raise EngineError(f"got device={device!r}, expected {', '.join(_DEVICES)} for openvino")
