"""Graphs made by hand in place of the export of a network, which takes seconds."""

from collections.abc import Sequence

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from anydepth.deploy.export import bundle_writer
from anydepth.deploy.export.graph import ExportError


def replace_export(monkeypatch: pytest.MonkeyPatch, *, fail: str = "") -> Sequence[str]:
    """Replace the export of a graph.

    Args:
        monkeypatch: Undoes it at the end of the test.
        fail: Depth whose export fails.

    Returns:
        The depths that are exported from now on.
    """
    exported: list[str] = []

    def export(detector: object, depth: object, *, batch: int | None = None) -> ir.Model:
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
