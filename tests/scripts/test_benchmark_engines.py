"""The ratios of the benchmark of engines, and the processes that it times."""

import argparse
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph ``y = x`` of one image of 4 x 4 pixels."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", kind, [1, 3, 4, 4])
    outputs = [helper.make_tensor_value_info(name, kind, [1, 3, 4, 4]) for name in ("boxes", "scores")]
    nodes = [helper.make_node("Identity", ["images"], [name]) for name in ("boxes", "scores")]
    model = helper.make_model(
        helper.make_graph(nodes, "same", [images], outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "same.onnx")
    return tmp_path / "same.onnx"


def test_ratios_are_those_within_rounds(script: ModuleType):
    # Both slow down together in the last round, as on a busy machine: 2, 2, 2, 3.
    found = script.ratio([20, 40, 200, 90], [10, 20, 100, 30])
    assert found == {"median": 2.0, "low": 2.0, "high": 2.25}
    assert script.ratio([2, 2], [1, 1], 3.0)["median"] == 6.0


def test_figures_compare_forms_depths_and_peers(script: ModuleType):
    milliseconds = {
        "eager full": 30,
        "eager minimal": 20,
        "specialised full": 20,
        "specialised minimal": 10,
        "onnxruntime full": 15,
        "onnxruntime minimal": 8,
        "sleeping full": 20,
        "sleeping minimal": 10,
        "onnxruntime peer": 12,
    }
    times = {name: [[float(value)] * 3] for name, value in milliseconds.items()}
    times["onnxruntime switching"] = [[40.0] * 3, [41.0] * 3]
    figures = script.compute_figures(times, {"full": 50.0, "minimal": 30.0}, 42.0, ["onnxruntime"])
    assert {name: figure["median"] for name, figure in figures.items()} == {
        "eager / specialised, full": 1.5,
        "eager / onnxruntime, full": 2.0,
        "onnxruntime spinning / sleeping, full": 0.75,
        "eager / specialised, minimal": 2.0,
        "eager / onnxruntime, minimal": 2.5,
        "onnxruntime spinning / sleeping, minimal": 0.8,
        "full / minimal, eager": 1.5,
        "full / minimal, specialised": 2.0,
        "full / minimal, onnxruntime": 1.875,
        "switching / staying, onnxruntime": 1.025,
        # (15 / 50) / (12 / 42)
        "per MAC of the peer, onnxruntime": 1.05,
        "minimal / peer, onnxruntime": 0.667,
    }


def test_a_form_is_timed_in_a_process_of_its_own(script: ModuleType, graph: Path):
    pytest.importorskip("onnxruntime")
    jobs = {
        "graph": {"job": "graph", "engine": "onnxruntime", "graph": str(graph), "threads": 1, "size": [4, 4]},
        "sleeping": {"job": "sleeping", "graph": str(graph), "threads": 1, "size": [4, 4]},
    }
    times = script.time_in_rounds(jobs, argparse.Namespace(rounds=2, passes=3, pause=0.0))
    assert {name: [len(own) for own in rounds] for name, rounds in times.items()} == {
        "graph": [2],
        "sleeping": [2],
    }
    assert all(value > 0 for rounds in times.values() for own in rounds for value in own)


def test_a_form_that_cannot_be_opened_stops_the_benchmark(script: ModuleType, tmp_path: Path):
    jobs = {"sleeping": {"job": "sleeping", "graph": str(tmp_path / "no.onnx"), "threads": 1, "size": [4, 4]}}
    with pytest.raises(RuntimeError, match=r"a worker failed .*no\.onnx"):
        script.time_in_rounds(jobs, argparse.Namespace(rounds=1, passes=1, pause=0.0))


def test_peers_are_files_with_their_cost(script: ModuleType, graph: Path):
    assert script.parse_peer(f"yolo_s={graph}:10.5") == ("yolo_s", (graph, 10.5))
    for text in (str(graph), f"yolo_s={graph}", "yolo_s=no.onnx:1"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected DETECTOR=FILE\.onnx:GMACS"):
            script.parse_peer(text)
