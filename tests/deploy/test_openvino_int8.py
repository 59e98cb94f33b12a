"""Int8 for OpenVINO: kernels that depths share although their norms differ, and results close to float."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("openvino")
pytest.importorskip("nncf")

import openvino

from anydepth.deploy.export.openvino_graph import write_openvino
from anydepth.deploy.export.openvino_int8 import find_factors, float_nodes, quantize_for_openvino
from anydepth.deploy.export.quantization import QuantizationError
from anydepth.deploy.export.weights_file import WeightsFile

SIDE = 16
IMAGES = np.random.default_rng(0).integers(0, 255, (6, 3, SIDE, SIDE), np.uint8)


def _norm(seed: int) -> dict[str, np.ndarray]:
    """Weight, bias, mean and variance [8] of a norm; one channel is turned over."""
    random = np.random.default_rng(seed)
    weight = random.uniform(0.3, 2, 8)
    weight[seed % 8] *= -1
    parts = {"weight": weight, "bias": random.normal(0, 0.3, 8), "mean": random.normal(0, 0.1, 8)}
    return {**parts, "variance": random.uniform(0.5, 2, 8)}


def _write_graph(path: Path, seed: int, *, convolutions: bool = True) -> Path:
    """Write a network of three convolutions, two in groups; norms behind the first two depend on a seed."""
    random = np.random.default_rng(7)
    kernels = {"k0": (8, 3, 3, 3), "k1": (8, 4, 3, 3), "k2": (6, 4, 1, 1)}
    constants = {name: random.normal(0, 0.4, shape) for name, shape in kernels.items()}
    # A channel that was pruned.
    constants["k1"][3] = 0
    nodes, value = [], "images"
    for number, groups in enumerate((1, 2) if convolutions else ()):
        norm = {f"{name}{number}": values for name, values in _norm(seed + number).items()}
        constants |= norm
        nodes += [
            helper.make_node("Conv", [value, f"k{number}"], [f"c{number}"], pads=[1] * 4, group=groups),
            helper.make_node("BatchNormalization", [f"c{number}", *norm], [f"n{number}"], epsilon=0.0),
            helper.make_node("Relu", [f"n{number}"], [f"r{number}"]),
        ]
        value = f"r{number}"
    if convolutions:
        nodes.append(helper.make_node("Conv", [value, "k2"], ["tokens"], group=2))
    else:
        nodes.append(helper.make_node("Concat", ["images", "images"], ["tokens"], axis=1))
    nodes += [
        helper.make_node("ReduceMean", ["tokens", "axes"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "shape"], ["boxes"]),
        helper.make_node("Sigmoid", ["boxes"], ["scores"]),
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("images", ["batch", 3, SIDE, SIDE]), ("boxes", ["batch", 2, 3]), ("scores", ["batch", 2, 3])
        )
    ]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    initializers = [
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in constants.items()
        if name in used
    ]
    initializers.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    initializers.append(numpy_helper.from_array(np.array([-1, 2, 3], np.int64), "shape"))
    graph = helper.make_graph(nodes, "small", sides[:1], sides[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _run(model: Any, images: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.array(openvino.Core().compile_model(model, "CPU", settings)([images])["boxes"])


def _kernels(model: Any) -> list[np.ndarray]:
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    return [node.data.reshape(-1) for node in constants if node.data.dtype == np.int8]


def test_depths_share_kernels_in_int8_and_compute_what_they_did_in_float(tmp_path: Path) -> None:
    graphs = [_write_graph(tmp_path / f"{seed}.onnx", seed) for seed in (1, 4)]
    batches = [IMAGES[number : number + 1] for number in range(len(IMAGES))]
    made = [quantize_for_openvino(path, batches) for path in graphs]
    kernels = [_kernels(model) for model in made]
    # Also those of groups, with and without a norm.
    assert [len(one) for one in kernels[0]] == [8 * 27, 8 * 36, 24]
    for first, second in zip(*kernels, strict=True):
        np.testing.assert_array_equal(first, second)
    images = (IMAGES[:4] / 255).astype(np.float32)
    for path, model in zip(graphs, made, strict=True):
        wanted = _run(openvino.Core().read_model(path), images)
        # 7 bits of weights and 8 of activations.
        assert np.abs(_run(model, images) - wanted).max() < 0.04 * np.abs(wanted).max()
    weights = WeightsFile(io.BytesIO(), "weights.bin")
    counts = []
    for number, model in enumerate(made):
        write_openvino(model, tmp_path / f"{number}.xml", weights)
        counts.append(weights.stored)
    # The second depth adds vectors, and none of the kernels.
    assert counts[1] - counts[0] <= counts[0] - len(kernels[0])


def test_what_no_convolution_follows_stays_float(tmp_path: Path) -> None:
    model = openvino.convert_model(_write_graph(tmp_path / "graph.onnx", 1))
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    assert {kinds[name] for name in float_nodes(model)} == {"ReduceMean", "Reshape", "Sigmoid"}


def test_a_graph_without_convolutions_is_refused(tmp_path: Path) -> None:
    path = _write_graph(tmp_path / "graph.onnx", 1, convolutions=False)
    with pytest.raises(QuantizationError, match="no convolutions"):
        quantize_for_openvino(path, [IMAGES[:1]])


def test_the_kernel_of_a_folded_one_is_found_with_its_factors() -> None:
    random = np.random.default_rng(0)
    kernels = [random.normal(0, 1, (4, 3, 3, 3)).astype(np.float32) for _ in range(3)]
    factors = np.array([0.5, -2.0, 0.0, 1e-3], np.float32)
    folded = kernels[1] * factors[:, None, None, None]
    found = find_factors(folded, [kernels[0][:2], *kernels])
    assert found is not None
    np.testing.assert_array_equal(found[0], kernels[1])
    np.testing.assert_allclose(found[1], factors, rtol=1e-6)
    # Another value in one place is another kernel.
    folded[0, 0, 0, 0] += 0.01
    assert find_factors(folded, kernels) is None
    kernels[1][2] = 0
    found = find_factors(kernels[1], kernels)
    assert found is not None
    assert found[0] is kernels[1]
