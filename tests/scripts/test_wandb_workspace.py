"""The saved view: charts of keys that a run really logs, and its way to a server."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig

from anydepth.train import run
from wandb_files import offline_runs

pytest.importorskip("wandb_workspaces", reason='install it with: pip install ".[workspace]" in the checkout')

# Deprecations within the library.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SCRIPT = Path(__file__).parents[2] / "scripts" / "wandb_workspace.py"
# Written by the callback `gradient_conflict`, which a run may go without.
OPTIONAL = ("gradients/",)


class Server(ThreadingHTTPServer):
    """Answers what the library asks, and keeps the views that were saved."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.saved: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data: dict[str, Any] = {"viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}"}}
        if "upsertView" in asked["query"]:
            self.server.saved.append(asked["variables"])
            view = {"id": "17", "name": asked["variables"]["name"]}
            data = {"upsertView": {"view": view, "inserted": True}}
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def command(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--entity", "me", *arguments],
        env={**kept, **home, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


@pytest.mark.slow
def test_every_chart_shows_what_a_run_logs(
    script: ModuleType,
    compose_run: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    settings = ("curve.depths=ladder", "curve.latency_repetitions=1", f"curve.pictures={script.PICTURES}")
    run(compose_run(tmp_path / "run", "logger=wandb", *settings, "recipe.epochs=1"))
    (logged,) = offline_runs(tmp_path / "run")
    keys = {key for row in logged.history for key in row} | set(logged.summary)
    spec = script.spec_of(script.build_workspace("me", "anydepth", "Depth curves", 30))
    # 6 curves, 6 bars, 4 of validation, 4 of losses, 4 of gradients, 8 pictures.
    charts = [panel["config"] for panel in panels(spec) if panel["viewType"] != "Run Comparer"]
    assert len(charts) == 32
    for chart in charts:
        shown = [*chart.get("metrics", []), *chart.get("mediaKeys", [])]
        if pattern := chart.get("metricRegex"):
            shown = [key for key in keys if re.search(pattern, key)] or [pattern.removeprefix("^")]
        assert shown, chart
        wanted = {key for key in shown if not key.startswith(OPTIONAL)}
        assert wanted <= keys, wanted - keys
        if wanted and "xAxis" in chart:
            # A line needs both in one row.
            assert all(chart["xAxis"] in row for key in wanted for row in logged.rows(key)), chart
            assert all(logged.rows(key) for key in wanted), chart
    columns = spec["section"]["runSets"][0]["runFeed"]["columnPinned"]
    pinned = {name.removeprefix("summary:") for name in columns if name.startswith("summary:")}
    assert len(pinned) == 6
    assert pinned <= keys, pinned - keys


def test_charts_have_the_axes_that_runs_define(script: ModuleType) -> None:
    spec = script.spec_of(script.build_workspace("me", "anydepth", "Depth curves", 30))
    axes = {
        key: chart["config"]["xAxis"]
        for chart in panels(spec)
        if "xAxis" in chart["config"]
        for key in chart["config"].get("metrics", [])
    }
    assert axes["curve/AP"] == "curve/gflops"
    assert axes["curve_latency/AP"] == "curve_latency/median_ms"
    assert axes["val/full/AP"] == "epoch"
    assert axes["train/minimal/loss"] == "trainer/global_step"


def test_cosines_of_every_pass_are_charted(script: ModuleType) -> None:
    spec = script.spec_of(script.build_workspace("me", "anydepth", "Depth curves", 30))
    patterns = {
        chart["config"]["chartTitle"]: chart["config"]["metricRegex"]
        for chart in panels(spec)
        if chart["config"].get("metricRegex", "").startswith("^gradients/cosine")
    }
    for name in ("minimal", "random1"):
        assert re.search(patterns["Cosine of the passes' gradients"], f"gradients/cosine/{name}/all")
        assert not re.search(patterns["Cosine of the passes' gradients"], f"gradients/cosine/{name}/neck")
        assert re.search(patterns["Cosine by module"], f"gradients/cosine/{name}/neck")


@pytest.mark.slow
def test_the_view_is_saved_on_a_server(server: Server, tmp_path: Path, script: ModuleType) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    done = command(tmp_path, "--project", "trees", WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    assert done.returncode == 0, done.stderr
    (saved,) = server.saved
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == (
        "me",
        "trees",
        "Depth curves",
    )
    assert saved["type"] == "project-view"
    titles = [panel["config"].get("chartTitle") for panel in panels(json.loads(saved["spec"]))]
    assert titles[:2] == ["AP against GFLOPs", "AP against latency"]
    assert "/me/trees?nw=" in done.stdout


@pytest.mark.slow
def test_without_an_api_key_it_says_so_in_one_message(tmp_path: Path) -> None:
    done = command(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "wandb login" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_specification_needs_no_server(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--entity", "me", "--spec", str(tmp_path / "view.json")])
    script.main()
    assert len(panels(json.loads((tmp_path / "view.json").read_text()))) == 33
