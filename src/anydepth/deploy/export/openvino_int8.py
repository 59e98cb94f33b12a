"""The graph of one depth in int8 for OpenVINO, whose kernels are those of every other depth.

The float graph is converted with its norms folded into the kernels, as OpenVINO runs it, and quantised by
NNCF (post-training, with fast bias correction). A folded kernel is the kernel of the float bundle with a
factor per channel, which belongs into the scale: the numbers in int8 are taken from the kernel without it, so
that depths with other norm sets share them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anydepth.deploy.export.quantization import QuantizationError, import_nncf, load_kernels, to_inputs
from anydepth.deploy.runtime.engines.base import THRESHOLD

_CONVOLUTIONS: Final = frozenset({"Convolution", "GroupConvolution"})
# Products of attention were slower in int8 than in float where it was measured.
_MATRIX_PRODUCTS: Final = frozenset({"MatMul", "ScaledDotProductAttention"})
_NO_OPERATIONS: Final = frozenset({"Constant", "Parameter", "Result"})
# A folded kernel differs from a kernel times a factor by rounding of float32.
_SAME: Final = 1e-5
_INT8: Final = 128

Floats = NDArray[np.float32]


def quantize_for_openvino(path: Path, batches: Sequence[NDArray[np.uint8]]) -> Any:
    """Quantise the graph of one depth.

    Args:
        path: ONNX graph of a float bundle; its weights lie beside it.
        batches: Calibration images [B, 3, H, W] uint8 RGB, each of as many as the graph takes.

    Returns:
        An ``openvino.Model`` with the same inputs and outputs, whose kernels are int8.

    Raises:
        QuantizationError: NNCF cannot quantise the graph, or it has no convolutions.
    """
    nncf = import_nncf()
    import openvino

    try:
        model = openvino.convert_model(path)
        folded = {
            node.get_friendly_name(): _data(node.input_value(1)).copy() for node in _convolutions(model)
        }
        selects = any(THRESHOLD in value.get_names() for value in model.inputs)
        quantised = nncf.quantize(
            model,
            nncf.Dataset(batches, partial(to_inputs, selects=selects)),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=float_nodes(model), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # 7 bits of weights: processors without VNNI add pairs of products in 16 bits, which overflow.
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )
    except Exception as error:  # NNCF and OpenVINO raise errors of many kinds
        raise QuantizationError(f"{path}: NNCF cannot quantise the graph: {error}") from error
    share_kernels(quantised, folded, load_kernels(path))
    if next(_quantised_kernels(quantised), None) is None:
        raise QuantizationError(
            f"{path}: nothing in the graph can be computed in int8, because it has no convolutions"
        )
    return quantised


def float_nodes(model: Any) -> list[str]:
    """Return the names of the operations that stay float: matrix products, and what no convolution follows.

    See :func:`anydepth.deploy.export.quantization.float_nodes`.
    """
    before: set[str] = set()
    waiting = list(_convolutions(model))
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in before:
            before.add(node.get_friendly_name())
            waiting += [one.get_source_output().get_node() for one in node.inputs()]
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() not in _NO_OPERATIONS
        and (node.get_friendly_name() not in before or node.get_type_name() in _MATRIX_PRODUCTS)
    ]


def share_kernels(model: Any, folded: Mapping[str, Floats], kernels: Sequence[Floats]) -> None:
    """Replace int8 kernels by those of the kernels without norms, and put the norms into their scales.

    Args:
        model: Quantised model; it is changed.
        folded: Float kernel with its norm folded into it, by the name of its convolution.
        kernels: Kernels [out, in / groups, h, w] of the float bundle.
    """
    import openvino
    from openvino import opset13

    for convolution, multiply, convert in _quantised_kernels(model):
        numbers, scales = (_data(node.input_value(place)) for node, place in ((convert, 0), (multiply, 1)))
        kernel = folded[convolution.get_friendly_name()]
        found = find_factors(_flat(kernel), kernels)
        # One scale per channel is needed, and a kernel that was neither cut nor merged by the conversion.
        if found is None or scales.size != len(found[1]) or not found[0].any():
            continue
        plain, factors = found
        largest = np.abs(plain).reshape(len(plain), -1).max(1)
        levels = np.median((largest * np.abs(factors) / scales.reshape(-1))[largest > 0])
        steps = np.where(largest > 0, largest / levels, 1).astype(np.float32)
        rounded = np.round(plain / steps.reshape(-1, 1, 1, 1)).clip(-_INT8, _INT8 - 1).astype(np.int8)
        shared = opset13.constant(rounded.reshape(numbers.shape), openvino.Type.i8)
        scaled = opset13.constant((steps * factors).reshape(scales.shape), openvino.Type.f32)
        convert.input(0).replace_source_output(shared.output(0))
        multiply.input(1).replace_source_output(scaled.output(0))


def find_factors(folded: Floats, kernels: Sequence[Floats]) -> tuple[Floats, Floats] | None:
    """Find the kernel that a folded one is, but for a factor per channel.

    Args:
        folded: [out, in, h, w].
        kernels: Kernels of any shapes, among which it may be.

    Returns:
        The kernel and the factors [out]; None: there is none.
    """
    for kernel in kernels:
        if kernel.shape != folded.shape:
            continue
        rows, wanted = kernel.reshape(len(kernel), -1), folded.reshape(len(folded), -1)
        places = np.abs(rows).argmax(1)[:, None]
        largest = np.take_along_axis(rows, places, 1)
        # A channel of zeros has any factor.
        factors = np.take_along_axis(wanted, places, 1) / np.where(largest == 0, 1, largest)
        if np.allclose(rows * factors, wanted, rtol=0, atol=_SAME * float(np.abs(wanted).max())):
            return kernel, factors[:, 0].astype(np.float32)
    return None


def _convolutions(model: Any) -> Iterator[Any]:
    return (node for node in model.get_ordered_ops() if node.get_type_name() in _CONVOLUTIONS)


def _quantised_kernels(model: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each int8 convolution, the product with its scale, and the conversion of its numbers."""
    for convolution in _convolutions(model):
        multiply = convolution.input_value(1).get_node()
        convert = multiply.input_value(0).get_node() if multiply.get_type_name() == "Multiply" else None
        if convert is not None and convert.get_type_name() == "Convert":
            numbers = _data(convert.input_value(0))
            if numbers is not None and numbers.dtype == np.int8:
                yield convolution, multiply, convert


def _data(output: Any) -> Any:
    """Return the numbers of a constant; None: it is computed."""
    node = output.get_node()
    return node.data if node.get_type_name() == "Constant" else None


def _flat(kernel: Floats) -> Floats:
    """Return a kernel [out, in / groups, h, w], which OpenVINO keeps as [groups, out / groups, ...]."""
    return kernel.reshape(-1, *kernel.shape[-3:])
