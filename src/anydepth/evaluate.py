"""``anydepth-evaluate``: the depth curve of saved weights, or of a bundle in an engine, on a data set."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig
from rich import get_console

from anydepth import zoo
from anydepth.config.compose import check_config, entry_point, instantiate
from anydepth.data.coco.layout import SPLIT_NAMES
from anydepth.data.datamodule import DetectionDataModule
from anydepth.deploy.evaluation import evaluate_bundle, record_figures
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.runtime.hub_bundle import find_weights_or_bundle
from anydepth.deploy.task import AUTO, check_weights_engine, limited_threads, open_bundle
from anydepth.detector import Detector
from anydepth.evaluation.classes import category_ids_of
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.evaluation.device import autocast, resolve_device
from anydepth.results.coco_results import results_name, write_results
from anydepth.results.depth_curve import print_depth_curve, write_depth_curve
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job, summarize_ap
from anydepth.runs.provenance import write_provenance
from anydepth.utils.console import print_lines
from anydepth.weights.figures import COMPILED

WEIGHTS_DEPTHS: Final = ("full", "3/4", "1/2", "minimal")
"""Depths of weights if none are given."""


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate weights or a bundle at several depths, and write and print their depth curve.

    Args:
        cfg: Configuration composed from ``conf/evaluate.yaml``.

    Returns:
        The COCO figures as ``DEPTH/FIGURE``, and the objects of the run by name: ``detector``, ``data``,
        ``curve`` and ``files`` (by suffix, and results files by depth). A split without ground truth has no
        figures.

    Raises:
        ValueError: A setting, a file or a data set that cannot be used; the message says what to change.
    """
    config = check_config(cfg, "evaluate")
    if config["split"] not in SPLIT_NAMES:
        raise ValueError(f"split={config['split']}: allowed are {', '.join(SPLIT_NAMES)}")
    check_output(config["output"])
    given = config["weights"]
    weights = find_weights_or_bundle(given, config["engine"]) if given else None
    with limited_threads(cfg.threads):
        if weights is not None and weights.is_dir():
            return _run_bundle(cfg.copy(), config, weights)
        return _run_weights(cfg.copy(), config, weights)


def _run_weights(
    cfg: DictConfig, config: dict[str, Any], weights: Path | None
) -> tuple[dict[str, float], dict[str, Any]]:
    detector = zoo.load_for_evaluation(weights, config["input_size"])
    if weights is not None:
        check_weights_engine(weights, config["engine"])
    if config["record"]:
        raise ValueError(f"record=true writes AP into a bundle, but {weights} is a file of weights")
    compiled = config["engine"] == COMPILED
    device = resolve_device(cfg.device)
    # On the device and in the precision of the evaluation, under which measurements count for budgets.
    with autocast(device, cfg.precision):
        depths = detector.to(device).resolve_list(
            WEIGHTS_DEPTHS if config["depths"] == "auto" else config["depths"],
            specialised=cfg.specialised,
            compiled=compiled,
        )
    subject = _Subject(cfg, detector.input_size, detector.fit, detector.class_names)
    curve = evaluate_depths(
        detector,
        subject.data.eval_dataloader(cfg.split),
        subject.evaluator,
        depths,
        device=device,
        precision=cfg.precision,
        latency_repetitions=cfg.latency.repetitions if subject.index.has_objects else 0,
        latency_batch_size=cfg.latency.batch_size,
        specialised=cfg.specialised,
        compiled=compiled,
    )
    return _write(cfg, config, subject, curve, detector)


def _run_bundle(
    cfg: DictConfig, config: dict[str, Any], folder: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    engine = {name: config[name] for name in ("engine", "device", "precision", "threads", "trust_code")}
    detector = open_bundle(folder, **engine)
    if config["specialised"] or config["input_size"] not in (None, list(detector.input_size)):
        raise ValueError(
            f"got specialised={config['specialised']} and input_size={config['input_size']}, expected "
            f"neither: each depth of the bundle {folder} is a network of its own for "
            f"{list(detector.input_size)} pixels"
        )
    depths = config["depths"]
    every = depths in ("auto", "ladder", "all")
    listed = detector.depths if every else [depths] if isinstance(depths, str) else list(map(str, depths))
    bundle = detector.bundle
    subject = _Subject(cfg, bundle.input.size, bundle.input.fit, bundle.class_names)
    if config["record"] and not subject.index.has_objects:
        raise EvaluationError(f"{subject.index.json_path}: no annotations, so there is no AP to record")
    curve = evaluate_bundle(detector, subject.data.eval_dataloader(cfg.split), subject.evaluator, listed)
    if config["precision"] == AUTO:  # What the engine chose is not known.
        curve = replace(curve, precision=AUTO)
    written = _write(cfg, config, subject, curve, detector)
    if config["record"]:
        record_figures(bundle, curve)
        print_lines(f"recorded  in {folder}")
    return written


class _Subject:
    """Data and evaluator for a detector.

    Args:
        cfg: Configuration; what a detector decides is set in it.
        input_size: (height, width) in pixels.
        fit: How images are fitted to it.
        class_names: One name per class.

    Raises:
        EvaluationError: The data set has other classes, or no annotations although no results are written.
    """

    def __init__(
        self, cfg: DictConfig, input_size: tuple[int, int], fit: str, class_names: tuple[str, ...]
    ) -> None:
        cfg.data.input_size, cfg.data.fit = list(input_size), fit
        self.data: DetectionDataModule = instantiate(cfg.data)
        self.index = self.data.index(cfg.split)
        if not self.index.has_objects and not cfg.results:
            raise EvaluationError(
                f"{self.index.json_path}: holds no annotations to evaluate against (crowd regions do not "
                "count); results=true writes the detections for an evaluation server"
            )
        self.evaluator = CocoEvaluator(
            ground_truth=self.index.to_coco_dict(),
            category_ids=category_ids_of(class_names, self.index.categories),
            backend=cfg.backend,
        )


def _write(
    cfg: DictConfig,
    config: dict[str, Any],
    subject: _Subject,
    curve: DepthCurve,
    detector: Detector | DeployedDetector,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Write and print the curve; return what the command returns."""
    has_truth = subject.index.has_objects
    files = write_depth_curve(curve, cfg.output) if has_truth else {}
    if cfg.results:
        files |= _write_results(subject.evaluator, curve, subject.index.json_path, Path(cfg.output))
    write_provenance(cfg.output, config)
    console = get_console()
    if has_truth:
        print_depth_curve(curve, console)
    print_lines(*files.values(), console=console)
    metrics = {
        f"{row.depth}/{name}": value
        for row in (curve.rows if has_truth else ())
        for name, value in row.figures.items()
    }
    return metrics, {"detector": detector, "data": subject.data, "curve": curve, "files": files}


def _write_results(
    evaluator: CocoEvaluator, curve: DepthCurve, json_path: Path, folder: Path
) -> dict[str, Path]:
    """Write the detections of each depth in COCO's results format; return the files by depth."""
    return {
        row.depth: write_results(
            evaluator.result_rows(row.depth), folder / results_name(json_path, curve.detector, row.depth)
        )
        for row in curve.rows
    }


@entry_point("evaluate", positional="weights")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-evaluate``."""
    return run_job(cfg, run, summarize_ap)


if __name__ == "__main__":
    main()
