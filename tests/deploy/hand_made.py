"""Bundles made by hand: a network of two matrix products, so that tests of the runtime need no export."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from anydepth.deploy.export.selection_graph import append_selection
from anydepth.selection import Selection, TopScores, selection_to_dict

SIDE = 32
BOXES, CLASSES = 6, 2
NAMES = ("cat", "dog")
DEPTHS = ("full", "a@1", "minimal")
GRID = 2
AP = {"full": 0.25, "a@1": 0.2, "minimal": 0.1}


def weights_of(depth: str) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [3, N * 4] and [3, N * K] of a depth, other ones at each."""
    random = np.random.default_rng(sorted(DEPTHS).index(depth))
    return (
        random.normal(0, 2, (3, BOXES * 4)).astype(np.float32),
        random.normal(0, 4, (3, BOXES * CLASSES)).astype(np.float32),
    )


def outputs_of(images: np.ndarray, depth: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [B, N, 4] and scores [B, N, K] that the graph of a depth computes."""
    means = images.mean(axis=(2, 3))
    raw = [means @ matrix for matrix in weights_of(depth)]
    boxes, scores = (1 / (1 + np.exp(-values)) for values in raw)
    return boxes.reshape(-1, BOXES, 4), scores.reshape(-1, BOXES, CLASSES)


def features_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """Maps [B, 3, G, G] that graphs return: means of the quarters of the images, and minus these."""
    half = SIDE // GRID
    means = images.reshape(len(images), 3, GRID, half, GRID, half).mean(axis=(3, 5))
    return {"backbone": means, "neck": -means}


def write_bundle(
    folder: Path,
    *,
    depths: Sequence[str] = DEPTHS,
    batch: int | None = None,
    edit: Callable[[dict[str, Any]], None] = lambda description: None,
    location: str = "weights.bin",
    shift: int = 0,
    fill: float | None = None,
    swap: bool = False,
    one: bool = False,
    selection: Selection | None = None,
    features: bool = False,
) -> Path:
    """Write a bundle.

    Args:
        folder: A folder that does not exist.
        depths: The exported depths.
        batch: Images of a pass; None: any number.
        edit: Function that changes the description.
        location: File that the graphs name as that of their weights.
        shift: Bytes by which the graphs' tensors lie further behind.
        fill: Value of all weights.
        swap: Whether the graphs' outputs are in the other order.
        one: Whether one graph has all depths, with an ``If`` whose branches hold the weights.
        selection: How the graphs select detections; None: they end at the candidates.
        features: Whether the graphs return feature maps, see :func:`features_of`.
    """
    folder.mkdir()
    content = b""
    files: dict[str, Any] = {}
    entries = []
    places_by_depth = []
    for number, depth in enumerate(depths):
        places = []
        for matrix in weights_of(depth):
            values = matrix if fill is None else np.full_like(matrix, fill)
            places.append((len(content) + shift, values.shape))
            content += values.tobytes()
        places_by_depth.append(places)
        name = "depths.onnx" if one else f"{depth}.onnx"
        model = _one_graph(places_by_depth, location) if one else _graph(places, location, batch, swap)
        if features:
            _return_features(model.graph, batch)
        model = model if selection is None else _selecting(model, selection)
        (folder / name).write_bytes(model.SerializeToString())
        entries.append({**_entry(depth, name), "number": number if one else None})
    (folder / "weights.bin").write_bytes(content)
    for path in folder.iterdir():
        data = path.read_bytes()
        files[path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    description = {
        "format": "anydepth_bundle",
        "format_version": 1,
        "detector": {"name": "two_products", "parameters": 1},
        "depth_space": {
            "stages": ["a", "b"],
            "decoder_layers": 3,
            "minimal_decoder_layers": 1,
            "costs": {"refinements": [100, 200], "decoder_layer": 50},
        },
        "class_names": list(NAMES),
        "category_ids": [7, 3],
        "input": {"size": [SIDE, SIDE], "fit": "stretch", "batch": batch},
        "output": {
            "normalised_boxes": selection is None,
            "clips_boxes": False,
            "selection": selection_to_dict(selection or TopScores(BOXES)),
            "selects": selection is not None,
        },
        "depths": entries,
        "files": files,
        "versions": {"anydepth": "0"},
    }
    if features:
        description["output"]["features"] = {"grid": GRID, "channels": {"backbone": 3, "neck": 3}}
    edit(description)
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder


def _selecting(model: Any, selection: Selection) -> Any:
    graph = ir.from_proto(model)
    append_selection(graph, selection, normalised=True, input_size=(SIDE, SIDE))
    return ir.to_proto(graph)


def _return_features(graph: Any, batch: int | None) -> None:
    half = [SIDE // GRID] * 2
    graph.node.extend(
        [
            helper.make_node(
                "AveragePool", ["images"], ["backbone_features"], kernel_shape=half, strides=half
            ),
            helper.make_node("Neg", ["backbone_features"], ["neck_features"]),
        ]
    )
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", 3, GRID, GRID])
        for name in ("backbone_features", "neck_features")
    )


def _entry(depth: str, graph: str) -> dict[str, Any]:
    return {
        "depth": depth,
        "graph": graph,
        "gmacs": 1.0,
        "parameters": 10,
        "figures": {"AP": AP[depth]},
        "measurements": [],
        "equality": {},
    }


def _graph(
    places: Sequence[tuple[int, tuple[int, ...]]], location: str, batch: int | None, swap: bool
) -> Any:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch or "batch", 3, SIDE, SIDE])
    outputs, nodes = [], []
    nodes.append(helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0))
    initializers = [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])]
    for name, last, (offset, shape) in zip(("boxes", "scores"), (4, CLASSES), places, strict=True):
        tensor = _external(f"{name}_weight", shape, location, offset)
        shape_name = f"{name}_shape"
        initializers += [tensor, helper.make_tensor(shape_name, TensorProto.INT64, [3], [-1, BOXES, last])]
        nodes += [
            helper.make_node("MatMul", ["means", tensor.name], [f"{name}_raw"]),
            helper.make_node("Sigmoid", [f"{name}_raw"], [f"{name}_flat"]),
            helper.make_node("Reshape", [f"{name}_flat", shape_name], [name]),
        ]
        outputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "batch", BOXES, last])
        )
    outputs = outputs[::-1] if swap else outputs
    graph = helper.make_graph(nodes, "two_products", [images], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _external(name: str, shape: tuple[int, ...], location: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    length = 4 * shape[0] * shape[1]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _one_graph(depths: Sequence[Sequence[tuple[int, tuple[int, ...]]]], location: str) -> Any:
    """A graph of several depths: nested branches, of which the last one has the last depth."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    number = helper.make_tensor_value_info("depth", TensorProto.INT64, [])
    nodes = [helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0)]
    initializers = [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])]
    inner = _branch(depths, 0, location)
    for name, last in (("boxes", 4), ("scores", CLASSES)):
        initializers.append(helper.make_tensor(f"{name}_shape", TensorProto.INT64, [3], [-1, BOXES, last]))
        nodes.append(helper.make_node("Sigmoid", [f"{name}_raw0"], [f"{name}_flat"]))
        nodes.append(helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [name]))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", BOXES, last])
        for name, last in (("boxes", 4), ("scores", CLASSES))
    ]
    nodes[1:1] = [*inner.node]
    initializers += inner.initializer
    graph = helper.make_graph(nodes, "depths", [images, number], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _branch(depths: Sequence[Sequence[tuple[int, tuple[int, ...]]]], at: int, location: str) -> Any:
    """Matrix products of the depth ``at``, or an ``If`` between them and those of the depths behind it."""
    names = [f"boxes_raw{at}", f"scores_raw{at}"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in names]
    products = [
        helper.make_node("MatMul", ["means", f"{name}_weight"], [f"{name}_product"]) for name in names
    ]
    weights = [
        _external(f"{name}_weight", shape, location, offset)
        for name, (offset, shape) in zip(names, depths[at], strict=True)
    ]
    own = [
        helper.make_tensor_value_info(f"{name}_product", TensorProto.FLOAT, [None, None]) for name in names
    ]
    then = helper.make_graph(products, f"depth{at}", [], own, weights)
    if at == len(depths) - 1:
        renamed = [helper.make_node("Identity", [f"{name}_product"], [name]) for name in names]
        return helper.make_graph([*products, *renamed], f"depth{at}", [], outputs, weights)
    other = _branch(depths, at + 1, location)
    nodes = [
        helper.make_node("Equal", ["depth", f"number{at}"], [f"is{at}"]),
        helper.make_node("If", [f"is{at}"], names, then_branch=then, else_branch=other),
    ]
    number = helper.make_tensor(f"number{at}", TensorProto.INT64, [], [at])
    return helper.make_graph(nodes, f"from{at}", [], outputs, [number])
