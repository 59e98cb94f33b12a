"""OpenVINO: compiled for one image until another number comes, then for any."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hand_made import SIDE, outputs_of, write_bundle

pytest.importorskip("openvino")

from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions
from anydepth.deploy.runtime.engines.openvino_engine import OpenVinoSession, open_session


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, SIDE, SIDE), np.float32)


def _check(session: OpenVinoSession, count: int) -> None:
    """Outputs are the two matrix products of the graph, computed with numpy."""
    images = _images(count)
    for found, wanted in zip(session.run(images), outputs_of(images, "full"), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_another_number_of_images_compiles_the_graph_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled: list[int | None] = []
    original = OpenVinoSession._compile

    def compile_(self: OpenVinoSession, batch: int | None) -> object:
        compiled.append(batch)
        return original(self, batch)

    monkeypatch.setattr(OpenVinoSession, "_compile", compile_)
    graph = write_bundle(tmp_path / "bundle") / "full.onnx"
    session = open_session(graph, EngineOptions(threads=1))
    _check(session, 1)
    assert compiled == [1]
    assert session._compiled.batch == 1
    for count in (2, 1, 5):
        _check(session, count)
    assert compiled == [1, None]


def test_threads_with_different_numbers_of_images_share_a_session(tmp_path: Path):
    session = open_session(write_bundle(tmp_path / "bundle") / "full.onnx", EngineOptions(threads=1))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_check, session, 1 + number % 3) for number in range(24)]:
            done.result()


def test_a_graph_of_a_fixed_number_is_compiled_as_it_is(tmp_path: Path):
    graph = write_bundle(tmp_path / "bundle", batch=3) / "full.onnx"
    session = open_session(graph, EngineOptions(threads=1))
    _check(session, 3)
    assert session._compiled.batch is None


_SIGNALLED = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.runtime.engines.openvino_engine import open_session

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
session = open_session(Path(sys.argv[1]), EngineOptions(threads=1))
images = np.zeros((2, 3, int(sys.argv[2]), int(sys.argv[2])), np.float32)
# Compiled again in another thread, which frees what the first compilation had.
thread = threading.Thread(target=session.run, args=(images,))
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_handled_after_a_graph_was_closed_in_another_thread(tmp_path: Path):
    graph = write_bundle(tmp_path / "bundle") / "full.onnx"
    command = [sys.executable, "-c", _SIGNALLED, str(graph), str(SIDE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_pass_that_fails_is_an_error_of_the_engine(tmp_path: Path):
    session = open_session(write_bundle(tmp_path / "bundle") / "full.onnx", EngineOptions())
    with pytest.raises(EngineError, match="OpenVINO failed on 5 images: "):
        session.run(np.zeros((5, 2, SIDE, SIDE), np.float32))
