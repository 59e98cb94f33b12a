"""``anydepth-route``: train the router that chooses between full and minimal depth frame by frame."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig

from anydepth import zoo
from anydepth.config.compose import check_config, entry_point, instantiate
from anydepth.data.coco.layout import SPLIT_NAMES
from anydepth.data.datamodule import DetectionDataModule
from anydepth.deploy.routing.fit import FitSettings, Fitted, fit_router, write_router
from anydepth.deploy.routing.samples import RouteError, Samples, collect_samples
from anydepth.deploy.routing.tradeoff import KeptDetections, TradeOffRow, measure_tradeoff
from anydepth.detector import Detector
from anydepth.evaluation.classes import category_ids_of
from anydepth.evaluation.device import autocast, resolve_device
from anydepth.evaluation.stage_features import FirstImages
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job
from anydepth.runs.provenance import write_provenance
from anydepth.structures import Batch
from anydepth.utils.console import print_lines
from anydepth.utils.files import write_text

FAMILIES: Final = ("detr", "yolo")
REPORT: Final = "route_report.json"


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Collect features and advantages over the training images, train a router, and write it with a report.

    Args:
        cfg: Configuration composed from ``conf/route.yaml``.

    Returns:
        ``pearson`` on the validation images and ``parameters``; and the ``fitted`` router, the ``tradeoff``
        and the ``files``.

    Raises:
        ValueError: A setting, a file or a data set that cannot be used; the message says what to change.
    """
    config = check_config(cfg, "route")
    settings = _check(config)
    check_output(config["output"])
    detector = zoo.load_for_evaluation(config["weights"], config["input_size"])
    if detector.depth_space.full == detector.depth_space.minimal:
        raise RouteError("got a detector of a single depth, expected one whose full and minimal depth differ")
    objective = zoo.build_losses(_losses_of(detector, config["criterion"]))
    cfg = cfg.copy()
    cfg.data.input_size = list(detector.input_size)
    cfg.data.fit = detector.fit
    data: DetectionDataModule = instantiate(cfg.data)
    index = data.index(config["val_split"])
    ids = category_ids_of(detector.class_names, index.categories)
    kept = KeptDetections()
    collected = {
        name: collect_samples(
            detector,
            objective,
            _loader(data, config[f"{name}_split"], config["images"]),
            grid=config["grid"],
            maps=settings.kind != "statistics",
            device=resolve_device(config["device"]),
            precision=config["precision"],
            on_found=kept.add if name == "val" else None,
        )
        for name in ("train", "val")
    }
    fitted = fit_router(collected["train"], collected["val"], settings)
    truth = _only(index.to_coco_dict(), kept.image_ids)
    rows = measure_tradeoff(
        kept, fitted.predicted, collected["val"].advantages, ground_truth=truth, category_ids=ids
    )
    write_provenance(config["output"], config)
    files = _write(config, detector, fitted, collected, rows)
    print_lines(*_table(fitted, collected["val"], rows))
    print_lines(*(f"{name:22} {path}" for name, path in files.items()))
    figures = {"pearson": fitted.pearson, "parameters": float(fitted.parameters)}
    return figures, {"fitted": fitted, "tradeoff": rows, "files": files}


def _check(config: Mapping[str, Any]) -> FitSettings:
    """Check what can be checked before any work."""
    for key in ("train_split", "val_split"):
        if config[key] not in SPLIT_NAMES:
            raise RouteError(f"{key}={config[key]}: allowed are {', '.join(SPLIT_NAMES)}")
    if config["train_split"] == config["val_split"]:
        raise RouteError(f"train_split=val_split={config['val_split']}: the router would be chosen by rote")
    if not 1 <= config["grid"] <= 64:
        raise RouteError(f"grid={config['grid']}: allowed are 1 to 64")
    if config["images"] is not None and config["images"] < 1:
        raise RouteError(f"images={config['images']}: give 1 or more, or null for all of them")
    autocast(resolve_device("cpu"), config["precision"])
    router = config["router"]
    return FitSettings(
        kind=router["kind"],
        groups=tuple(router["groups"]),
        epochs=router["epochs"],
        lr=router["lr"],
        batch_size=router["batch_size"],
        weight_decay=router["weight_decay"],
        seeds=tuple(router["seeds"]),
    )


def _losses_of(detector: Detector, given: str) -> str:
    """Return the losses that are meant: those of the detector's family, if none are given."""
    if given != "auto":
        return given
    for family in FAMILIES:
        if detector.builder.startswith(f"anydepth.{family}."):
            return family
    raise RouteError(f"got a detector of {detector.builder}, whose losses are not known: give criterion=NAME")


def _loader(data: DetectionDataModule, split: Any, images: int | None) -> Iterable[Batch]:
    loader: Iterable[Batch] = data.eval_dataloader(split)
    return loader if images is None else FirstImages(loader, images)


def _only(truth: Mapping[str, Any], image_ids: Sequence[int]) -> dict[str, Any]:
    """Return the ground truth of some images."""
    chosen = set(image_ids)
    return {
        **truth,
        "images": [entry for entry in truth["images"] if entry["id"] in chosen],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] in chosen],
    }


def _write(
    config: Mapping[str, Any],
    detector: Detector,
    fitted: Fitted,
    collected: Mapping[str, Samples],
    rows: Sequence[TradeOffRow],
) -> dict[str, Path]:
    folder = Path(config["output"])
    files = write_router(fitted, folder, {"detector": str(detector.config.get("name", ""))})
    report = {
        "weights": str(config["weights"]),
        "kind": fitted.router.kind,
        "groups": list(fitted.router.groups),
        "parameters": fitted.parameters,
        "pearson": fitted.pearson,
        "epoch": fitted.epoch,
        "seed": fitted.seed,
        "images": {name: len(samples) for name, samples in collected.items()},
        "advantage": {
            name: {"mean": float(found.advantages.mean()), "deviation": float(found.advantages.std())}
            for name, found in collected.items()
        },
        "tradeoff": [asdict(row) for row in rows],
    }
    path = folder / REPORT
    write_text(path, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return {**files, "report": path}


def _table(fitted: Fitted, val: Samples, rows: Sequence[TradeOffRow]) -> list[str]:
    return [
        f"{fitted.router.kind} router of {fitted.parameters:,} parameters: Pearson r {fitted.pearson:.3f} on "
        f"{len(val)} validation images (epoch {fitted.epoch}, seed {fitted.seed}); advantage "
        f"{val.advantages.mean():.3f}, deviation {val.advantages.std():.3f}",
        "share of full   AP: router  chance  true advantage",
        *(
            f"{row.share:13.0%}  {100 * row.router:10.2f}  {100 * row.chance:6.2f}  {100 * row.oracle:14.2f}"
            for row in rows
        ),
    ]


def summarize(figures: Mapping[str, float]) -> str:
    """Return the figures of a training in one line."""
    return f"Pearson r {figures['pearson']:.3f}"


@entry_point("route")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-route``."""
    return run_job(cfg, run, summarize)


if __name__ == "__main__":
    main()
