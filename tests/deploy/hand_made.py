"""Bundles made by hand: a network of two matrix products, so that tests of the runtime need no export."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

SIDE = 32
BOXES, CLASSES = 6, 2
NAMES = ("cat", "dog")
DEPTHS = ("full", "a@1", "minimal")
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
    """
    folder.mkdir()
    content = b""
    files: dict[str, Any] = {}
    entries = []
    for depth in depths:
        places = []
        for matrix in weights_of(depth):
            values = matrix if fill is None else np.full_like(matrix, fill)
            places.append((len(content) + shift, values.shape))
            content += values.tobytes()
        name = f"{depth}.onnx"
        (folder / name).write_bytes(_graph(places, location, batch, swap).SerializeToString())
        entries.append(_entry(depth, name))
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
            "normalised_boxes": True,
            "clips_boxes": False,
            "selection": {"kind": "top_scores", "detections": BOXES},
        },
        "depths": entries,
        "files": files,
        "versions": {"anydepth": "0"},
    }
    edit(description)
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder


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
        tensor = TensorProto(name=f"{name}_weight", data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * shape[0] * shape[1]
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
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
