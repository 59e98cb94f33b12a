"""What a finished training run leaves: weights, depth curve, compatibility of features, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich import get_console

from anydepth import zoo
from anydepth.data.datamodule import DetectionDataModule
from anydepth.detector import Detector
from anydepth.evaluation.compatibility import measure_compatibility
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.results.compatibility import write_compatibility
from anydepth.results.depth_curve import print_depth_curve, write_depth_curve
from anydepth.results.gallery import detect_gallery, draw_gallery
from anydepth.training.checkpointing.last import LastCheckpoint
from anydepth.training.checkpointing.read import detector_weights, read_checkpoint
from anydepth.training.module import DetectionModule
from anydepth.utils.console import print_lines


def export_results(
    config: Mapping[str, Any], module: DetectionModule, data: DetectionDataModule, trainer: pl.Trainer
) -> tuple[dict[str, Path], DepthCurve | None]:
    """Export the best weights and evaluate their depths in one pass over the validation images.

    Returns:
        Files by description, and the curve if the configuration asks for one.
    """
    folder = Path(config["paths"]["output_dir"])
    detector, settings = module.detector, config["curve"]
    files: dict[str, Path] = {}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            kind = "best" if callback.monitor else "last"
            files[f"{kind} checkpoint"] = Path(callback.best_model_path)
        if isinstance(callback, LastCheckpoint) and callback.path.is_file():
            files["last checkpoint"] = callback.path
    if "best checkpoint" in files:
        detector.load_state_dict(detector_weights(read_checkpoint(files["best checkpoint"])))
    files["weights"] = zoo.save(detector, folder / "weights.safetensors")
    if not settings["depths"]:
        return files, None
    assert module.evaluator is not None
    curve = evaluate_depths(
        detector,
        data.val_dataloader(),
        module.evaluator,
        settings["depths"],
        device=trainer.strategy.root_device,
        latency_repetitions=settings["latency_repetitions"],
    )
    files |= {f"depth curve ({suffix})": path for suffix, path in write_depth_curve(curve, folder).items()}
    files |= _compare_features(detector, data, settings, folder, trainer.strategy.root_device)
    if settings["pictures"]:
        files["pictures"] = folder / "pictures"
        gallery = detect_gallery(
            detector,
            data.source("val"),
            curve,
            files["pictures"],
            count=settings["pictures"],
            threshold=settings["threshold"],
        )
        draw_gallery(gallery, files["pictures"])
    console = get_console()
    print_depth_curve(curve, console)
    print_lines(*(f"{name:20} {path}" for name, path in files.items()), console=console)
    return files, curve


def _compare_features(
    detector: Detector,
    data: DetectionDataModule,
    settings: Mapping[str, Any],
    folder: Path,
    device: torch.device,
) -> dict[str, Path]:
    """Measure how compatible the features of the curve's depths are with full depth, on validation images.

    Returns:
        Files by description; empty if not requested, or if there is nothing to compare.
    """
    images = min(settings["compatibility_images"], len(data.val_index))
    if images < 2 or not detector.depth_space.stages:
        return {}
    loader = data.val_dataloader()
    found = measure_compatibility(detector, loader, settings["depths"], images=images, device=device)
    paths = write_compatibility(found, folder)
    return {f"compatibility ({suffix})": path for suffix, path in paths.items()}
