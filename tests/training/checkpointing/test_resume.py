"""Whole runs through the entry point: resuming, averaged weights, contents of checkpoints and run folders."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig

import anydepth
from anydepth.detector import Detector
from anydepth.evaluation.coco_eval import CocoEvaluator
from anydepth.evaluation.compatibility import Compatibility, measure_compatibility
from anydepth.evaluation.depth_curve import DepthCurve, evaluate_depths
from anydepth.train import run
from anydepth.training.checkpointing.read import CheckpointError, check_resumable, read_checkpoint

Compose = Callable[..., DictConfig]

# Everything that draws random numbers or counts steps: random depths, sizes, denoising, accumulation, cosine.
SETTINGS = (
    "depth_schedule=sandwich",
    "recipe.epochs=2",
    "recipe.multi_scale_sizes=[64,96]",
    "trainer.accumulate_grad_batches=2",
    "trainer.limit_train_batches=4",
    # What is observed of the teaching is part of a checkpoint.
    "teaching.ramp_steps=5",
    "teaching.gate=true",
    "teaching.gate_steps=2",
    "teaching.shares.predictions=0.3",
    "teaching.measure_every=1",
)


class Interruption(pl.Callback):
    """Ends a run in its second epoch, as the loss of the machine would."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise RuntimeError("the machine is lost")


@pytest.fixture(scope="module")
def whole(compose_run: Compose, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and objects of a run of two epochs with its depth curve."""
    folder = tmp_path_factory.mktemp("whole")
    curve = ("curve.depths=[full,minimal]", "curve.latency_repetitions=0", "curve.pictures=1")
    metrics, objects = run(compose_run(folder, *SETTINGS, *curve))
    return folder, {**objects, "metrics": metrics}


def _differences(first: Any, second: Any, where: str) -> list[str]:
    """Return where two parts of checkpoints differ, bit by bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, dict):
        return [f"{where}/{key}" for key in first.keys() ^ second.keys()] + [
            found
            for key in first.keys() & second.keys()
            for found in _differences(first[key], second[key], f"{where}/{key}")
        ]
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=True)
        return [found for i, (a, b) in enumerate(pairs) for found in _differences(a, b, f"{where}/{i}")]
    return [] if first == second else [where]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    whole: tuple[Path, dict[str, Any]], compose_run: Compose, tmp_path: Path
) -> None:
    stop = f"+callbacks.stop={{_target_: {__name__}.Interruption}}"
    with pytest.raises(RuntimeError, match="the machine is lost"):
        run(compose_run(tmp_path, *SETTINGS, stop))
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == 2
    run(compose_run(tmp_path, *SETTINGS, f"ckpt_path={last}"))
    resumed, uninterrupted = read_checkpoint(last), read_checkpoint(whole[0] / "checkpoints" / "last.ckpt")
    assert resumed["global_step"] == uninterrupted["global_step"] == 4
    for part in ("state_dict", "weights_in_training", "optimizer_states", "lr_schedulers"):
        assert _differences(resumed[part], uninterrupted[part], part) == []
    teaching = uninterrupted["callbacks"]["SelfDistillation"]
    assert teaching["factors"]["predictions"] != 1
    assert set(teaching["averages"]) == {"minimal", "random1"}


