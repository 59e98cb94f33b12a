"""Counters of a server in the text format of Prometheus, and the middleware that keeps them."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
DEPTH_HEADER: Final = "anydepth-depth"
LATENCY_HEADER: Final = "anydepth-latency-ms"

# Seconds: from the smallest network on a GPU to the largest on a slow processor.
_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BUSY: Final = 503


def answer_headers(depth: str, latency_ms: float) -> dict[str, str]:
    """Return the headers of an answer, by which its depth and latency are counted."""
    # Names of stages may hold any character, headers not.
    return {DEPTH_HEADER: quote(depth, safe="/+@"), LATENCY_HEADER: f"{latency_ms:.4f}"}


class Histogram:
    """Counts of values up to each of a few bounds.

    Attributes:
        total: Sum of the values.
        count: Number of values.
    """

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0
        self._counts = [0] * len(_BOUNDS)

    def add(self, value: float) -> None:
        """Count a value in seconds."""
        self.total += value
        self.count += 1
        place = bisect_left(_BOUNDS, value)
        if place < len(_BOUNDS):
            self._counts[place] += 1

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """Yield its lines; the count of a bound includes those of the lower ones."""
        below = 0
        for bound, count in zip(_BOUNDS, self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{{labels},le="{bound:g}"}} {below}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {self.count}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {self.count}"


class Metrics:
    """Counters of the requests for detections since the server started.

    Attributes:
        waiting: Requests that are being answered.
        requests: Number of answers by HTTP status.
        latency: Latency of the network by depth, in seconds.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.requests: Counter[int] = Counter()
        self.latency: dict[str, Histogram] = defaultdict(Histogram)

    def text(self) -> str:
        """Return all counters in the text format of Prometheus."""
        errors = sum(count for status, count in self.requests.items() if status >= 400)
        lines = [
            *_head("anydepth_requests_total", "counter", "Requests for detections by HTTP status."),
            *(
                f'anydepth_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(self.requests.items())
            ),
            *_head("anydepth_errors_total", "counter", "Requests that ended with an error."),
            f"anydepth_errors_total {errors}",
            *_head("anydepth_waiting_requests", "gauge", "Requests that are being answered."),
            f"anydepth_waiting_requests {self.waiting}",
            *_head("anydepth_latency_seconds", "histogram", "Time of the network's pass by depth."),
        ]
        for depth, histogram in sorted(self.latency.items()):
            lines += histogram.lines("anydepth_latency_seconds", f'depth="{_escaped(depth)}"')
        return "\n".join(lines) + "\n"


class CountingMiddleware:
    """Counts the requests to one path, and refuses them while too many are being answered.

    Args:
        app: The application.
        path: Path of the requests.
        metrics: Counters to keep.
        limit: Most requests at once.
    """

    def __init__(self, app: ASGIApp, *, path: str, metrics: Metrics, limit: int) -> None:
        self._app = app
        self._path = path
        self._metrics = metrics
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(message)
            await send(message)

        if self._metrics.waiting >= self._limit:
            busy = JSONResponse(
                {"detail": f"{self._limit} requests are waiting, which is the limit; try again later"},
                _BUSY,
                {"Retry-After": "1"},
            )
            await busy(scope, receive, counting_send)
            return
        self._metrics.waiting += 1
        try:
            await self._app(scope, receive, counting_send)
        finally:
            self._metrics.waiting -= 1

    def _count(self, message: Message) -> None:
        self._metrics.requests[message["status"]] += 1
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        if DEPTH_HEADER in headers and LATENCY_HEADER in headers:
            self._metrics.latency[unquote(headers[DEPTH_HEADER])].add(float(headers[LATENCY_HEADER]) / 1000)


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
