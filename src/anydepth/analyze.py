"""``anydepth-analyze``: compatibility of features between depths, and AP of every depth configuration."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich import get_console

from anydepth import zoo
from anydepth.config.compose import check_config, entry_point, instantiate
from anydepth.data.coco.fingerprint import fingerprint
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.layout import SPLIT_NAMES
from anydepth.data.datamodule import DetectionDataModule
from anydepth.detector import Detector
from anydepth.evaluation.classes import category_ids_of
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.compatibility import Compatibility, measure_compatibility
from anydepth.evaluation.curve_analysis import CurveAnalysis, analyze_curve
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.evaluation.depth_parts import evaluate_in_parts
from anydepth.evaluation.device import autocast, resolve_device
from anydepth.evaluation.stage_features import FirstImages
from anydepth.results.compatibility import print_compatibility, write_compatibility
from anydepth.results.curve_analysis import print_curve_analysis
from anydepth.results.curve_parts import CurveParts
from anydepth.results.depth_curve import write_depth_curve
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job, summarize_ap
from anydepth.runs.provenance import write_provenance
from anydepth.structures import Batch
from anydepth.utils.command_line import setting
from anydepth.utils.console import print_lines
from anydepth.utils.files import write_text


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Analyze saved weights; write and print the results.

    Args:
        cfg: Configuration composed from ``conf/analyze.yaml``.

    Returns:
        Figures by name (``STAGE/DEPTH/MEASURE``, and ``DEPTH/AP`` of the curve), and the objects of the run
        by name: ``detector``, ``data``, ``compatibility``, ``curve`` and ``analysis`` (None if not
        requested), and ``files`` by description.

    Raises:
        ValueError: A setting, a file or a data set that cannot be used; the message says what to change.
    """
    config = check_config(cfg, "analyze")
    _check(config)
    check_output(config["output"])
    detector = zoo.load_for_evaluation(config["weights"], config["input_size"])
    detector.resolve_list(config["compatibility"]["depths"])
    device = resolve_device(cfg.device)
    cfg = cfg.copy()
    cfg.data.input_size = list(detector.input_size)
    cfg.data.fit = detector.fit
    data: DetectionDataModule = instantiate(cfg.data)
    parts = evaluator = None
    if config["curve"] == "all":
        evaluator = _evaluator(config, detector, data)
        depends_on = _dependencies(config, detector, data.index(config["split"]), device)
        parts = CurveParts(Path(config["output"]) / "depth_curve_parts", depends_on)
    objects: dict[str, Any] = {"detector": detector, "data": data, "compatibility": None}
    objects |= {"curve": None, "analysis": None, "files": {}}
    if config["compatibility"]["images"]:
        objects["compatibility"] = _compare_features(config, detector, data, device)
        objects["files"] |= _write_compatibility(config, objects["compatibility"])
    write_provenance(config["output"], config)
    if parts is not None and evaluator is not None:
        curve = _evaluate_all(config, detector, data, evaluator, parts, device)
        paths = write_depth_curve(curve, config["output"], "depth_curve_all")
        objects["files"] |= {f"depth curve ({suffix})": path for suffix, path in paths.items()}
        objects |= {"curve": curve, "analysis": analyze_curve(curve, detector.depth_space)}
        print_curve_analysis(objects["analysis"], get_console())
    objects["files"]["analysis"] = _write_analysis(config, objects["compatibility"], objects["analysis"])
    lines = [f"{name:20} {path}" for name, path in objects["files"].items()]
    print_lines(*lines)
    return _figures(objects["compatibility"], objects["curve"]), objects


def _check(config: Mapping[str, Any]) -> None:
    if config["split"] not in SPLIT_NAMES:
        raise ValueError(f"split={config['split']}: allowed are {', '.join(SPLIT_NAMES)}")
    if config["curve"] not in (None, "all"):
        raise ValueError(f"curve={config['curve']}: allowed are null, and all for every configuration")
    if config["chunk"] < 1:
        raise ValueError(f"chunk={config['chunk']}: allowed are 1 and above")
    images = config["compatibility"]["images"]
    if images < 0 or images == 1:
        raise ValueError(f"compatibility.images={images}: give 2 or more, or 0 to leave compatibility out")
    if config["curve_images"] is not None and config["curve_images"] < 1:
        raise ValueError(f"curve_images={config['curve_images']}: give 1 or more, or null for all of them")
    if not images and config["curve"] is None:
        raise ValueError("nothing to do: give compatibility.images above 1, or curve=all")
    # Raises for an unknown precision before any work.
    autocast(torch.device("cpu"), config["precision"])


