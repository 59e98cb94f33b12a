"""Alignment of the graphs of several depths: nodes that are the same, which one graph may hold once."""

import hashlib
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Final

import onnx_ir as ir

Parts = Mapping[int, Sequence[ir.Node]]
"""Nodes in the order of execution, by the number of the depth."""
Label = tuple[object, ...]

# Inputs of norms that may differ between nodes that are the same: vectors, which are chosen by depth.
_VECTORS: Final[Mapping[str, tuple[int, ...]]] = {"BatchNormalization": (1, 2), "LayerNormalization": (1, 2)}


class Labels:
    """Labels of nodes: those of nodes that may be the same are equal."""

    def __init__(self) -> None:
        self._contents: dict[int, Label] = {}
        self._labels: dict[int, Label] = {}
        self._kept: list[object] = []  # what the numbers above stand for must live as long

    def content(self, value: ir.Value) -> Label:
        """Return what tells the contents of constants apart."""
        key = id(value)
        if key not in self._contents:
            tensor = value.const_value
            assert tensor is not None
            self._contents[key] = (*_tensor_key(tensor),)
            self._kept.append(value)
        return self._contents[key]

    def node(self, node: ir.Node) -> Label:
        """Return the label of a node, whatever the vectors of a norm hold."""
        key = id(node)
        if key not in self._labels:
            self._labels[key] = self._label(node, exact=False)
            self._kept.append(node)
        return self._labels[key]

    def exact(self, node: ir.Node) -> Label:
        """Return the label of a node with all that its constants hold."""
        return self._label(node, exact=True)

    def _label(self, node: ir.Node, *, exact: bool) -> Label:
        vectors = () if exact else _VECTORS.get(node.op_type, ())
        inputs: list[object] = []
        for place, value in enumerate(node.inputs):
            if value is None or not is_constant(value):
                inputs.append(value is None)
            elif place in vectors:
                inputs.append(("vector", *constant(value).shape.numpy()))
            else:
                inputs.append(self.content(value))
        attributes = sorted((name, _attribute_key(one)) for name, one in node.attributes.items())
        return (node.domain, node.op_type, tuple(inputs), len(node.outputs), tuple(attributes))


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is a constant of the graph."""
    return value.is_initializer()


def constant(value: ir.Value) -> ir.TensorProtocol:
    """Return what a constant of the graph holds."""
    assert value.const_value is not None
    return value.const_value


def _tensor_key(tensor: ir.TensorProtocol) -> Label:
    digest = hashlib.sha256(tensor.tobytes()).digest()
    return (tensor.dtype, tuple(tensor.shape.numpy()), digest)


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return repr(_tensor_key(attribute.as_tensor()))
    return f"{attribute.type} {attribute.value!r}"


def align(parts: Parts, labels: Labels) -> list[dict[int, int]]:
    """Return the positions of the nodes that all parts have, in order.

    Each part is compared with the longest; kernels make labels unique, so that a graph that lacks some
    nodes of another is found in it exactly.

    Returns:
        For each such node its position in every part.
    """
    longest = max(parts, key=lambda depth: len(parts[depth]))
    reference = [labels.node(node) for node in parts[longest]]
    found = [{longest: position} for position in range(len(reference))]
    for depth, nodes in parts.items():
        if depth == longest:
            continue
        matcher = SequenceMatcher(None, reference, [labels.node(node) for node in nodes], autojunk=False)
        for block in matcher.get_matching_blocks():
            for step in range(block.size):
                found[block.a + step][depth] = block.b + step
    return [places for places in found if len(places) == len(parts)]
