"""Graphs made by hand in place of the export of a network, which takes seconds."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from anydepth.deploy.export import bundle_writer
from anydepth.deploy.export.graph import ExportError
from anydepth.detector import Detector


def replace_export(monkeypatch: pytest.MonkeyPatch, *, fail: str = "") -> Sequence[str]:
    """Replace the export of a graph.

    Args:
        monkeypatch: Undoes it at the end of the test.
        fail: Depth whose export fails.

    Returns:
        The depths that are exported from now on.
    """
    exported: list[str] = []

    def export(
        detector: object, depth: object, *, batch: int | None = None, grid: int | None = None
    ) -> ir.Model:
        exported.append(str(depth))
        if str(depth) == fail:
            raise ExportError("torch.onnx cannot export the network")
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])
        weight = helper.make_tensor("w", TensorProto.FLOAT, [100], [0.5] * 100)
        node = helper.make_node("Add", ["images", "w"], ["boxes"])
        outputs = [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [100])]
        graph = helper.make_graph([node], "one", [images], outputs, [weight])
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))

    monkeypatch.setattr(bundle_writer, "export_graph", export)
    return exported


def grey_graph(detector: Detector, depth: object) -> ir.Model:
    """A graph whose ten boxes and scores of two classes are an image's mean times those of the depth."""
    random = np.random.default_rng(len(str(depth)))
    low = random.uniform(0, 0.5, (1, 10, 2))
    boxes = np.concatenate([low, low + random.uniform(0.1, 0.9, (1, 10, 2))], axis=2)
    tensors = {
        "axes": np.array([2, 3]),
        "channels": np.array([1]),
        "boxes_of_white": boxes.astype(np.float32),
    }
    tensors["scores_of_white"] = random.uniform(0.2, 1.8, (1, 10, 2)).astype(np.float32)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *detector.input_size])
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
        helper.make_node("ReduceMean", ["means", "channels"], ["mean"]),
        helper.make_node("Unsqueeze", ["mean", "channels"], ["grey"]),  # [B, 1, 1]
        *(helper.make_node("Mul", ["grey", f"{name}_of_white"], [name]) for name in ("boxes", "scores")),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10, last])
        for name, last in (("boxes", 4), ("scores", 2))
    ]
    constants = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    graph = helper.make_graph(nodes, "grey", [images], outputs, constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
