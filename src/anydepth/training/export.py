"""Results of a finished training run: its best weights, depth curve, compatibility of features, pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from anydepth.data.datamodule import DetectionDataModule
from anydepth.detector import Detector
from anydepth.evaluation.compatibility import measure_compatibility
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.results.compatibility import write_compatibility
from anydepth.results.depth_curve import write_depth_curve
from anydepth.results.gallery import detect_gallery, draw_gallery
from anydepth.training.checkpointing.last import LastCheckpoint
from anydepth.training.checkpointing.read import detector_weights, read_checkpoint
from anydepth.training.module import DetectionModule


def load_best_weights(detector: Detector, trainer: pl.Trainer) -> dict[str, Path]:
    """Fill the detector with the weights of the best checkpoint, if one was kept.

    Returns:
        Checkpoints by description.
    """
    files: dict[str, Path] = {}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            kind = "best" if callback.monitor else "last"
            files[f"{kind} checkpoint"] = Path(callback.best_model_path)
        if isinstance(callback, LastCheckpoint) and callback.path.is_file():
            files["last checkpoint"] = callback.path
    if "best checkpoint" in files:
        detector.load_state_dict(detector_weights(read_checkpoint(files["best checkpoint"])))
    return files


def export_curve(
    settings: Mapping[str, Any],
    module: DetectionModule,
    data: DetectionDataModule,
    folder: Path,
    device: torch.device,
) -> tuple[dict[str, Path], DepthCurve]:
    """Evaluate the depths of a detector in one pass over the validation images; write all that shows them.

    Args:
        settings: The node ``curve`` of the configuration, with depths.
        module: Module with the detector and its evaluator.
        data: Data of the run.
        folder: Folder of the run.
        device: Device of the evaluation.

    Returns:
        Files by description, and the curve.
    """
    detector = module.detector
    assert module.evaluator is not None
    curve = evaluate_depths(
        detector,
        data.val_dataloader(),
        module.evaluator,
        settings["depths"],
        device=device,
        latency_repetitions=settings["latency_repetitions"],
    )
    files = {f"depth curve ({suffix})": path for suffix, path in write_depth_curve(curve, folder).items()}
    files |= _compare_features(detector, data, settings, folder, device)
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
