"""OpenVINO."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np
import openvino
from numpy.typing import NDArray

from anydepth.deploy.runtime.bundle import WEIGHTS
from anydepth.deploy.runtime.engines.base import (
    EngineError,
    EngineOptions,
    Session,
    check_inputs,
    check_outputs,
    output_names,
)
from anydepth.utils.messages import join_few

_DEVICES: Final = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}


@dataclass(frozen=True)
class _Compiled:
    """A compiled graph.

    Attributes:
        model: Model that OpenVINO compiled.
        batch: Images of a pass; None: any number, or as the graph says.
        branches: Whether nodes run only under a condition.
        idle: Requests that no thread uses.
    """

    model: Any
    batch: int | None
    branches: bool
    idle: SimpleQueue[Any] = field(default_factory=SimpleQueue)


class OpenVinoSession(Session):
    """A graph in OpenVINO; each pass has a request of its own, because one request serves one thread.

    A graph for any number of images is compiled for one until another number comes, which took 0.89 of the
    time (YOLO) or 0.97 (RT-DETR) and 38 to 78 MB less; then for any number, once and for all: keeping both
    would take the weights twice. A graph with branches stays compiled for one, and runs image by image, which
    takes no longer: where the batch is not known, a branch may compute something else in the first pass of a
    request, without a word (2026.4.1; findings/openvino_if_branch_reads_reused_memory.sh).
    """

    def __init__(
        self,
        graph: Path,
        device: str,
        settings: Mapping[str, object],
        *,
        several_depths: bool = False,
        selects: bool = False,
        features: bool = False,
    ) -> None:
        self._graph, self._device, self._settings = graph, device, settings
        self._outputs = output_names(selects=selects, features=features)
        self._widening = threading.Lock()
        self._compiled = self._compile(1)
        model = self._compiled.model
        outputs = [output.get_any_name() for output in model.outputs]
        check_outputs(outputs, graph, selects=selects, features=features)
        names = [one.get_any_name() for one in model.inputs]
        check_inputs(names, graph, several_depths=several_depths, selects=selects)

    def run(
        self, images: NDArray[np.float32], number: int | None = None, threshold: float | None = None
    ) -> tuple[NDArray[Any], ...]:
        """Run the graph on images [B, 3, H, W], see :meth:`Session.run`."""
        compiled = self._compiled
        if compiled.batch not in (None, len(images)):
            if compiled.branches:
                singles = (images[index : index + 1] for index in range(len(images)))
                each = [self.run(image, number, threshold) for image in singles]
                return tuple(np.concatenate(parts) for parts in zip(*each, strict=True))
            compiled = self._widen()
        try:
            request = compiled.idle.get_nowait()
        except Empty:
            request = compiled.model.create_infer_request()
        inputs: list[NDArray[Any]] = [images]
        if number is not None:
            inputs.append(np.array(number, np.int64))
        if threshold is not None:
            inputs.append(np.array(threshold, np.float32))
        try:
            outputs = request.infer(inputs)
        except Exception as error:
            raise EngineError(f"OpenVINO failed on {len(images)} images: {error}") from error
        # Copied: the request's own memory holds the next pass.
        found = tuple(np.array(outputs[name]) for name in self._outputs)
        compiled.idle.put(request)
        return found

    def _widen(self) -> _Compiled:
        with self._widening:
            # Another thread may have been first.
            if self._compiled.batch is not None:
                self._compiled = self._compile(None)
            return self._compiled

    def _compile(self, batch: int | None) -> _Compiled:
        try:
            core = _core()
            model = _read(core, self._graph)
            images = model.input(0)
            shape = images.partial_shape
            if shape[0].is_dynamic and batch is not None:
                shape[0] = batch
                model.reshape({images: shape})
            else:
                batch = None
            branches = any(node.get_type_name() == "If" for node in model.get_ops())
            return _Compiled(core.compile_model(model, self._device, self._settings), batch, branches)
        except Exception as error:
            # It refuses weights outside the folder of the graph, where links lead, as in caches of downloads.
            links = [path.name for path in self._graph.parent.iterdir() if path.is_symlink()]
            remedy = f". {join_few(links)} are links: copy the bundle with `cp -rL`" if links else ""
            raise EngineError(f"{self._graph}: OpenVINO cannot open the graph: {error}{remedy}") from error


def _read(core: Any, graph: Path) -> Any:
    """Read a graph; one of OpenVINO's own takes its weights from a file that must be named."""
    return (
        core.read_model(graph, graph.with_name(WEIGHTS)) if graph.suffix == ".xml" else core.read_model(graph)
    )


@cache
def _core() -> Any:
    """Return OpenVINO's core, of which a process has one that it keeps.

    A core gives the thread that first compiles with it another stack for signal handlers, and frees it with
    itself (2026.4.1): with a core for each graph, a process that had closed a graph ended with a segmentation
    fault at the next signal, such as that of a loader's process which ends.
    """
    return openvino.Core()


def open_session(
    graph: Path,
    options: EngineOptions,
    *,
    several_depths: bool = False,
    selects: bool = False,
    features: bool = False,
) -> OpenVinoSession:
    """Open a graph, see :func:`anydepth.deploy.runtime.engines.open_session`.

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
    return OpenVinoSession(
        graph,
        _DEVICES[options.device],
        settings,
        several_depths=several_depths,
        selects=selects,
        features=features,
    )


def check_device(device: str) -> None:
    """Check that a device can be used.

    Raises:
        EngineError: It is unknown.
    """
    if device not in _DEVICES:
        raise EngineError(f"got device={device!r}, expected {', '.join(_DEVICES)} for openvino")