def test_a_checkpoint_holds_averaged_weights_and_those_in_training(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    checkpoint = read_checkpoint(whole[0] / "checkpoints" / "last.ckpt")
    averaged = {key.removeprefix("detector."): value for key, value in checkpoint["state_dict"].items()}
    training = checkpoint["weights_in_training"]
    assert averaged.keys() == training.keys()
    key = next(name for name, value in averaged.items() if value.ndim == 4)
    assert not torch.equal(averaged[key], training[key])


def _curve(detector: Detector, objects: dict[str, Any]) -> list[dict[str, float]]:
    data = objects["data"]
    evaluator = CocoEvaluator(ground_truth=data.val_index.to_coco_dict(), category_ids=data.category_ids)
    curve = evaluate_depths(detector, data.val_dataloader(), evaluator, ["full", "minimal"], progress=False)
    return [dict(row.figures) for row in curve.rows]


def test_exported_weights_are_the_averaged_ones_of_the_best_checkpoint(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    """Lightning's own averaging evaluates the weights in training after a fit."""
    folder, objects = whole
    exported = anydepth.load(folder / "weights.safetensors")
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    for key, value in exported.state_dict().items():
        assert torch.equal(value, best["state_dict"][f"detector.{key}"]), key
    curve = DepthCurve.from_json((folder / "depth_curve.json").read_text())
    assert [dict(row.figures) for row in curve.rows] == _curve(exported, objects)


def test_validating_a_checkpoint_after_a_fit_uses_its_averaged_weights(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    folder, objects = whole
    trainer, module = objects["trainer"], objects["module"]
    before = {key: value.clone() for key, value in module.detector.state_dict().items()}
    with torch.no_grad():
        for parameter in module.detector.parameters():
            parameter.add_(1.0)
    path = folder / "checkpoints" / "best.ckpt"
    trainer.validate(module, datamodule=objects["data"], ckpt_path=path, verbose=False, weights_only=True)
    assert _differences(dict(module.detector.state_dict()), before, "") == []


def test_a_run_writes_all_its_files(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, objects = whole
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # A modified clone adds a patch.
    assert files - {"uncommitted.patch"} == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "compatibility.csv",
        "compatibility.json",
        "compatibility.png",
        "config.yaml",
        "depth_curve.csv",
        "depth_curve.json",
        "depth_curve.png",
        "logs/version_0/hparams.yaml",
        "logs/version_0/metrics.csv",
        f"pictures/{objects['data'].val_index.image_ids[0]}.jpg",
        "pictures/gallery.json",
        "pictures/grid.jpg",
        f"pictures/originals/{objects['data'].val_index.image_ids[0]}.jpg",
        "provenance.json",
        "weights.safetensors",
    }
    listed = {"best checkpoint", "last checkpoint", "weights", "pictures"}
    listed |= {
        f"{name} ({kind})" for name in ("depth curve", "compatibility") for kind in ("csv", "json", "png")
    }
    assert objects["files"].keys() == listed
    assert all(path.exists() for path in objects["files"].values())
    assert json.loads((folder / "provenance.json").read_text())["versions"]["anydepth"]
    metrics = objects["metrics"]
    assert metrics["val/score"] == pytest.approx((metrics["val/full/AP"] + metrics["val/minimal/AP"]) / 2)


def test_the_log_holds_losses_of_all_passes_rates_norms_and_ap(whole: tuple[Path, dict[str, Any]]) -> None:
    with (whole[0] / "logs" / "version_0" / "metrics.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames or ())
    assert {f"train/full/{term}" for term in ("loss", "vfl", "l1", "giou", "aux_vfl", "dn_l1")} <= columns
    for name in ("minimal", "random1"):
        assert {
            f"train/{name}/{term}" for term in ("loss", "aux_giou", "dn_vfl", "kd_class", "kd_neck")
        } <= columns
    assert "train/full/kd_class" not in columns
    assert {"lr/backbone", "lr/head", "train/gradient_norm"} <= columns
    assert {"val/full/AP", "val/minimal/AP50", "val/score"} <= columns


def test_a_truncated_checkpoint_is_refused(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    data = (whole[0] / "checkpoints" / "last.ckpt").read_bytes()
    for share in (0.0, 0.3, 0.999):
        (tmp_path / "cut.ckpt").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt: not a complete checkpoint"):
            read_checkpoint(tmp_path / "cut.ckpt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "detector": Interruption()}, tmp_path / "code.ckpt")
    with pytest.raises(CheckpointError, match=r"code\.ckpt"):
        read_checkpoint(tmp_path / "code.ckpt")


def test_resuming_needs_the_same_detector(
    whole: tuple[Path, dict[str, Any]], small_detector: Detector
) -> None:
    path = whole[0] / "checkpoints" / "last.ckpt"
    check_resumable(path, whole[1]["detector"])
    message = r"num_classes: 1 in the checkpoint, 2 in this run.*classes: "
    with pytest.raises(CheckpointError, match=message):
        check_resumable(path, small_detector)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        check_resumable(path.with_name("none.ckpt"), small_detector)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="weights=PATH"):
        read_checkpoint(tmp_path / "other.pth")


def test_a_run_compares_the_features_of_its_best_weights(whole: tuple[Path, dict[str, Any]]) -> None:
    found = Compatibility.from_json((whole[0] / "compatibility.json").read_text())
    assert found.images == 16, "curve.compatibility_images"
    assert found.depths == ("full", "minimal")
    assert found.value("neck P3", "full", "spatial_cka") == pytest.approx(1)
    loader = whole[1]["data"].val_dataloader()
    best = anydepth.load(whole[0] / "weights.safetensors")
    assert found == measure_compatibility(best, loader, ["full", "minimal"], images=16)


@pytest.mark.parametrize("images", [-1, 1])
def test_too_few_images_to_compare_are_refused_before_training(
    compose_run: Compose, tmp_path: Path, images: int
) -> None:
    with pytest.raises(ValueError, match=f"compatibility_images={images}: give 2 or more"):
        run(compose_run(tmp_path, f"curve.compatibility_images={images}"))
