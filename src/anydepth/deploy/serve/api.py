"""The worker of the server: decodes pictures and detects in them, one pass for each depth."""

import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Annotated, Any, Final

import numpy as np
from fastapi import Depends
from litserve import LitAPI
from litserve.loops import BatchedLoop
from litserve.transport.base import MessageTransport
from numpy.typing import NDArray
from starlette.responses import JSONResponse

from anydepth.deploy.runtime.bundle import BundledDepth
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.runtime.outputs import NonFiniteOutputError
from anydepth.deploy.serve.measured import read_measured_bundle
from anydepth.deploy.serve.metrics import answer_headers
from anydepth.deploy.serve.requests import NOT_ALLOWED, Job, read_job
from anydepth.detections import Detections
from anydepth.measurement import Measurement
from anydepth.pictures.reading import ImageError, Pixels, decode_picture

PREDICT: Final = "/predict"
_SERVER_ERROR: Final = 500


@dataclass(frozen=True)
class DetectorSource:
    """How each process loads the detector; plain values, which are sent to it.

    Attributes:
        folder: Folder of the bundle.
        engine: Name of the inference engine.
        options: Device, threads and precision.
        memory_limit: Limit in MiB of the weights of open depths; None: no limit, and all depths are opened at
            the start.
        measured: Latency of depths that was measured when the server started.
    """

    folder: Path
    engine: str = "auto"
    options: EngineOptions = field(default_factory=EngineOptions)
    memory_limit: float | None = None
    measured: Mapping[str, Measurement] | None = None

    def load(self) -> "TimedDetector":
        """Load the detector; depths are opened when they are first used."""
        bundle = read_measured_bundle(self.folder, self.measured or {})
        return TimedDetector(bundle, engine=self.engine, options=self.options, memory_limit=self.memory_limit)


class TimedDetector(DeployedDetector):
    """A detector that notes how long its graphs ran, without reading, resizing and selection with numpy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last = threading.local()

    @property
    def latency_ms(self) -> float:
        """Milliseconds of the last pass in this thread."""
        return float(self._last.milliseconds)

    def _run(
        self, images: NDArray[np.float32], entry: BundledDepth, threshold: float
    ) -> tuple[NDArray[Any], ...]:
        start = time.perf_counter()
        found = super()._run(images, entry, threshold)
        self._last.milliseconds = 1000 * (time.perf_counter() - start)
        return found


@dataclass(frozen=True)
class Picture:
    """A decoded picture [H, W, 3] uint8 RGB, and what is asked of it."""

    pixels: Pixels
    depth: str
    threshold: float


@dataclass(frozen=True)
class Refusal:
    """Why a request has no detections, and the HTTP status that says so."""

    status: int
    message: str


@dataclass(frozen=True)
class Answer:
    """Detections of a picture.

    Attributes:
        found: The detections.
        size: (height, width) of the picture in pixels.
        entry: Depth that found them.
        latency_ms: Time of the network's pass.
        batch: Pictures of that pass.
    """

    found: Detections
    size: tuple[int, int]
    entry: BundledDepth
    latency_ms: float
    batch: int


class _Ahead(Queue[Any]):
    """A queue whose first item was taken already."""

    def __init__(self, first: object, behind: "Queue[Any]") -> None:
        super().__init__()
        self._behind = behind
        self.put(first)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block=False) if self.qsize() else self._behind.get(block, timeout)


class WaitingLoop(BatchedLoop):
    """LitServe's loop of batches, which sleeps until a request comes.

    The original asks its queue again and again: an idle server kept a core busy (LitServe 0.2.19).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Serve in a worker. Ctrl-C reaches it, too, but ends the server, which ends its workers."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().__call__(*args, **kwargs)

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: "Queue[Any]", transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """Wait for a request, and return it with those that wait behind it."""
        try:
            first = request_queue.get(timeout=1.0)
        except Empty:
            return [], []
        return super().get_batch_requests(lit_api, _Ahead(first, request_queue), transport)


