"""Tensors that a graph takes from other files, found as the onnx package finds them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hand_made import write_bundle
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from anydepth.deploy.runtime.onnx_file import ExternalTensor, external_tensors


def _external(name: str, location: str, **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model() -> onnx.ModelProto:
    """A model with external tensors wherever a model may hold one."""
    branch = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["c"], value=_external("c", "in_a_branch", offset="8", length="8")
            )
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])],
        [_external("i", "initializer_of_a_branch")],
    )
    sparse = onnx.SparseTensorProto(values=_external("v", "sparse_values"), dims=[4])
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1]), "indices"))
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    constant = helper.make_node("Constant", [], ["k"])
    constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    many = helper.make_node("Custom", [], ["z"], domain="somewhere")
    many.attribute.append(helper.make_attribute("tensors", [_external("t", "list_of_tensors")]))
    function = helper.make_function(
        "somewhere",
        "Function",
        [],
        ["f"],
        [helper.make_node("Constant", [], ["f"], value=_external("f", "in_a_function", length="4"))],
        [helper.make_opsetid("", 18)],
    )
    graph = helper.make_graph(
        [node, constant, many], "main", [], [], [_external("w", "initializer", offset="4096")]
    )
    graph.sparse_initializer.append(sparse)
    return helper.make_model(graph, functions=[function])


def test_external_tensors_are_found_wherever_a_model_may_hold_them():
    found = external_tensors(_model().SerializeToString())
    assert {tensor.location for tensor in found} == {
        "in_a_branch",
        "initializer_of_a_branch",
        "initializer",
        "sparse_values",
        "list_of_tensors",
        "in_a_function",
    }
    assert ExternalTensor("initializer", 4096, None) in found
    assert ExternalTensor("in_a_branch", 8, 8) in found
    assert ExternalTensor("in_a_function", 0, 4) in found


def test_the_onnx_package_finds_no_more(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    content = (folder / "full.onnx").read_bytes()
    theirs = [tensor for tensor in _tensors(content) if uses_external_data(tensor)]
    assert len(external_tensors(content)) == len(theirs) == 2


def _tensors(content: bytes) -> Iterator[TensorProto]:
    yield from _get_all_tensors(onnx.load_model_from_string(content))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes):
    with suppress(ValueError):
        external_tensors(content)


@given(st.data())
def test_a_model_that_is_cut_or_changed_is_read_or_refused(data: st.DataObject):
    content = bytearray(_model().SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        external_tensors(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_tags_that_readers_understand_differently_are_refused():
    # The tag of an initializer, 5 << 3 | 2, written longer than it needs, with a bit that 32 bits do not
    # hold.
    content = b"\xaa\x80\x80\x80\x10\x00"
    with pytest.raises(ValueError, match="an invalid tag at byte 0"):
        external_tensors(b"\x3a" + bytes([len(content)]) + content)
    with pytest.raises(ValueError, match="an invalid tag"):
        external_tensors(b"\x02\x00")  # field 0


def test_a_tensor_that_names_two_files_is_refused():
    tensor = _external("w", "weights.bin")
    tensor.external_data.add(key="location", value="other.bin")
    graph = helper.make_graph([], "main", [], [], [tensor])
    with pytest.raises(ValueError, match="names its 'location' twice"):
        external_tensors(helper.make_model(graph).SerializeToString())


def test_subgraphs_without_end_are_refused():
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "outer", [], [])
    with pytest.raises(ValueError, match="nested more than 64 levels"):
        external_tensors(helper.make_model(graph).SerializeToString())
