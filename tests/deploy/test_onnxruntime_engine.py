"""ONNX Runtime: settings that a pass depends on and whose effect only a clock shows."""

from pathlib import Path

import pytest
from hand_made import write_bundle

pytest.importorskip("onnxruntime")

from anydepth.deploy.runtime.engines.base import EngineOptions
from anydepth.deploy.runtime.engines.onnxruntime_engine import open_session


def test_threads_of_a_depth_that_is_not_running_leave_the_processor_to_others(tmp_path: Path):
    session = open_session(write_bundle(tmp_path / "bundle") / "full.onnx", EngineOptions())
    settings = session._session.get_session_options()
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"
