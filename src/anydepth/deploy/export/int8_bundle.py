"""A float bundle as one of int8: each depth quantised, the kernels stored once, AP before and after."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from anydepth.deploy.export.bundle_writer import check_folder, file_entry, replaced_folder, write_description
from anydepth.deploy.export.openvino_graph import write_openvino
from anydepth.deploy.export.openvino_int8 import quantize_for_openvino
from anydepth.deploy.export.quantization import QuantizationError, is_quantised, quantize_graph, versions
from anydepth.deploy.export.weights_file import weights_file
from anydepth.deploy.runtime.bundle import (
    DESCRIPTION,
    GRAPH_SUFFIXES,
    INT8_FORMATS,
    WEIGHTS,
    Bundle,
    BundledDepth,
    read_bundle,
)
from anydepth.depth import DepthConfig
from anydepth.evaluation.depth_curve import DepthCurve

# Figures of a bundle in an engine.
Evaluate = Callable[[Bundle], DepthCurve]


def write_int8_bundle(
    bundle: Bundle,
    depths: Sequence[str | DepthConfig],
    folder: str | Path,
    images: NDArray[np.uint8],
    *,
    evaluate: Evaluate | None = None,
    graph_format: str = "onnx",
    on_step: Callable[[str], object] = lambda step: None,
) -> Bundle:
    """Quantise depths of a float bundle to a new bundle.

    The folder appears when everything in it is complete; a bundle that was there is replaced then.

    Args:
        bundle: Float bundle; it is not changed.
        depths: Depths of it; equal ones are quantised once.
        folder: Folder to write: a new one, an empty one, or a bundle other than the given one.
        images: [N, 3, H, W] uint8 RGB, calibration images that were resized for this bundle.
        evaluate: Function that returns the figures of a bundle at these depths, called for both; None: the
            figures of the float bundle are not repeated, as they are not those of int8.
        graph_format: ``onnx`` for ONNX Runtime, or ``openvino`` for OpenVINO, each of which computes its own
            form rightly.
        on_step: Function that is called with each step as it begins, because a depth takes a minute.

    Returns:
        The bundle.

    Raises:
        BundleError: A file of the float bundle is missing or altered.
        DepthError: A depth that was not exported.
        ExportError: A folder that holds something else. Nothing was written.
        QuantizationError: The bundle is not one of float numbers, there are no images, or NNCF is not
            installed or cannot quantise a graph. Nothing was written.
    """
    folder = Path(folder).resolve()
    entries = list({entry.config: entry for entry in map(bundle.depth, depths)}.values())
    batches = _batches(images, bundle)
    _check(bundle, entries, folder, graph_format)
    before = _evaluate(evaluate, bundle, "before", on_step)
    with replaced_folder(folder) as partial:
        with weights_file(partial / WEIGHTS) as weights:
            for number, entry in enumerate(entries, start=1):
                on_step(f"quantises {entry.config} ({number} of {len(entries)})")
                source, target = bundle.folder / entry.graph, partial / _renamed(entry.graph, graph_format)
                if graph_format == "openvino":
                    write_openvino(quantize_for_openvino(source, batches), target, weights)
                    continue
                model = quantize_graph(source, batches)
                weights.move_from(model)
                target.write_bytes(ir.to_proto(model).SerializeToString())
        description = _describe(bundle, entries, len(images), graph_format)
        description["files"] = {path.name: file_entry(path) for path in sorted(partial.iterdir())}
        write_description(partial, description)
        after = _evaluate(evaluate, read_bundle(partial), "after", on_step)
        for entry in description["depths"]:
            entry["float_figures"] = _known(before.get(entry["depth"], {}))
            entry["figures"] = _known(after.get(entry["depth"], {}))
        write_description(partial, description)
    return read_bundle(folder)


def _renamed(graph: str, graph_format: str) -> str:
    return f"{graph.removesuffix('.onnx')}{GRAPH_SUFFIXES[graph_format]}"


def _check(bundle: Bundle, entries: Sequence[BundledDepth], folder: Path, graph_format: str) -> None:
    if graph_format not in INT8_FORMATS:
        raise QuantizationError(f"got format={graph_format!r}, expected {' or '.join(INT8_FORMATS)}")
    if bundle.graph_format != "onnx":
        raise QuantizationError(
            f"{bundle.folder}: holds graphs of format={bundle.graph_format}; give the bundle of ONNX graphs "
            "(anydepth-export format=onnx), of which format=openvino makes one in int8 for OpenVINO"
        )
    if bundle.selects and graph_format == "openvino":
        raise QuantizationError(
            f"{bundle.folder}: its graphs select detections, with branches that NNCF does not quantise for "
            "OpenVINO; give format=onnx, or export the bundle again with selection=runtime"
        )
    if not entries:
        raise QuantizationError("got no depth to quantise, expected at least one of the bundle")
    bundle.check_files(WEIGHTS, *(entry.graph for entry in entries))
    for entry in entries:
        if entry.number is not None:
            raise QuantizationError(
                f"{bundle.folder}: its depths share one graph with branches, which NNCF does not quantise; "
                "export the bundle again with graph=each"
            )
        bundle.check_graph(entry.graph)
        if bundle.precision != "fp32" or is_quantised(bundle.folder / entry.graph):
            raise QuantizationError(
                f"{bundle.folder}: holds int8 numbers already; give the float bundle that it was made of"
            )
    if folder == bundle.folder.resolve():
        raise QuantizationError(
            f"{folder}: the float bundle itself, which would be lost; give another output"
        )
    check_folder(folder)
    # Imported here, so that a missing package is found before an evaluation of minutes.
    versions()


def _batches(images: NDArray[np.uint8], bundle: Bundle) -> list[NDArray[np.uint8]]:
    """Divide calibration images into batches that the graphs take."""
    size = bundle.input.batch or 1
    expected = (3, *bundle.input.size)
    if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8 or len(images) < size:
        raise QuantizationError(
            f"got calibration images of shape {images.shape} and type {images.dtype}, expected at least "
            f"{size} of shape {expected} in uint8; give a data set with images"
        )
    return [images[start : start + size] for start in range(0, len(images) - size + 1, size)]


def _evaluate(
    evaluate: Evaluate | None, bundle: Bundle, when: str, on_step: Callable[[str], object]
) -> dict[str, Mapping[str, float]]:
    if evaluate is None:
        return {}
    on_step(f"evaluates {when}")
    return {row.depth: row.figures for row in evaluate(bundle).rows}


def _known(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures without those of objects that the images do not hold."""
    return {name: value for name, value in figures.items() if value >= 0}


def _describe(
    bundle: Bundle, entries: Sequence[BundledDepth], images: int, graph_format: str
) -> dict[str, Any]:
    """Return the description of the float bundle without what int8 changes."""
    description: dict[str, Any] = json.loads((bundle.folder / DESCRIPTION).read_text(encoding="utf-8"))
    graphs = {entry.graph for entry in entries}
    kept = [entry for entry in description["depths"] if entry["graph"] in graphs]
    for entry in kept:
        # Latency, memory and equality with PyTorch are those of the float graphs.
        graph = _renamed(entry["graph"], graph_format)
        entry |= {"graph": graph, "figures": {}, "measurements": [], "equality": {}}
    description["depths"] = kept
    description["precision"] = "int8"
    description["graph_format"] = graph_format
    description["quantization"] = {"calibration_images": images}
    description["versions"] |= versions()
    return description
