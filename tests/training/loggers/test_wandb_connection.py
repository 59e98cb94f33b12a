"""Online or offline: decided within seconds, with local servers that answer in different ways."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anydepth.training.loggers.wandb_connection import Connection, choose_connection, find_connection_problem

KEY = "a" * 40


@contextmanager
def server(status: int = 200, body: str = "", delay: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    """Run a server that answers every POST alike; yield its address and the received authorizations."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(f"{self.path} {self.headers['Authorization']}")
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(delay)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", seen
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("no_proxy", "*")


def find_problem(url: str, api_key: str | None = KEY, seconds: float = 5.0) -> str | None:
    return find_connection_problem(url, api_key=api_key, token_file=None, seconds=seconds)


def test_a_server_that_knows_the_key_can_be_used() -> None:
    with server(body=json.dumps({"data": {"viewer": {"id": "1"}}})) as (url, seen):
        assert find_problem(url) is None
    # `api:` and the key in base64, RFC 7617.
    assert seen == ["/graphql Basic YXBpOmFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="]


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, "", "answers with error 500"),
        (404, "", "answers with error 404"),
        (401, "", "rejects the API key"),
        (403, "", "rejects the API key"),
        (200, "<html>Log in to this network</html>", "does not answer like a W&B server"),
        (200, '{"data": null}', "does not answer like a W&B server"),
        (200, '{"data": {"viewer": null}}', "does not know the API key"),
    ],
    ids=["error", "missing", "unauthorised", "forbidden", "portal", "no-data", "unknown-key"],
)
def test_a_server_that_answers_otherwise_cannot_be_used(status: int, body: str, reason: str) -> None:
    with server(status, body) as (url, _):
        assert find_problem(url) == f"{url} {reason}"


def test_a_closed_port_is_detected_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    start = time.monotonic()
    assert str(find_problem(url)).startswith(f"{url} cannot be reached (")
    assert time.monotonic() - start < 2


def test_a_server_that_hangs_times_out() -> None:
    with server(delay=20) as (url, _):
        start = time.monotonic()
        assert find_problem(url, seconds=0.5) == f"{url} does not answer within 0.5 seconds"
        assert time.monotonic() - start < 3


def test_without_a_key_no_server_is_queried() -> None:
    assert (
        find_problem("http://127.0.0.1:9", api_key=None) == "there is no API key (`wandb login` stores one)"
    )


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_an_offline_mode_queries_no_server(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert choose_connection(offline=False, seconds=1) == Connection("offline")


def test_the_configuration_asks_for_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert choose_connection(offline=True, seconds=1) == Connection("offline")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_connection(offline=True, seconds=1) == Connection("disabled")


def test_an_unknown_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offlin")
    with pytest.raises(ValueError, match="WANDB_MODE='offlin': allowed are online, offline, disabled"):
        choose_connection(offline=False, seconds=1)


def test_server_and_key_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with server(body=json.dumps({"data": {"viewer": {"id": "1"}}})) as (url, seen):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert choose_connection(offline=False, seconds=5) == Connection("online")
    assert len(seen) == 1


def test_a_key_in_netrc_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n login user\n password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("WANDB_MODE", "online")
    with server(500) as (url, seen):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert choose_connection(offline=False, seconds=5).reason == f"{url} answers with error 500"
    assert len(seen) == 1


def test_an_empty_mode_counts_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    found = choose_connection(offline=True, seconds=1)
    assert found == Connection("offline")