def _compare_features(
    config: Mapping[str, Any], detector: Detector, data: DetectionDataModule, device: torch.device
) -> Compatibility:
    found = measure_compatibility(
        detector,
        data.eval_dataloader(config["split"]),
        config["compatibility"]["depths"],
        images=config["compatibility"]["images"],
        positions=config["compatibility"]["positions"],
        device=device,
        precision=config["precision"],
    )
    print_compatibility(found, get_console())
    return found


def _write_compatibility(config: Mapping[str, Any], found: Compatibility) -> dict[str, Path]:
    paths = write_compatibility(found, config["output"])
    return {f"compatibility ({suffix})": path for suffix, path in paths.items()}


def _evaluator(config: Mapping[str, Any], detector: Detector, data: DetectionDataModule) -> CocoEvaluator:
    index = data.index(config["split"])
    if not index.has_objects:
        raise EvaluationError(
            f"{index.json_path}: holds no annotations to evaluate against (crowd regions do not count); give "
            "curve=null or another split"
        )
    return CocoEvaluator(
        ground_truth=index.to_coco_dict(),
        category_ids=category_ids_of(detector.class_names, index.categories),
        backend=config["backend"],
    )


def _evaluate_all(
    config: Mapping[str, Any],
    detector: Detector,
    data: DetectionDataModule,
    evaluator: CocoEvaluator,
    parts: CurveParts,
    device: torch.device,
) -> DepthCurve:
    depths = list(detector.depth_space.all())
    done = parts.load()
    remaining = len(depths) - sum(len(part.rows) for part in done)
    print_lines(
        f"{len(depths)} configurations, {remaining} of them to evaluate; if interrupted, the same command "
        f"with {setting('output', config['output'])} resumes"
    )
    loader: Iterable[Batch] = data.eval_dataloader(config["split"])
    if config["curve_images"] is not None:
        loader = FirstImages(loader, config["curve_images"])
    return evaluate_in_parts(
        detector,
        loader,
        evaluator,
        depths,
        chunk=config["chunk"],
        done=done,
        on_part=parts.add,
        device=device,
        precision=config["precision"],
    )


def _dependencies(
    config: Mapping[str, Any], detector: Detector, index: CocoIndex, device: torch.device
) -> dict[str, str]:
    """Return everything that the figures of the curve depend on; parts with other values are refused."""
    assert detector.weights_file is not None, "anydepth.load sets it"
    with detector.weights_file.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "weights": weights,
        "data": fingerprint([index]),
        "split": config["split"],
        "input_size": str(list(detector.input_size)),
        "curve_images": str(config["curve_images"]),
        "precision": config["precision"],
        "batch_size": str(config["batch_size"]),
        "backend": config["backend"],
        "device": device.type,
        "boxes_clipped": str(detector.clips_boxes),
        "anydepth": version("anydepth"),
    }


def _write_analysis(
    config: Mapping[str, Any], compatibility: Compatibility | None, analysis: CurveAnalysis | None
) -> Path:
    path = Path(config["output"]) / "analysis.json"
    found = {
        "weights": str(config["weights"]),
        "split": config["split"],
        "compatibility": None if compatibility is None else asdict(compatibility),
        "curve": None if analysis is None else asdict(analysis),
    }
    write_text(path, json.dumps(found, indent=2) + "\n")
    return path


def _figures(compatibility: Compatibility | None, curve: DepthCurve | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in compatibility.rows if compatibility else ():
        figures |= {f"{row.stage}/{row.depth}/{name}": value for name, value in row.values.items()}
    return figures | {f"{row.depth}/AP": row.figures["AP"] for row in (curve.rows if curve else ())}


@entry_point("analyze", positional="weights")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-analyze``."""
    return run_job(cfg, run, summarize_ap)


if __name__ == "__main__":
    main()
