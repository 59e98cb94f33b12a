"""Writing a bundle: graphs, weights, description and model card, all or nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from anydepth.deploy.export.card import model_card
from anydepth.deploy.export.equality import measure_equality
from anydepth.deploy.export.graph import OUTPUTS, ExportError, export_graph
from anydepth.deploy.export.weights_file import weights_file
from anydepth.deploy.runtime.bundle import (
    CARD,
    DESCRIPTION,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS,
    Bundle,
    BundleError,
    read_bundle,
)
from anydepth.deploy.runtime.engines import check_engine
from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.cost import count_depth
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.selection import selection_to_dict
from anydepth.utils.files import write_text
from anydepth.utils.messages import join_few
from anydepth.utils.version import package_version

# What Hydra and a multirun leave in the folder of an export.
_LEFTOVERS = {"export.log", "outcome.json"}
_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir")


def write_bundle(
    detector: Detector,
    depths: Sequence[DepthConfig],
    folder: str | Path,
    *,
    batch: int | None = None,
    category_ids: Sequence[int] | None = None,
    curve: DepthCurve | None = None,
    engine: str | None = "onnxruntime",
    on_step: Callable[[str], object] = lambda step: None,
) -> Bundle:
    """Export depths of a detector to a bundle.

    The folder appears when everything in it is complete; a bundle that was there is replaced then.

    Args:
        detector: Detector in eval mode on the CPU; it is not changed.
        depths: Depths of its space; equal ones are exported once.
        folder: Folder to write: a new one, an empty one, or a bundle.
        batch: Images of a pass; None: any number.
        category_ids: Category id of each class in results files; None: 1, 2, ...
        curve: Depth curve of these weights, whose figures the bundle repeats.
        engine: Engine whose results are compared with PyTorch's; None: no comparison.
        on_step: Function that is called with each step as it begins, because an export takes minutes.

    Returns:
        The bundle, with the differences between engine and PyTorch in its depths.

    Raises:
        EngineError: The engine is not installed, or cannot open a graph. Nothing was written.
        ExportError: A detector that cannot be exported, a folder that holds something else, or a curve of
            another detector. Nothing was written.
    """
    folder, depths = Path(folder).resolve(), list(dict.fromkeys(depths))
    _check(detector, depths, folder, category_ids, curve, batch, engine)
    ids = list(category_ids or range(1, detector.num_classes + 1))
    with replaced_folder(folder) as partial:
        entries = []
        with weights_file(partial / WEIGHTS) as weights:
            for number, depth in enumerate(depths, start=1):
                on_step(f"exports   {depth} ({number} of {len(depths)})")
                model = export_graph(detector, depth, batch=batch)
                weights.move_from(model)
                name = graph_name(depth)
                (partial / name).write_bytes(ir.to_proto(model).SerializeToString())
                entries.append(_depth_entry(detector, depth, name, curve))
        description = _describe(detector, entries, ids, batch)
        description["files"] = {path.name: file_entry(path) for path in sorted(partial.iterdir())}
        write_description(partial, description)
        if engine is not None:
            on_step(f"compares  {engine} with PyTorch")
            equal = measure_equality(detector, read_bundle(partial), engine)
            for entry, equality in zip(description["depths"], equal.values(), strict=True):
                entry["equality"] = {"engine": engine, **equality.to_dict()}
            write_description(partial, description)
    return read_bundle(folder)


def graph_name(depth: DepthConfig) -> str:
    """Return the name of the file of a depth.

    Example:
        >>> graph_name(DepthConfig((True, False), None, "1/2"))
        '1-2.onnx'
    """
    return f"{str(depth).replace('/', '-')}.onnx"


def _check(
    detector: Detector,
    depths: Sequence[DepthConfig],
    folder: Path,
    category_ids: Sequence[int] | None,
    curve: DepthCurve | None,
    batch: int | None,
    engine: str | None,
) -> None:
    """Check everything before graphs are exported, which takes a minute each.

    Raises:
        ExportError: Something cannot be exported.
        EngineError: The engine is unknown or not installed.
    """
    if batch is not None and batch < 1:
        raise ExportError(f"got batch={batch}, expected a number of images from 1, or null for any number")
    if engine is not None:
        check_engine(engine)
    if not depths:
        raise ExportError("got no depth to export, expected at least one")
    if detector.selection is None:
        raise ExportError(
            f"{type(detector).__name__} does not state how its detections are selected; define its "
            "`candidates` and `selection`, see the documentation on extending"
        )
    if category_ids is not None and not len(set(category_ids)) == len(category_ids) == detector.num_classes:
        raise ExportError(
            f"got {len(category_ids)} category ids, {len(set(category_ids))} of them different, expected "
            f"one for each of the {detector.num_classes} classes"
        )
    if curve is not None:
        _check_curve(curve, detector)
    check_folder(folder)


def _check_curve(curve: DepthCurve, detector: Detector) -> None:
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    stages = detector.depth_space.stages
    if curve.parameters != parameters or any(tuple(row.refine) != stages for row in curve.rows):
        raise ExportError(
            f"the depth curve is of a {curve.detector} with {curve.parameters:,} parameters, the export of a "
            f"detector with {parameters:,}; give the curve of these weights, or none (curve=null)"
        )
    if tuple(curve.input_size) != tuple(detector.input_size):
        raise ExportError(
            f"the depth curve was measured at {curve.input_size} pixels, the export is for "
            f"{detector.input_size}; evaluate at this size, or leave the curve out (curve=null)"
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder whose replacement would lose anything but a bundle."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder}: a file; give another output")
    if folder.is_mount() or Path.cwd().is_relative_to(folder):
        raise ExportError(
            f"{folder}: the working directory or a disk cannot be replaced; give a folder below it"
        )
    others = {path.name for path in folder.iterdir()} - _LEFTOVERS if folder.is_dir() else set()
    if DESCRIPTION in others:
        try:
            others -= {DESCRIPTION, *read_bundle(folder).files}
        except BundleError as error:
            raise ExportError(
                f"{folder}: holds a {DESCRIPTION} that is not of a bundle ({error}); give a new folder"
            ) from error
    if others:
        raise ExportError(
            f"{folder}: holds {join_few(sorted(others), 3)}, which is not of a bundle; give a new folder, "
            "because an export replaces all that is in it"
        )


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Provide a hidden folder beside ``folder`` that takes its place at the end, unless there is an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (
        folder.parent / f".{folder.name}.{os.getpid()}.{kind}" for kind in ("partial", "former")
    )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        try:
            if folder.exists():
                folder.replace(former)
            partial.replace(folder)
        except BaseException:
            # Also after Ctrl-C between the two: what was there comes back.
            if former.exists() and not folder.exists():
                former.replace(folder)
            raise
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _depth_entry(
    detector: Detector, depth: DepthConfig, graph: str, curve: DepthCurve | None
) -> dict[str, Any]:
    cost = count_depth(detector, depth)
    space = detector.depth_space
    return {
        "depth": str(depth),
        "refine": dict(zip(space.stages, depth.refine, strict=True)),
        "decoder_layers": depth.decoder_layers,
        "graph": graph,
        "gmacs": cost.macs / 1e9,
        "parameters": cost.parameters_run,
        "figures": _figures(space, depth, curve),
        "measurements": [],
        "equality": {},
    }


def _figures(space: DepthSpace, depth: DepthConfig, curve: DepthCurve | None) -> dict[str, float]:
    for row in curve.rows if curve else ():
        if space.config(list(row.refine.values()), row.decoder_layers) == depth:
            return {name: value for name, value in row.figures.items() if value >= 0}
    return {}


def _describe(
    detector: Detector, depths: Sequence[Mapping[str, Any]], category_ids: Sequence[int], batch: int | None
) -> dict[str, Any]:
    space, selection = detector.depth_space, detector.selection
    assert selection is not None
    costs = space.costs
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "detector": {
            "name": str(detector.config.get("name", type(detector).__name__)),
            "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        },
        "depth_space": {
            "stages": list(space.stages),
            "decoder_layers": space.decoder_layers,
            "minimal_decoder_layers": space.minimal_decoder_layers,
            "costs": {"refinements": list(costs.refinements), "decoder_layer": costs.decoder_layer},
        },
        "class_names": list(detector.class_names),
        "category_ids": list(category_ids),
        "input": {
            "name": "images",
            "layout": "BCHW",
            "type": "float32",
            "colour_order": "RGB",
            "range": [0.0, 1.0],
            "size": list(detector.input_size),
            "fit": detector.fit,
            "letter_box_grey": 114,
            "resize": "bilinear",
            "antialias": True,
            "batch": batch,
        },
        "output": {
            "names": list(OUTPUTS),
            "meaning": {
                "boxes": "[B, N, 4] x1, y1, x2, y2 of the input, see normalised_boxes",
                "scores": "[B, N, K] score of each class, 0 to 1",
            },
            "normalised_boxes": _has_normalised_boxes(detector, space.minimal),
            "clips_boxes": detector.clips_boxes,
            "selection": selection_to_dict(selection),
        },
        "depths": list(depths),
        "versions": {"anydepth": package_version(), **{name: version(name) for name in _PACKAGES}},
    }


def _has_normalised_boxes(detector: Detector, depth: DepthConfig) -> bool:
    with evaluating(detector) as network:
        images = torch.zeros(1, 3, *detector.input_size)
        return network.candidates(network(images, depth=depth)).normalised


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write ``bundle.json``, and the model card that is made of it."""
    _write_json(folder, description)
    card = folder / CARD
    card.write_text(model_card(read_bundle(folder)), encoding="utf-8")
    description["files"][CARD] = file_entry(card)
    _write_json(folder, description)


def _write_json(folder: Path, description: Mapping[str, Any]) -> None:
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2, allow_nan=False) + "\n")


def file_entry(path: Path) -> dict[str, object]:
    """Return what the description says of a file: its size and hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
