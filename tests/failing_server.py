"""An http server on this machine that fails on demand."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FailingServer(ThreadingHTTPServer):
    """Serves ``files`` by path; ``script`` holds one dictionary per coming request that says how it fails.

    Keys of a dictionary: ``status`` and ``headers`` answer with these and no body; ``cut`` sends only so many
    bytes of the body and closes; ``ignore_range`` sends the whole file for a part of it; ``no_length`` leaves
    out Content-Length; ``shift`` answers with a range that begins so many bytes later than asked.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.script: list[dict[str, Any]] = []
        self.ranges: list[str | None] = []
        """The Range header of each request so far."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: FailingServer

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        fault = self.server.script.pop(0) if self.server.script else {}
        body = self.server.files.get(self.path)
        if "status" in fault or body is None:
            self._answer(fault.get("status", 404), fault.get("headers", {}))
        else:
            self._send(body, asked, fault)

    def _send(self, body: bytes, asked: str | None, fault: dict[str, Any]) -> None:
        match = None if fault.get("ignore_range") else re.fullmatch(r"bytes=(\d+)-", asked or "")
        begin = int(match[1]) + fault.get("shift", 0) if match else 0
        if match and begin >= len(body):
            self._answer(416, {"Content-Range": f"bytes */{len(body)}"})
            return
        headers = {"Content-Length": str(len(body) - begin)} if not fault.get("no_length") else {}
        if match:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        self._answer(206 if match else 200, headers, body[begin:][: fault.get("cut")])

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FailingServer]:
    """A running server; it stops when the block ends."""
    with FailingServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
