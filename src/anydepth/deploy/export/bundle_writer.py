"""Writing a bundle: graphs, weights, description and model card, all or nothing."""

import functools
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, Final

import onnx_ir as ir
import torch

from anydepth.deploy.export.aot import check_compiler, write_package
from anydepth.deploy.export.card import model_card
from anydepth.deploy.export.equality import measure_equality
from anydepth.deploy.export.graph import ExportError, export_graph, shorten_names
from anydepth.deploy.export.one_graph import merge_graphs
from anydepth.deploy.export.openvino_graph import to_openvino, write_openvino
from anydepth.deploy.export.selection_graph import MEANING, append_selection
from anydepth.deploy.export.weights_file import WeightsFile, weights_file
from anydepth.deploy.routing.features import pooled_maps
from anydepth.deploy.runtime.bundle import (
    CARD,
    DESCRIPTION,
    FORMAT,
    FORMAT_VERSION,
    GRAPH_SUFFIXES,
    LICENSE_ID,
    MAX_GRID,
    WEIGHTS,
    Bundle,
    BundleError,
    read_bundle,
)
from anydepth.deploy.runtime.engines import check_engine, check_graphs, choose_engine
from anydepth.deploy.runtime.engines.base import FEATURES, OUTPUTS
from anydepth.depth import DepthConfig, DepthSpace
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.cost import count_depth
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.selection import selection_to_dict
from anydepth.utils.files import write_text
from anydepth.utils.messages import join_few, short_repr
from anydepth.utils.version import package_version

# What Hydra and a multirun leave in the folder of an export.
_LEFTOVERS = {"export.log", "outcome.json"}
_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir")
_ONE_GRAPH: Final = "depths"
# Held while a complete folder takes its place: exports of several threads may have the same one.
_REPLACING = Lock()


