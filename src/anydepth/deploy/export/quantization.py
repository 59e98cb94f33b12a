"""The graph of one depth in int8: ONNX with QuantizeLinear and DequantizeLinear, which both engines read.

Weights get one symmetric scale per output channel, which depends on the kernel alone, so that depths that
share a kernel share its int8 form. Ranges of activations are those of each depth on calibration images. The
quantisation itself is that of NNCF (post-training, with fast bias correction).
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from anydepth.deploy.export.graph import INPUT, anonymise
from anydepth.deploy.runtime.engines.base import DEPTH, THRESHOLD
from anydepth.images import to_unit_range

_MATRIX_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})


class QuantizationError(ValueError):
    """A bundle cannot be made int8 as asked; the message says why and what to change."""


def quantize_graph(path: Path, batches: Sequence[NDArray[np.uint8]]) -> ir.Model:
    """Quantise the graph of one depth.

    Args:
        path: ONNX graph of a float bundle; its weights lie beside it.
        batches: Calibration images [B, 3, H, W] uint8 RGB, each of as many as the graph takes.

    Returns:
        A graph with the same inputs and outputs, whose kernels are int8.

    Raises:
        QuantizationError: NNCF cannot quantise the graph, or it holds branches.
    """
    model = ir.external_data.load_to_model(ir.load(path))
    names = [value.name for value in model.graph.inputs]
    # The selection of detections has branches, too, but nothing in them is quantised.
    has_branches = THRESHOLD not in names and any(node.op_type == "If" for node in model.graph)
    if DEPTH in names or has_branches:
        raise QuantizationError(
            f"{path}: a graph of several depths with branches; export a graph per depth, and quantise that"
        )
    _resolve_kernels(model)
    _number_nodes(model)
    nncf = import_nncf()
    try:
        quantised = nncf.quantize(
            ir.to_proto(model),
            nncf.Dataset(batches, partial(to_inputs, selects=THRESHOLD in names)),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=float_nodes(model.graph), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # 7 bits of weights: processors without VNNI add pairs of products in 16 bits, which overflow.
                overflow_fix="enable"
            ),
        )
    except Exception as error:  # NNCF raises errors of many kinds
        raise QuantizationError(f"{path}: NNCF cannot quantise the graph: {error}") from error
    result: ir.Model = ir.from_proto(quantised)
    _check_quantised(result, path)
    fold_norms(result)
    for one in (passes.RemoveUnusedNodesPass(), passes.DeduplicateInitializersPass()):
        one(result)
    anonymise(result)
    return result


def float_nodes(graph: ir.Graph) -> list[str]:
    """Return the names of the nodes that stay float: matrix products, and all that no convolution follows.

    Found by structure, because graphs of bundles have no names of modules. Behind the last convolution are
    the selection of queries and the decoder of a DETR, with which in int8 an RT-DETR was reported to lose all
    of its AP, and the decoding of boxes of a YOLO. Products of attention were slower in int8 than in float
    where it was measured (OpenVINO, which fuses attention in float).
    """
    nodes = list(graph)
    before = _ancestors(node for node in nodes if node.op_type == "Conv")
    return [node.name or "" for node in nodes if node not in before or node.op_type in _MATRIX_PRODUCTS]


def _ancestors(starts: Iterable[ir.Node]) -> set[ir.Node]:
    """Return these nodes and all that they depend on."""
    found: set[ir.Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.predecessors()
    return found


def fold_norms(model: ir.Model) -> None:
    """Fold norms behind int8 convolutions into the scales of the kernels, whose numbers stay shared.

    An essential path has two norm sets over one kernel. A norm of its own behind an int8 convolution would be
    computed in float.
    """
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and _fold_norm(model.graph, node):
            node.outputs[0].replace_all_uses_with(_producer(node.inputs[0], "Conv").outputs[0])
            model.graph.remove(node, safe=True)


def _fold_norm(graph: ir.Graph, norm: ir.Node) -> bool:
    """Move a norm into scale and bias of the convolution in front of it; return whether that was possible."""
    conv = _producer(norm.inputs[0], "Conv")
    kernel = None if conv is None else _producer(conv.inputs[1], "DequantizeLinear")
    if conv is None or kernel is None or len(list(conv.outputs[0].uses())) > 1:
        return False
    weight, bias, mean, variance = (_array(value) for value in norm.inputs[1:5])
    scale = _array(kernel.inputs[1])
    old_bias = _array(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(1)
    if any(part is None for part in (weight, bias, mean, variance, scale, old_bias)):
        return False
    factor = weight / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    per_channel = scale.shape == factor.shape and kernel.attributes.get_int("axis", 1) == 0
    # Engines expect positive scales; a shared dequantisation serves another norm, too.
    if not per_channel or not (factor > 0).all() or len(list(kernel.outputs[0].uses())) > 1:
        return False
    kernel.replace_input_with(1, _constant(graph, scale * factor))
    conv.resize_inputs(3)
    conv.replace_input_with(2, _constant(graph, (old_bias - mean) * factor + bias))
    return True


def _producer(value: ir.Value | None, op_type: str) -> Any:
    """Return the node that makes a value if it is of a type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _array(value: ir.Value | None) -> Any:
    """Return a constant in float64; None: not a constant."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float64)


def _constant(graph: ir.Graph, values: NDArray[np.float64]) -> ir.Value:
    tensor = ir.tensor(values.astype(np.float32))
    name = f"folded_{len(graph.initializers)}"
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _resolve_kernels(model: ir.Model) -> None:
    """Compute cut kernels, which would be taken for activations."""
    limit = 2**40  # No constant is too large.
    optimizer.fold_constants(
        model, onnx_shape_inference=False, input_size_limit=limit, output_size_limit=limit
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def load_kernels(path: Path) -> list[NDArray[np.float32]]:
    """Return the kernels of a graph, [out, in / groups, h, w] each, without their norms."""
    model = ir.external_data.load_to_model(ir.load(path))
    _resolve_kernels(model)
    kernels = {id(node.inputs[1]): node.inputs[1] for node in model.graph if node.op_type == "Conv"}
    return [
        value.const_value.numpy()
        for value in kernels.values()
        if value is not None and value.const_value is not None
    ]


def _number_nodes(model: ir.Model) -> None:
    """Give nodes names, by which NNCF addresses them."""
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"node{number}"


def to_inputs(images: NDArray[np.uint8], *, selects: bool) -> dict[str, NDArray[np.float32]]:
    """Return calibration images [B, 3, H, W] as the inputs of a graph, which may select detections."""
    inputs = {INPUT: to_unit_range(torch.from_numpy(images)).numpy()}
    # What is behind the convolutions stays float, whatever is selected there.
    return {**inputs, THRESHOLD: np.array(0.5, np.float32)} if selects else inputs


def _check_quantised(model: ir.Model, path: Path) -> None:
    if not any(node.op_type == "DequantizeLinear" for node in model.graph):
        raise QuantizationError(
            f"{path}: nothing in the graph can be computed in int8, because it has no convolutions"
        )


def is_quantised(path: Path) -> bool:
    """Return whether a graph holds int8 numbers; its weights are not read."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)


def import_nncf() -> Any:
    """Import NNCF, without the reports on its use that it sends otherwise."""
    os.environ.setdefault("NNCF_CI", "1")
    nncf = import_module("nncf")
    # A line for each operation that stays float.
    nncf.set_log_level(logging.ERROR)
    return nncf


def versions() -> Mapping[str, str]:
    """Return the version of the package that quantises, by its name; importing it takes seconds.

    Raises:
        QuantizationError: It is not installed.
    """
    try:
        return {"nncf": version("nncf")}
    except PackageNotFoundError as error:
        raise QuantizationError(
            "int8 needs the package nncf, which is not installed; install the extra `int8` of this package"
        ) from error