class DetectionApi(LitAPI):
    """Detects in the pictures of requests; those of one depth that wait together run as one batch.

    Args:
        source: How a worker loads the detector.
        max_batch: Most pictures of a pass.
        wait_ms: How long a request waits for others, in milliseconds.
    """

    def __init__(self, source: DetectorSource, *, max_batch: int = 8, wait_ms: float = 0.0) -> None:
        # LitServe's loops have a constructor without annotations.
        loop = WaitingLoop()  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            # It thinks that passes of one picture were a mistake.
            warnings.filterwarnings("ignore", ".*the max_batch_size parameter was not set")
            super().__init__(
                max_batch_size=max_batch, batch_timeout=wait_ms / 1000, api_path=PREDICT, loop=loop
            )
        self._source = source
        self._detector: TimedDetector | None = None

    def setup(self, device: str) -> None:
        """Load the detector in a worker and run its depths, so that no request waits for what that begins.

        Args:
            device: Device that LitServe chose, which says nothing: the engine's own is used.
        """
        self._detector = self._source.load()
        if self._source.memory_limit is None:
            fixed = self._detector.bundle.input.batch
            # OpenVINO compiles a graph once more, for any number, at the first pass of several images.
            batches = (fixed,) if fixed else (1,) if self.max_batch_size == 1 else (1, 2)
            for batch in batches:
                images = np.zeros((batch, 3, *self._detector.input_size), np.float32)
                for depth in self._detector.depths:
                    self._detector.run(images, depth)

    # The annotation is what FastAPI runs in the process that listens: bad requests never reach a worker.
    def decode_request(self, request: Annotated[Job, Depends(read_job)], **_: object) -> Picture | Refusal:
        """Decode the picture of a request."""
        try:
            pixels = decode_picture(request.data, "the image")
        # An exception would end the whole batch.
        except ImageError as error:
            return Refusal(NOT_ALLOWED, str(error))
        return Picture(pixels, request.depth, request.threshold)

    def batch(self, inputs: list[Picture | Refusal]) -> list[Picture | Refusal]:
        """Return the requests as they are: pictures differ in size and depth."""
        return inputs

    def predict(self, x: Sequence[Picture | Refusal], **_: object) -> list[Answer | Refusal]:
        """Detect in pictures, one pass for each depth among them."""
        answers: dict[int, Answer | Refusal] = {}
        by_depth: dict[str, list[tuple[int, Picture]]] = {}
        for index, one in enumerate(x):
            if isinstance(one, Refusal):
                answers[index] = one
            else:
                by_depth.setdefault(one.depth, []).append((index, one))
        for depth, group in by_depth.items():
            found = self._detect(depth, [picture for _, picture in group])
            answers.update(zip([index for index, _ in group], found, strict=True))
        return [answers[index] for index in range(len(x))]

    def unbatch(self, output: list[Answer | Refusal]) -> list[Answer | Refusal]:
        """Return the answers, which are a list already."""
        return output

    def _detect(self, depth: str, pictures: Sequence[Picture]) -> Sequence[Answer | Refusal]:
        detector = self._detector
        assert detector is not None, "LitServe calls `setup` first"
        # Selection goes through detections from the best score on, so that a higher threshold cuts its list.
        lowest = min(picture.threshold for picture in pictures)
        try:
            found = detector.predict(
                [picture.pixels for picture in pictures], depth, lowest, batch_size=len(pictures)
            )
        except NonFiniteOutputError as error:
            return [Refusal(_SERVER_ERROR, str(error))] * len(pictures)
        entry, batch = detector.resolve(depth), detector.bundle.input.batch or len(pictures)
        return [
            Answer(
                one.above(picture.threshold),
                (picture.pixels.shape[0], picture.pixels.shape[1]),
                entry,
                detector.latency_ms,
                batch,
            )
            for one, picture in zip(found, pictures, strict=True)
        ]

    def encode_response(self, output: Answer | Refusal, **_: object) -> JSONResponse:
        """Return the answer of a request as JSON."""
        if isinstance(output, Refusal):
            return JSONResponse({"detail": output.message}, output.status)
        headers = answer_headers(str(output.entry.config), output.latency_ms)
        return JSONResponse(answer_to_dict(output), headers=headers)


def answer_to_dict(answer: Answer) -> dict[str, object]:
    """Return the detections of a picture in plain values, as the API answers."""
    found = answer.found
    return {
        "depth": str(answer.entry.config),
        "gflops": round(2 * answer.entry.gmacs, 4),
        "latency_ms": round(answer.latency_ms, 3),
        "batch": answer.batch,
        "width": answer.size[1],
        "height": answer.size[0],
        "detections": [
            {
                "label": label,
                "class_name": found.class_names[label],
                "score": round(score, 4),
                "box_xyxy": [round(side, 2) for side in box],
            }
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
            )
        ],
    }
