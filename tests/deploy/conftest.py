"""One server for the tests of the API and those of its page: a worker takes seconds to start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hand_made import write_bundle
from served import free_port, running_server

from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.serve.api import DetectorSource
from anydepth.deploy.serve.requests import Limits
from anydepth.deploy.serve.server import ServerOptions

LIMITS = Limits(upload_bytes=100_000, pixels=200_000)
GMACS = {"full": 1.5, "a@1": 1.2, "minimal": 1.0}
EVIL = "<img src=x onerror=\"document.title='broken in'\">"


def _edit(description: dict[str, Any]) -> None:
    description["class_names"] = ["cat", EVIL]
    for entry in description["depths"]:
        entry["gmacs"] = GMACS[entry["depth"]]


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("served") / "bundle", edit=_edit)


@pytest.fixture(scope="session")
def server_address(served_bundle: Path) -> Iterator[str]:
    source = DetectorSource(served_bundle, options=EngineOptions(threads=1))
    options = ServerOptions(source, LIMITS, port=free_port(), batch=4, wait_ms=5)
    with running_server(options, page=True, examples=True) as address:
        yield address