def write_bundle(
    detector: Detector,
    depths: Sequence[DepthConfig],
    folder: str | Path,
    *,
    batch: int | None = None,
    category_ids: Sequence[int] | None = None,
    curve: DepthCurve | None = None,
    engine: str | None = "auto",
    feature_grid: int | None = None,
    graph: str = "each",
    graph_format: str = "onnx",
    license_id: str | None = None,
    selection: str = "runtime",
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
        engine: Engine whose results are compared with PyTorch's; ``auto``: the usual one for the format;
            None: no comparison.
        feature_grid: Side G of a grid: graphs return the feature maps of backbone and neck, too, averaged
            over its cells, as a router of maps needs them; None: they do not.
        graph: ``each``: every depth has a graph; ``one``: one graph has all depths, see
            :func:`anydepth.deploy.export.one_graph.merge_graphs`.
        graph_format: ``onnx``; ``openvino`` for graphs in OpenVINO's own format; or ``torch`` for machine
            code for this processor, see :func:`anydepth.deploy.export.aot.write_package`.
        license_id: Licence of the weights for the model card, as the hub names it; None: none is stated.
        selection: ``runtime``: graphs end at the candidates, among which this package selects detections;
            ``graph``: graphs return detections, see
            :func:`anydepth.deploy.export.selection_graph.append_selection`.
        on_step: Function that is called with each step as it begins, because an export takes minutes.

    Returns:
        The bundle, with the differences between engine and PyTorch in its depths.

    Raises:
        EngineError: The engine is not installed, or cannot open a graph. Nothing was written.
        ExportError: A detector that cannot be exported, a folder that holds something else, or a curve of
            another detector. Nothing was written.
    """
    folder, depths = Path(folder).resolve(), list(dict.fromkeys(depths))
    if graph not in ("each", "one"):
        raise ExportError(f"got graph={graph!r}, expected each or one")
    if graph_format not in GRAPH_SUFFIXES:
        raise ExportError(f"got format={graph_format!r}, expected {' or '.join(GRAPH_SUFFIXES)}")
    if engine is not None:
        engine = choose_engine(engine, graph_format)
        check_engine(engine)
        check_graphs(engine, graph_format, "fp32")
    if graph_format == "openvino":
        check_engine("openvino")
    if selection not in ("runtime", "graph"):
        raise ExportError(f"got selection={selection!r}, expected runtime or graph")
    if graph_format == "torch":
        check_compiler()
        if (graph, selection) != ("each", "runtime"):
            raise ExportError(
                f"got graph={graph} and selection={selection} with format=torch, expected each and runtime: "
                "other graphs are of format=onnx and openvino"
            )
    if feature_grid is not None and not 1 <= feature_grid <= MAX_GRID:
        raise ExportError(f"got feature_grid={feature_grid}, expected 1 to {MAX_GRID}, or null for none")
    _check(detector, depths, folder, category_ids, curve, batch, engine)
    _check_license(license_id)
    ids = list(category_ids or range(1, detector.num_classes + 1))
    finish = _selecting(detector) if selection == "graph" else lambda model: None
    with replaced_folder(folder) as partial:
        entries = [_depth_entry(detector, depth, curve) for depth in depths]
        with weights_file(partial / WEIGHTS) as weights:
            models = _exported(detector, depths, batch, feature_grid, on_step)
            if graph_format == "torch":
                for number, (depth, entry) in enumerate(zip(depths, entries, strict=True), start=1):
                    on_step(f"compiles  {depth} ({number} of {len(depths)})")
                    entry["graph"] = graph_name(depth, graph_format)
                    path = partial / entry["graph"]
                    write_package(detector, depth, path, weights, batch=batch, grid=feature_grid)
            elif graph == "one":
                _write_one_graph(models, entries, partial, weights, graph_format, finish, on_step)
            else:
                for depth, model, entry in zip(depths, models, entries, strict=True):
                    entry["graph"] = graph_name(depth, graph_format)
                    finish(model)
                    _write_graph(model, partial / entry["graph"], weights)
        description = {**_describe(detector, entries, ids, batch), "license": license_id}
        description["graph_format"] = graph_format
        if graph_format == "openvino":
            description["versions"]["openvino"] = version("openvino")
        if selection == "graph":
            description["output"] |= {"names": [*MEANING], "meaning": MEANING}
            description["output"] |= {"selects": True, "normalised_boxes": False}
        if feature_grid is not None:
            _describe_features(description["output"], detector, feature_grid)
        description["files"] = {path.name: file_entry(path) for path in sorted(partial.iterdir())}
        write_description(partial, description)
        if engine is not None:
            on_step(f"compares  {engine} with PyTorch")
            equal = measure_equality(detector, read_bundle(partial), engine)
            for entry, equality in zip(description["depths"], equal.values(), strict=True):
                entry["equality"] = {"engine": engine, **equality.to_dict()}
            write_description(partial, description)
    return read_bundle(folder)


def _exported(
    detector: Detector,
    depths: Sequence[DepthConfig],
    batch: int | None,
    feature_grid: int | None,
    on_step: Callable[[str], object],
) -> Iterator[ir.Model]:
    for number, depth in enumerate(depths, start=1):
        on_step(f"exports   {depth} ({number} of {len(depths)})")
        yield export_graph(detector, depth, batch=batch, grid=feature_grid)


def _selecting(detector: Detector) -> Callable[[ir.Model], None]:
    """Return a function that lets a graph of a detector select detections."""
    selection = detector.selection
    assert selection is not None
    return functools.partial(
        append_selection,
        selection=selection,
        normalised=_has_normalised_boxes(detector, detector.depth_space.minimal),
        input_size=detector.input_size,
    )


def _write_one_graph(
    models: Iterable[ir.Model],
    entries: Sequence[dict[str, Any]],
    folder: Path,
    weights: WeightsFile,
    graph_format: str,
    finish: Callable[[ir.Model], None],
    on_step: Callable[[str], object],
) -> None:
    """Write one graph of all depths, and its name and their numbers into their entries."""
    # The largest first, in which the others are found.
    pairs = sorted(zip(models, entries, strict=True), key=lambda pair: -pair[1]["gmacs"])
    on_step(f"merges    {len(pairs)} depths")
    model = merge_graphs([model for model, _ in pairs])
    shorten_names(model)
    finish(model)
    for number, (_, entry) in enumerate(pairs):
        entry.update(graph=f"{_ONE_GRAPH}{GRAPH_SUFFIXES[graph_format]}", number=number)
    _write_graph(model, folder / entry["graph"], weights)


def _write_graph(model: ir.Model, path: Path, weights: WeightsFile) -> None:
    if path.suffix == GRAPH_SUFFIXES["openvino"]:
        write_openvino(to_openvino(model), path, weights)
        return
    weights.move_from(model)
    path.write_bytes(ir.to_proto(model).SerializeToString())


def graph_name(depth: DepthConfig, graph_format: str = "onnx") -> str:
    """Return the name of the file of a depth.

    Example:
        >>> graph_name(DepthConfig((True, False), None, "1/2"))
        '1-2.onnx'
    """
    return f"{str(depth).replace('/', '-')}{GRAPH_SUFFIXES[graph_format]}"


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
            "`candidates` and `selection`, see 'A whole family' in docs/extend.md"
        )
    if category_ids is not None and not len(set(category_ids)) == len(category_ids) == detector.num_classes:
        raise ExportError(
            f"got {len(category_ids)} category ids, {len(set(category_ids))} of them different, expected "
            f"one for each of the {detector.num_classes} classes"
        )
    if curve is not None:
        _check_curve(curve, detector)
    check_folder(folder)


def _check_license(license_id: str | None) -> None:
    if license_id is not None and not LICENSE_ID.fullmatch(license_id):
        raise ExportError(
            f"got license={short_repr(license_id)}, expected an identifier in small letters such as "
            "apache-2.0"
        )


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
    # Other exports may be under way here, in this process too.
    stem = f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}"
    partial, former = (folder.parent / f"{stem}.{kind}" for kind in ("partial", "former"))
    partial.mkdir()
    try:
        yield partial
        with _REPLACING:
            try:
                if folder.exists():
                    folder.replace(former)
                partial.replace(folder)
            except BaseException:
                # Also after Ctrl-C between the two: what was there comes back.
                if former.exists() and not folder.exists():
                    former.replace(folder)
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)


def _depth_entry(detector: Detector, depth: DepthConfig, curve: DepthCurve | None) -> dict[str, Any]:
    cost = count_depth(detector, depth)
    space = detector.depth_space
    return {
        "depth": str(depth),
        "refine": dict(zip(space.stages, depth.refine, strict=True)),
        "decoder_layers": depth.decoder_layers,
        "graph": "",
        "number": None,
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


def _describe_features(output: dict[str, Any], detector: Detector, grid: int) -> None:
    """Add the feature maps that graphs return to the description of their outputs."""
    with evaluating(detector) as network:
        images = torch.zeros(1, 3, *detector.input_size)
        maps = pooled_maps(network(images, depth=detector.depth_space.minimal), grid)
    output["names"] += [FEATURES[name] for name in maps]
    about = f"[B, C, {grid}, {grid}] means over cells, finest map first, of the"
    output["meaning"] = {**output["meaning"], **{FEATURES[name]: f"{about} {name}" for name in maps}}
    output["features"] = {"grid": grid, "channels": {name: maps[name].shape[1] for name in maps}}


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
