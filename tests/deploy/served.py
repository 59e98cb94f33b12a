"""A server of a bundle on a port of its own: worker and HTTP, as ``run_server`` starts them."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import uvicorn
from litserve.utils import wrap_litserve_start
from PIL import Image

from anydepth.deploy.serve.server import ServerOptions, build_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running_server(options: ServerOptions, *, page: bool = False, examples: bool = False) -> Iterator[str]:
    """Provide the address of a server that answers."""
    with wrap_litserve_start(build_server(options, page=page, examples=examples)) as server:
        web = uvicorn.Server(uvicorn.Config(server.app, port=options.port, log_level="error"))
        thread = threading.Thread(target=web.run, daemon=True)
        thread.start()
        while get(options.address, "/health")[0] != 200:
            assert thread.is_alive()
            time.sleep(0.05)
        yield options.address
        web.should_exit = True
        thread.join()


def get(address: str, path: str, **headers: str) -> tuple[int, bytes]:
    """Return status and body; status 0 if nobody listens."""
    try:
        with urlopen(Request(address + path, headers=headers)) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def post(address: str, body: bytes, query: str = "", **headers: str) -> tuple[int, Any]:
    """Ask for detections and return status and JSON."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(f"{address}/predict{query}", body, names, method="POST")) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def post_form(address: str, **fields: bytes) -> tuple[int, Any]:
    """Ask for detections with a form, as curl and browsers write it."""
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in fields.items()
    ]
    body = b"".join(parts) + b"--limit--\r\n"
    return post(address, body, Content_Type="multipart/form-data; boundary=limit")


def png(height: int, width: int, seed: int = 0) -> bytes:
    """Return a picture of one colour as a file, which is small however many pixels it has."""
    red, green, blue = np.random.default_rng(seed).integers(0, 256, 3)
    file = BytesIO()
    Image.new("RGB", (width, height), (int(red), int(green), int(blue))).save(file, "PNG")
    return file.getvalue()
