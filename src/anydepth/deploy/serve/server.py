"""The server: LitServe with the detection API, counters, what is known of the depths, and perhaps a page."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

from fastapi import Request
from litserve import LitServer
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.routing import Route

from anydepth.deploy.runtime.detector import DeployedDetector, depth_figures
from anydepth.deploy.serve.api import PREDICT, DetectionApi, DetectorSource
from anydepth.deploy.serve.metrics import CONTENT_TYPE, CountingMiddleware, Metrics
from anydepth.deploy.serve.page import page_routes
from anydepth.deploy.serve.requests import JobReader, Limits

LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = "0.0.0.0"
MAX_WORKERS: Final = 128
"""Most processes that detect, far above any use: a typing mistake must not bring a machine down."""
_LOCAL_NAMES: Final = ("127.0.0.1", "localhost")
# What LitServe takes; lower ones belong to the system.
_PORTS: Final = (1024, 65535)


class ServerError(ValueError):
    """A setting that cannot be used; the message says what is allowed."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens and works.

    Attributes:
        source: How workers load the detector.
        limits: Limits of requests.
        host: 127.0.0.1, for this machine alone, or 0.0.0.0.
        port: Port, 1024 to 65535.
        names: Host names under which the server may be reached; empty: those of this machine if it listens
            on the loopback, else any.
        workers: Processes that detect, each with all depths.
        batch: Most pictures of a pass.
        wait_ms: How long a request waits for others to share a pass with, in milliseconds.
        timeout: Seconds after which a request that still waits for a worker is refused.
    """

    source: DetectorSource
    limits: Limits = field(default_factory=Limits)
    host: str = LOOPBACK
    port: int = 8000
    names: Sequence[str] = ()
    workers: int = 1
    batch: int = 8
    wait_ms: float = 0.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.host not in (LOOPBACK, EVERYWHERE):
            raise ServerError(
                f"got host={self.host}, expected {LOOPBACK} (this machine alone) or {EVERYWHERE} "
                "(every network)"
            )
        if not _PORTS[0] <= self.port <= _PORTS[1]:
            raise ServerError(f"got port={self.port}, expected {_PORTS[0]} to {_PORTS[1]}")
        counts = {"workers": self.workers, "batch": self.batch, "queue": self.limits.waiting}
        sizes = {"upload": self.limits.upload_bytes, "pixels": self.limits.pixels, "timeout": self.timeout}
        for name, value in (counts | sizes).items():
            if not value > 0:
                raise ServerError(f"got {name}={value:g}, expected more than 0")
        if self.workers > MAX_WORKERS:
            raise ServerError(
                f"got workers={self.workers}, expected at most {MAX_WORKERS}: each is a process with all "
                "depths"
            )
        if not 0 <= self.wait_ms < 1000 * self.timeout:
            raise ServerError(
                f"got wait={self.wait_ms:g}, expected milliseconds from 0 to less than the timeout"
            )

    @property
    def address(self) -> str:
        """Address of the server on this machine."""
        return f"http://{LOOPBACK}:{self.port}"


def build_server(options: ServerOptions, *, page: bool = False, examples: bool = False) -> LitServer:
    """Return a server that is ready to run.

    Args:
        options: How it listens and works.
        page: Whether ``/`` shows a page that detects in pictures, videos and the webcam.
        examples: Whether the page offers pictures of the embedded sample, which suit its detector alone.

    Raises:
        BundleError: No bundle, or one that is damaged.
        EngineError: The engine is not installed, or lacks the device.
    """
    detector, metrics, names = options.source.load(), Metrics(), list(options.names)
    if not names and options.host == LOOPBACK:
        # A page of somebody else could otherwise reach this server under a name of its own (DNS rebinding).
        names = list(_LOCAL_NAMES)
    middlewares: list[Any] = [
        (CountingMiddleware, {"path": PREDICT, "metrics": metrics, "limit": options.limits.waiting})
    ]
    if names:
        middlewares.append((TrustedHostMiddleware, {"allowed_hosts": names, "www_redirect": False}))
    server = LitServer(
        DetectionApi(options.source, max_batch=options.batch, wait_ms=options.wait_ms),
        accelerator="cpu",  # Of LitServe's own devices, which the engines do not use.
        workers_per_device=options.workers,
        timeout=options.timeout,
        model_metadata=describe(detector, options),
        middlewares=middlewares,
        # Its page of documentation loads scripts from elsewhere.
        disable_openapi_url=True,
    )
    server.app.state.reader = JobReader(detector, options.limits)

    def counters(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    # Before LitServe's own, one of which answers at "/".
    server.app.router.routes[:0] = [
        Route("/metrics", counters),
        *(page_routes(examples=examples) if page else ()),
    ]
    return server


def describe(detector: DeployedDetector, options: ServerOptions) -> dict[str, object]:
    """Return what clients may know of a detector, in plain values: its classes, depths and limits."""
    source = options.source
    return {
        "detector": detector.bundle.detector,
        "class_names": list(detector.class_names),
        "input_size": list(detector.input_size),
        "engine": detector.engine,
        "device": source.options.device,
        "depths": [
            {
                "depth": row.depth,
                "gflops": round(row.gflops, 4),
                "ap": row.ap,
                "latency_ms": row.milliseconds,
                "memory_mb": row.megabytes,
            }
            for row in depth_figures(detector.bundle, detector.engine, source.options)
        ],
        "limits": {
            "upload_bytes": options.limits.upload_bytes,
            "pixels": options.limits.pixels,
            "waiting": options.limits.waiting,
            "batch": options.batch,
        },
    }


def run_server(
    server: LitServer, options: ServerOptions, on_ready: Callable[[str], object] | None = None
) -> None:
    """Serve until Ctrl-C, and print the address as soon as requests are answered.

    Args:
        server: Server that :func:`build_server` returned for these options.
        options: How it listens.
        on_ready: Function that is called with the address then.

    Raises:
        ServerError: The port is in use.
    """
    _check_port(options)
    threading.Thread(target=_announce, args=(options, on_ready), daemon=True).start()
    _end_workers_with_the_server()
    server.run(
        options.host,
        options.port,
        # One process counts requests and limits how many wait; the work is done by the workers.
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


def _end_workers_with_the_server() -> None:
    """Let SIGTERM end the server as Ctrl-C does; LitServe alone would leave its workers behind."""
    main = os.getpid()

    def end(number: int, frame: object) -> None:
        # Forked processes inherit this.
        if os.getpid() != main:
            os._exit(0)
        # Its thread that watches the workers may report that they are gone.
        logging.getLogger("litserve.server").disabled = True
        raise KeyboardInterrupt

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, end)


def _check_port(options: ServerOptions) -> None:
    with socket.socket() as probe:
        # As the server itself does: connections of a former one may still be closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise ServerError(
                f"port {options.port} cannot be used ({error.strerror}); give another one with port=..."
            ) from error


def _announce(options: ServerOptions, on_ready: Callable[[str], object] | None) -> None:
    while True:
        try:
            with urlopen(f"{options.address}/health", timeout=5):
                break
        # It does not listen yet, or its workers are not ready.
        except (URLError, OSError):
            time.sleep(0.2)
    print(f"ready     {options.address} (Ctrl-C ends it)", flush=True)
    if on_ready is not None:
        on_ready(options.address)
