"""Graphs in int8: which nodes stay float, and norms that become scales. Made by hand; NNCF is a slow test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from anydepth.deploy.export.quantization import QuantizationError, float_nodes, fold_norms, quantize_graph
from anydepth.deploy.export.selection_graph import append_selection
from anydepth.selection import TopScores

RANDOM = np.random.default_rng(0)


def _model(
    nodes: Sequence[Any], constants: dict[str, np.ndarray], outputs: dict[str, list[int | str]]
) -> Any:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])
    graph = helper.make_graph(
        nodes,
        "hand_made",
        [images],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _node(op_type: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs.split(), [output], name=output, **attributes)


def test_attention_and_all_behind_the_last_convolution_stay_float():
    """A product between convolutions, as in attention; behind them a selection of queries and a decoder."""
    nodes = [
        _node("Conv", "images kernel", "map"),
        _node("Relu", "map", "active"),
        _node("MatMul", "active active", "attention"),
        _node("Conv", "attention kernel2", "map2"),
        _node("ReduceMean", "map2 axes", "tokens", keepdims=0),
        helper.make_node("TopK", ["tokens", "one"], ["best", "places"], name="topk"),
        _node("Gather", "tokens places", "queries", axis=1),
        _node("MatMul", "queries query_weight", "boxes"),
        _node("Sigmoid", "boxes", "scores"),
    ]
    graph = ir.from_proto(_model(nodes, {}, {"boxes": ["batch", 4], "scores": ["batch", 4]})).graph
    assert float_nodes(graph) == ["attention", "tokens", "topk", "queries", "boxes", "scores"]


def test_decoding_of_boxes_behind_the_last_convolution_stays_float():
    nodes = [
        _node("Conv", "images kernel", "map"),
        _node("Sigmoid", "map", "gate"),
        _node("Mul", "map gate", "active"),
        _node("Conv", "active kernel2", "raw"),
        _node("Softmax", "raw", "distances"),
        _node("Add", "distances anchors", "boxes"),
        _node("Sigmoid", "raw", "scores"),
    ]
    graph = ir.from_proto(_model(nodes, {}, {"boxes": ["batch", 4], "scores": ["batch", 4]})).graph
    assert float_nodes(graph) == ["distances", "boxes", "scores"]


def _norm_model(weight: np.ndarray, *, bias: bool = True, axis: int = 0) -> ir.Model:
    """A convolution in int8 of 3 to 4 channels, and a norm behind it."""
    constants = {
        "kernel": RANDOM.integers(-127, 127, (4, 3, 3, 3), np.int8),
        "scale": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "zero": np.zeros(4, np.int8),
        "bias": np.array([0.5, -0.5, 1.0, 0.0], np.float32),
        "norm_weight": weight.astype(np.float32),
        "norm_bias": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "mean": np.array([0.3, -0.3, 0.0, 1.0], np.float32),
        "variance": np.array([1.0, 4.0, 0.25, 2.0], np.float32),
    }
    nodes = [
        _node("DequantizeLinear", "kernel scale zero", "weight", axis=axis),
        _node("Conv", f"images weight{' bias' if bias else ''}", "map"),
        _node("BatchNormalization", "map norm_weight norm_bias mean variance", "normed", epsilon=1e-3),
        _node("Relu", "normed", "boxes"),
    ]
    return ir.from_proto(_model(nodes, constants, {"boxes": ["batch", 4, 14, 14]}))


def _run(model: ir.Model) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    images = np.random.default_rng(1).random((2, 3, 16, 16), np.float32)
    result: np.ndarray = session.run(["boxes"], {"images": images})[0]
    return result


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_norm_computes_the_same_with_the_same_numbers(bias: bool):
    model = _norm_model(np.array([0.5, 1.0, 2.0, 3.0]), bias=bias)
    expected = _run(model)
    kernel = model.graph.initializers["kernel"].const_value.numpy().copy()
    fold_norms(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Conv", "Relu"]
    np.testing.assert_array_equal(model.graph.initializers["kernel"].const_value.numpy(), kernel)
    np.testing.assert_allclose(_run(model), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_that_would_make_a_scale_negative_is_kept():
    model = _norm_model(np.array([0.5, -1.0, 2.0, 3.0]))
    expected = _run(model)
    fold_norms(model)
    assert "BatchNormalization" in [node.op_type for node in model.graph]
    np.testing.assert_array_equal(_run(model), expected)


def test_a_norm_behind_a_float_convolution_is_kept():
    """Its kernel would no longer be shared."""
    nodes = [
        _node("Conv", "images kernel", "map"),
        _node("BatchNormalization", "map one zero zero one", "boxes"),
    ]
    constants = {
        "kernel": np.ones((4, 3, 3, 3), np.float32),
        "one": np.ones(4, np.float32),
        "zero": np.zeros(4, np.float32),
    }
    model = ir.from_proto(_model(nodes, constants, {"boxes": ["batch", 4, 14, 14]}))
    fold_norms(model)
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization"]


def test_graphs_that_cannot_be_quantised_are_refused(tmp_path: Path):
    branch = helper.make_graph([_node("Identity", "images", "chosen")], "branch", [], [])
    nodes = [helper.make_node("If", ["flag"], ["boxes"], then_branch=branch, else_branch=branch)]
    model = _model(nodes, {"flag": np.array(True)}, {"boxes": ["batch", 3, 16, 16]})
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(QuantizationError, match="several depths with branches; export a graph per depth"):
        quantize_graph(tmp_path / "one.onnx", [])


@pytest.mark.slow
def test_kernels_are_stored_in_int8_and_shared_between_depths(tmp_path: Path):
    """Two graphs with one kernel and different norms, quantised by NNCF."""
    kernel = RANDOM.normal(0, 1, (8, 3, 3, 3)).astype(np.float32)
    images = [RANDOM.integers(0, 255, (1, 3, 16, 16), np.uint8) for _ in range(8)]
    quantised = []
    for depth, factor in enumerate((1.0, 3.0)):
        constants = {
            "kernel": kernel,
            "second": RANDOM.normal(0, 1, (4, 8, 3, 3)).astype(np.float32),
            "norm_weight": np.full(8, factor, np.float32),
            "zero": np.zeros(8, np.float32),
            "one": np.ones(8, np.float32),
        }
        nodes = [
            _node("Conv", "images kernel", "map"),
            _node("BatchNormalization", "map norm_weight zero zero one", "normed"),
            _node("Relu", "normed", "active"),
            _node("Conv", "active second", "raw"),
            _node("Sigmoid", "raw", "boxes"),
        ]
        model = _model(nodes, constants, {"boxes": ["batch", 4, 12, 12]})
        onnx.save(model, tmp_path / f"{depth}.onnx")
        result = quantize_graph(tmp_path / f"{depth}.onnx", images)
        # Numbers of 8 bits err by a few hundredths behind the sigmoid.
        assert np.abs(_run(result) - _run(ir.from_proto(model))).mean() < 0.03
        assert "BatchNormalization" not in [node.op_type for node in result.graph]
        quantised.append(
            {
                value.const_value.tobytes()
                for value in result.graph.initializers.values()
                if value.const_value is not None and value.const_value.dtype == ir.DataType.INT8
            }
        )
    sizes = [{len(one) for one in both} for both in quantised]
    assert all({kernel.size, 4 * 8 * 9} <= one for one in sizes)
    assert [one for one in quantised[0] & quantised[1] if len(one) == kernel.size]


@pytest.mark.slow
def test_the_selection_of_a_quantised_graph_stays_float(tmp_path: Path):
    constants = {
        "kernel": RANDOM.normal(0, 1, (6, 3, 16, 16)).astype(np.float32),
        "box_shape": np.array([-1, 1, 4]),
        "score_shape": np.array([-1, 1, 2]),
        "four": np.array([4]),
        "zero": np.array([0]),
        "six": np.array([6]),
        "one": np.array([1]),
    }
    nodes = [
        _node("Conv", "images kernel", "map"),
        _node("Sigmoid", "map", "values"),
        _node("Slice", "values zero four one", "box_values"),
        _node("Slice", "values four six one", "score_values"),
        _node("Reshape", "box_values box_shape", "boxes"),
        _node("Reshape", "score_values score_shape", "scores"),
    ]
    model = ir.from_proto(_model(nodes, constants, {"boxes": ["batch", 1, 4], "scores": ["batch", 1, 2]}))
    append_selection(model, TopScores(2), normalised=False, input_size=(16, 16))
    onnx.save(ir.to_proto(model), tmp_path / "full.onnx")
    result = quantize_graph(tmp_path / "full.onnx", [RANDOM.integers(0, 255, (1, 3, 16, 16), np.uint8)] * 4)
    kinds = {node.op_type for node in result.graph}
    assert {"If", "TopK", "DequantizeLinear"} <= kinds
    assert [node.op_type for node in result.graph].count("DequantizeLinear") <= 3  # image, kernel and map
