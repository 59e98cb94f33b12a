"""``anydepth-evaluate``: the depth curve of saved weights on a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich import get_console

from anydepth import runtime, zoo
from anydepth.data.categories import Categories
from anydepth.data.datamodule import DetectionDataModule
from anydepth.data.layout import SPLIT_NAMES
from anydepth.detector import Detector
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.evaluation.device import resolve_device
from anydepth.report.coco_results import results_name, write_results
from anydepth.report.tables import print_depth_curve, write_depth_curve

# Detections of classes that the data set does not have count neither for nor against a detector.
_NO_CATEGORY = -1


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate saved weights at several depths, and write and print their depth curve.

    Args:
        cfg: What ``conf/evaluate.yaml`` composes to.

    Returns:
        The COCO figures as ``DEPTH/FIGURE``, and the objects of the run by name: ``detector``, ``data``,
        ``curve`` and ``files`` (paths by suffix, and of the results by depth). Of a split without ground
        truth there are no figures.

    Raises:
        ValueError: A setting, a file or a data set that cannot be used; the message says what to change.
    """
    config = runtime.plain(cfg)
    if config["split"] not in SPLIT_NAMES:
        raise ValueError(f"split={config['split']}: allowed are {', '.join(SPLIT_NAMES)}")
    detector = _load(config)
    depths = detector.depth_space.parse_list(config["depths"])
    device = resolve_device(cfg.device)
    cfg = cfg.copy()
    cfg.data.input_size = list(detector.input_size)
    cfg.data.fit = detector.fit
    data: DetectionDataModule = runtime.instantiate(cfg.data)
    index = data.index(cfg.split)
    has_truth = len(index.labels) > 0
    if not has_truth and not cfg.results:
        raise EvaluationError(
            f"{index.json_path}: holds no annotations, so there is nothing to compare with; results=true "
            "writes the detections for an evaluation server"
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
    )
    files = write_depth_curve(curve, cfg.output) if has_truth else {}
    if cfg.results:
        files |= _write_results(evaluator, curve, index.json_path, Path(cfg.output))
    runtime.write_provenance(cfg.output, config)
    console = get_console()
    if has_truth:
        print_depth_curve(curve, console)
    console.print(*files.values(), sep="\n", highlight=False, soft_wrap=True)
    metrics = {
        f"{row.depth}/{name}": value
        for row in (curve.rows if has_truth else ())
        for name, value in row.figures.items()
    }
    return metrics, {"detector": detector, "data": data, "curve": curve, "files": files}


def _write_results(
    evaluator: CocoEvaluator, curve: DepthCurve, json_path: Path, folder: Path
) -> dict[str, Path]:
    """Files of the detections by depth."""
    return {
        row.depth: write_results(
            evaluator.table(row.depth), folder / results_name(json_path, curve.detector, row.depth)
        )
        for row in curve.rows
    }


def category_ids_of(class_names: Sequence[str], categories: Categories) -> list[int]:
    """The data set's category id of each class of a detector, found by name.

    Raises:
        EvaluationError: The data set has categories that the detector does not know.
    """
    unknown = [name for name in categories.names if name not in class_names]
    if unknown:
        raise EvaluationError(
            f"{categories.source}: the detector does not know {_few(unknown)}; its classes are "
            f"{_few(class_names)}. Choose the data set that the weights were trained for"
        )
    if tuple(class_names) == categories.names:
        return list(categories.ids)
    ids = dict(zip(categories.names, categories.ids, strict=True))
    return [ids.get(name, _NO_CATEGORY) for name in class_names]


def _load(config: Mapping[str, Any]) -> Detector:
    if not config["weights"]:
        raise ValueError("no weights: give weights=FILE, the weights.safetensors of a training run")
    detector = zoo.load(config["weights"])
    if config["input_size"] is not None:
        if len(config["input_size"]) != 2:
            raise ValueError(f"input_size={config['input_size']}: give [height, width] in pixels")
        height, width = config["input_size"]
        detector.input_size = (int(height), int(width))
    return detector


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:10], "..."] if len(names) > 10 else names)


@hydra.main(version_base=runtime.VERSION_BASE, config_path=str(runtime.config_dir()), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Console script ``anydepth-evaluate``."""
    with runtime.friendly_errors():
        run(cfg)


if __name__ == "__main__":
    main()
