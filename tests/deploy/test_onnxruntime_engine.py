"""ONNX Runtime: settings that a pass depends on and whose effect only a clock shows."""

from pathlib import Path

import numpy as np
import pytest
from hand_made import write_bundle

pytest.importorskip("onnxruntime")

from anydepth.deploy.runtime.engines.base import EngineError, EngineOptions
from anydepth.deploy.runtime.engines.onnxruntime_engine import open_session


def test_threads_of_a_depth_that_is_not_running_leave_the_processor_to_others(tmp_path: Path):
    session = open_session(write_bundle(tmp_path / "bundle") / "full.onnx", EngineOptions())
    settings = session._session.get_session_options()
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_pass_that_fails_is_an_error_of_the_engine(tmp_path: Path):
    session = open_session(write_bundle(tmp_path / "bundle") / "full.onnx", EngineOptions())
    # Images of two channels; what else fails, such as memory, is as rare as it is hard to make.
    with pytest.raises(EngineError, match=r"ONNX Runtime failed on 5 images: .* Got invalid dimensions"):
        session.run(np.zeros((5, 2, 32, 32), np.float32))
