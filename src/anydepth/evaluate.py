"""``anydepth-evaluate``: the depth curve of saved weights on a data set."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich import get_console

from anydepth import zoo
from anydepth.config.compose import check_config, entry_point, instantiate
from anydepth.data.coco.layout import SPLIT_NAMES
from anydepth.data.datamodule import DetectionDataModule
from anydepth.evaluation.classes import category_ids_of
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.evaluation.device import resolve_device
from anydepth.results.coco_results import results_name, write_results
from anydepth.results.depth_curve import print_depth_curve, write_depth_curve
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job, summarize_ap
from anydepth.runs.provenance import write_provenance
from anydepth.utils.console import print_lines


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate saved weights at several depths, and write and print their depth curve.

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
    detector = zoo.load_for_evaluation(config["weights"], config["input_size"])
    depths = detector.depth_space.parse_list(config["depths"])
    device = resolve_device(cfg.device)
    cfg = cfg.copy()
    cfg.data.input_size = list(detector.input_size)
    cfg.data.fit = detector.fit
    data: DetectionDataModule = instantiate(cfg.data)
    index = data.index(cfg.split)
    has_truth = index.has_objects
    if not has_truth and not cfg.results:
        raise EvaluationError(
            f"{index.json_path}: holds no annotations to evaluate against (crowd regions do not count); "
            "results=true writes the detections for an evaluation server"
        )
    evaluator = CocoEvaluator(
        ground_truth=index.to_coco_dict(),
        category_ids=category_ids_of(detector.class_names, index.categories),
        backend=cfg.backend,
    )
    curve = evaluate_depths(
        detector,
        data.eval_dataloader(cfg.split),
        evaluator,
        depths,
        device=device,
        precision=cfg.precision,
        latency_repetitions=cfg.latency.repetitions if has_truth else 0,
        latency_batch_size=cfg.latency.batch_size,
        specialised=cfg.specialised,
    )
    files = write_depth_curve(curve, cfg.output) if has_truth else {}
    if cfg.results:
        files |= _write_results(evaluator, curve, index.json_path, Path(cfg.output))
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
    return metrics, {"detector": detector, "data": data, "curve": curve, "files": files}


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
