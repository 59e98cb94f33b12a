"""One graph for several depths: it computes what the graph of each depth computes, and no more."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hand_made import DEPTHS, SIDE, outputs_of, write_bundle
from onnx import TensorProto, helper, numpy_helper

from anydepth.deploy import load
from anydepth.deploy.export import one_graph
from anydepth.deploy.export.graph import shorten_names
from anydepth.deploy.export.one_graph import merge_graphs
from anydepth.deploy.runtime.bundle import BundleError, read_bundle
from anydepth.deploy.runtime.engines.base import EngineError

CHANNELS, STAGES = 4, 3


class Network:
    """A network like those of the package: stages with a refinement path, a skip connection, and layers.

    Args:
        refine: Whether each stage refines; its norm has a set of vectors for each.
        layers: Number of layers behind the stages; each may be the last one, with a head of its own.
    """

    def __init__(self, refine: Sequence[bool], layers: int) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        features = stem = self.conv("images", "stem", 3)
        for stage, refines in enumerate(refine):
            features = self.norm(self.conv(features, f"essential{stage}"), f"{stage}{refines}")
            if refines:
                refined = self.norm(self.conv(features, f"refinement{stage}"), f"refinement{stage}")
                features = self.add("Add", [features, refined])
        # As a neck does: what was computed first is used last.
        features = self.add("Add", [features, stem])
        pooled = self.add("ReduceMean", [features, self.constant("axes", np.array([2, 3]))], keepdims=0)
        for layer in range(layers):
            pooled = self.add("Tanh", [self.product(pooled, f"layer{layer}", CHANNELS)])
        self.product(pooled, f"box_head{layers}", 8, "boxes")
        self.product(pooled, "score_head", 6, "scores")

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: object) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers[name] = values
        return name

    def random(self, name: str, *shape: int) -> str:
        """A constant that is the same in every network."""
        values = np.random.default_rng([*name.encode()]).normal(size=shape).astype(np.float32)
        return self.constant(name, values)

    def conv(self, features: str, name: str, channels: int = CHANNELS) -> str:
        return self.add("Conv", [features, self.random(name, CHANNELS, channels, 3, 3)], pads=[1] * 4)

    def norm(self, features: str, name: str) -> str:
        vectors = [self.random(f"{kind}{name}", CHANNELS) for kind in ("scale", "shift")]
        vectors += [
            self.constant("zeros", np.zeros(CHANNELS, np.float32)),
            self.constant("ones", np.ones(CHANNELS, np.float32)),
        ]
        return self.add("Relu", [self.add("BatchNormalization", [features, *vectors])])

    def product(self, features: str, name: str, width: int, output: str | None = None) -> str:
        return self.add("MatMul", [features, self.random(name, CHANNELS, width)], output)

    def model(self) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
            for name, width in (("boxes", 8), ("scores", 6))
        ]
        constants = [numpy_helper.from_array(values, name) for name, values in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "network", [images], outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def merge(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    merged = merge_graphs([ir.from_proto(_copy(model)) for model in models])
    shorten_names(merged)
    proto = ir.to_proto(merged)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(["boxes", "scores"], inputs)  # type: ignore[no-any-return]


def assert_computes(merged: onnx.ModelProto, models: Sequence[onnx.ModelProto]) -> None:
    for batch in (1, 3):
        images = np.random.default_rng(batch).random((batch, 3, 8, 8), np.float32)
        for number, model in enumerate(models):
            found = run(merged, images=images, depth=np.array(number))
            for mine, theirs in zip(found, run(model, images=images), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


# Depths as of a ladder, of flags in any order, and with further layers only.
FAMILIES = {
    "ladder": [((True,) * 3, 3), ((True, True, False), 3), ((True, False, False), 2), ((False,) * 3, 1)],
    "any": [((True, False, True), 2), ((False, True, False), 3), ((False, False, True), 2)],
    "layers": [((True,) * 3, 4), ((True,) * 3, 3), ((True,) * 3, 2), ((True,) * 3, 1)],
    "equal": [((True,) * 3, 2), ((True,) * 3, 2)],
    "single": [((True,) * 3, 2)],
}


@pytest.mark.parametrize("depths", FAMILIES.values(), ids=FAMILIES)
def test_each_number_computes_the_graph_of_its_depth(depths: list[tuple[tuple[bool, ...], int]]):
    models = [Network(*depth).model() for depth in depths]
    assert_computes(merge(models), models)


def test_any_two_graphs_can_be_merged():
    # Flags are drawn, also where graphs have nothing in common but the stem.
    random = np.random.default_rng(0)
    for _ in range(4):
        depths = [(tuple(random.integers(0, 2, STAGES) > 0), int(random.integers(0, 3))) for _ in range(3)]
        models = [Network(*depth).model() for depth in depths]
        assert_computes(merge(models), models)


def test_what_a_later_gap_needs_of_an_earlier_one_is_kept():
    """Node c of the first graph needs a, and all between them is common to both."""
    first, second = Network((), 0), Network((), 0)
    for network in (first, second):
        network.nodes.clear()
        network.initializers.clear()
    own = first.add("Tanh", ["images"])
    values = [network.norm(network.conv("images", "stem", 3), "x") for network in (first, second)]
    joined = [first.conv(first.add("Concat", [values[0], own], axis=1), "wide", 7), values[1]]
    for network, value in zip((first, second), joined, strict=True):
        axes = network.constant("axes", np.array([2, 3]))
        pooled = network.add("ReduceMean", [value, axes], keepdims=0)
        network.product(pooled, "b", 8, "boxes")
        network.product(pooled, "s", 6, "scores")
    models = [first.model(), second.model()]
    assert_computes(merge(models), models)


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _graphs(attribute.g)
    return found


def test_weights_are_stored_once_and_what_is_skipped_does_not_run():
    models = [Network(*depth).model() for depth in FAMILIES["ladder"]]
    merged = merge(models)
    kernels = [numpy_helper.to_array(one).tobytes() for one in merged.graph.initializer if len(one.dims) > 1]
    assert len(kernels) == len(set(kernels))
    main, *branches = _graphs(merged.graph)
    # stem and the essential paths run always; each refinement is in one branch, beside an empty one.
    assert sum(node.op_type == "Conv" for node in main.node) == 1 + STAGES
    assert sum(node.op_type == "Conv" for graph in branches for node in graph.node) == STAGES
    # The second and third layer, and the heads of one, two and three layers: nested, each kernel once.
    products = [node.input[1] for graph in branches for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == len(set(products)) == 5


def test_early_stages_are_copied_into_branches_where_their_weights_are_few(monkeypatch: pytest.MonkeyPatch):
    # Norms are folded there: without vectors that are chosen at run time.
    monkeypatch.setattr(one_graph, "_COPIES", 1e9)
    depths = [((True,) * 3, 1), ((False,) * 3, 1)]
    models = [Network(*depth).model() for depth in depths]
    merged = merge(models)
    main, *branches = _graphs(merged.graph)
    assert [node.op_type for node in main.node].count("Conv") == 0
    assert sorted(sum(node.op_type == "Conv" for node in graph.node) for graph in branches) == [4, 7]
    assert_computes(merged, models)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_depths_that_share_a_graph_share_a_session(engine: str, tmp_path: Path):
    detector = load(write_bundle(tmp_path / "bundle", one=True), engine=engine, threads=1)
    images = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)
    assert detector.open_depths == ()
    for depth in (*DEPTHS, *reversed(DEPTHS)):
        for found, expected in zip(detector.run(images, depth), outputs_of(images, depth), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)
        assert detector.open_depths == DEPTHS
    detector.close("minimal")
    assert detector.open_depths == ()


def test_the_memory_limit_counts_the_weights_of_a_shared_graph_once(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", one=True)
    # 432 bytes for each of the three depths.
    detector = load(folder, memory_limit=1300 / 2**20)
    for depth in DEPTHS:
        detector.open(depth)
    with pytest.raises(BundleError, match="the memory limit is 0; raise memory_limit"):
        load(folder, memory_limit=1290 / 2**20).open("minimal")


def test_tensors_of_other_files_are_found_in_branches(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", one=True, location="../secret")
    with pytest.raises(BundleError, match=r"takes a tensor from '../secret'"):
        load(folder).open("full")


def _numbers(values: Sequence[object]) -> Any:
    def edit(description: dict[str, Any]) -> None:
        for entry, value in zip(description["depths"], values, strict=True):
            entry["number"] = value

    return edit


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, None), "3 depths share the graph depths.onnx, expected a number of each"),
        ((0, 1, 1), "3 depths share the graph depths.onnx, expected a number of each"),
        ((0, 1, -1), "got number=-1 of a depth, expected 0 to"),
        ((0, 1, 2.0), "got number=2.0, expected int or null"),
    ],
)
def test_depths_that_share_a_graph_need_numbers(numbers: Sequence[object], message: str, tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", one=True, edit=_numbers(numbers))
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


@pytest.mark.parametrize("one", [False, True])
def test_a_graph_of_another_form_than_described_is_refused(one: bool, tmp_path: Path):
    def edit(description: dict[str, Any]) -> None:
        del description["depths"][1:]
        description["depths"][0]["number"] = None if one else 0

    folder = write_bundle(tmp_path / "bundle", one=one, edit=edit)
    inputs = "images, depth of a graph of one depth" if one else "images of a graph of several depths"
    with pytest.raises(EngineError, match=f"got the inputs {inputs}"):
        load(folder).open("full")
