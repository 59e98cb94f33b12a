"""The ONNX graph of one depth of a detector."""

import warnings
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch import Tensor, nn

from anydepth.deploy.routing.features import pooled_maps
from anydepth.deploy.runtime.engines.base import output_names
from anydepth.depth import DepthConfig
from anydepth.detector import Detector

INPUT: Final = "images"
OPSET: Final = 18
"""From 20 on, ONNX Runtime refuses GridSample in branches, and TensorRT was reported to sample wrongly."""

# Folding a constant must never be refused for its size: what is left would be computed at every pass.
_ANY_SIZE: Final = 2**40


class ExportError(ValueError):
    """A detector cannot be exported as asked; the message says why."""


class CandidatesOnly(nn.Module):
    """A detector at one depth as a function of tensors.

    Args:
        detector: The detector.
        depth: The depth.
        grid: Side G of the grid that feature maps are pooled to; None: they are not returned.
    """

    def __init__(self, detector: Detector, depth: DepthConfig, grid: int | None = None) -> None:
        super().__init__()
        self.detector = detector
        self.depth = depth
        self.grid = grid

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] -> boxes [B, N, 4], scores [B, N, K], and feature maps [B, C, G, G] of each part."""
        output = self.detector(images, depth=self.depth)
        candidates = self.detector.candidates(output)
        maps = {} if self.grid is None else pooled_maps(output, self.grid)
        return candidates.boxes_xyxy, candidates.scores, *(maps[name] for name in maps)


def export_graph(
    detector: Detector, depth: DepthConfig, *, batch: int | None = None, grid: int | None = None
) -> ir.Model:
    """Export the network of one depth, up to the boxes and scores among which detections are selected.

    Args:
        detector: A detector in eval mode on the CPU, whose ``input_size`` the graph takes.
        depth: A depth of its space.
        batch: Images of a pass; None: any number.
        grid: Side G of the grid that feature maps are pooled to; None: they are not returned.

    Returns:
        A model with the input ``images`` [B, 3, H, W] float32 RGB in [0, 1] and the outputs ``boxes``
        [B, N, 4] and ``scores`` [B, N, K], and with a grid also those of
        :data:`anydepth.deploy.runtime.engines.base.FEATURES` [B, C, G, G]. Its constants are folded and its
        norms are kept as nodes, so that the kernels below them are those of every other depth.

    Raises:
        ExportError: PyTorch cannot export the network, or only for a fixed number of images.
    """
    # Two images: with one, torch would take the batch axis for a constant.
    images = torch.zeros(batch or 2, 3, *detector.input_size)
    axes = None if batch else {INPUT: {0: torch.export.Dim("batch")}}
    specialised = detector.specialise(depth, share_weights=True).to(memory_format=torch.contiguous_format)
    standardise_norms(specialised)
    network = CandidatesOnly(specialised, depth, grid).eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(output_names(selects=False, features=grid is not None)),
                dynamic_shapes=axes,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # torch.export raises errors of many kinds
        raise ExportError(f"depth {depth}: torch.onnx cannot export the network: {error}") from error
    assert program is not None
    model: ir.Model = program.model
    _simplify(model)
    _check_batch(model, batch)
    return model


def standardise_norms(network: nn.Module) -> None:
    """Give norms the statistics 0 and 1, so that two vectors and not four are stored for each."""
    for norm in network.modules():
        if type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None:
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.double()
            shift = -norm.running_mean.double() * scale
            shift = shift if norm.bias is None else shift + norm.bias.double()
            norm.weight = nn.Parameter(scale.float(), requires_grad=False)
            norm.bias = nn.Parameter(shift.float(), requires_grad=False)
            norm.running_mean = torch.zeros_like(norm.running_mean)
            norm.running_var = torch.ones_like(norm.running_var)
            norm.affine, norm.eps = True, 0.0


def _simplify(model: ir.Model) -> None:
    passes.InlinePass()(model)
    optimizer.fold_constants(
        model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=_should_fold
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        _drop_zero_bias(node)
    for one in (
        passes.RemoveUnusedNodesPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        one(model)
    _drop_origins(model)
    shorten_names(model)


def _should_fold(node: ir.Node) -> bool | None:
    """Return false for a cut of a kernel: depths that use other parts of it shall share it. None: decide."""
    source = node.inputs[0] if node.inputs else None
    is_kernel = source is not None and source.const_value is not None and len(source.const_value.shape) == 4
    return False if node.op_type == "Slice" and is_kernel else None


def _drop_zero_bias(node: ir.Node) -> None:
    """Remove the bias of zeros that torch gives every convolution: with it, engines do not fold norms."""
    if node.op_type != "Conv" or len(node.inputs) < 3 or node.inputs[2] is None:
        return
    bias = node.inputs[2].const_value
    if bias is not None and not np.any(bias.numpy()):
        node.resize_inputs(2)


def _drop_origins(model: ir.Model) -> None:
    """Remove notes on where in the source code a node comes from, which name folders of this machine."""
    model.metadata_props.clear()
    model.doc_string = None
    graph: Any = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


def shorten_names(model: ir.Model) -> None:
    """Number all values, and forget the shapes of inner ones, which engines infer: two thirds of the file."""
    graph = model.graph
    fixed = {id(value) for value in (*graph.inputs, *graph.outputs)}
    returned = {id(value) for inner in model.graphs() for value in inner.outputs}
    for number, value in enumerate([*graph.initializers.values()]):
        value.name = f"w{number}"
    for number, node in enumerate(graph.all_nodes()):
        node.name = None
        for place, value in enumerate(node.outputs):
            if id(value) not in fixed:
                value.name = f"v{number}_{place}" if place else f"v{number}"
            # A branch must state what it returns.
            if id(value) not in fixed | returned:
                value.shape = value.type = None


def _check_batch(model: ir.Model, batch: int | None) -> None:
    """Refuse a fixed number of images where any was asked for: torch may fix it without a word."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = value.shape
        first = None if shape is None else shape[0]
        if isinstance(first, int) != (batch is not None):
            raise ExportError(
                f"{value.name} came out with {first} images, expected {batch or 'any number'}; give "
                "batch=1 to export for a fixed number of images"
            )


def anonymise(model: ir.Model) -> None:
    """Take origins and long names from a graph, as graphs of bundles are written."""
    _drop_origins(model)
    shorten_names(model)
