"""float16, bfloat16 and float32 train with one configuration; overflows of float16's scaler are counted."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import DictConfig
from rich import get_console
from torch import Tensor

from anydepth.config.compose import compose
from anydepth.train import assemble
from anydepth.training.callbacks.ema import WeightAveraging
from anydepth.training.checkpointing.read import read_checkpoint
from anydepth.training.module import DetectionModule
from anydepth.training.non_finite.watch import NonFiniteStepError
from small_networks import SMALL_YOLO

Compose = Callable[..., DictConfig]


class Watch(pl.Callback):
    """Records the types of features and losses, and breaks gradients in the given steps."""

    def __init__(self, broken_steps: tuple[int, ...] = ()) -> None:
        self.broken_steps = broken_steps
        self.types: set[tuple[torch.dtype, torch.dtype]] = set()
        self.weights: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DetectionModule)
        supervised = pl_module.objective.supervised

        def recording(output: Any, targets: Any) -> Any:
            losses = supervised(output, targets)
            self.types.add((output.neck_features[0].dtype, losses.total.dtype))
            return losses

        pl_module.objective.supervised = recording  # type: ignore[method-assign]
        parameter = next(p for p in pl_module.detector.parameters() if p.requires_grad)
        parameter.register_hook(lambda g: g * torch.nan if trainer.global_step in self.broken_steps else g)
        self.weights.append(_copy(pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.weights.append(_copy(pl_module))


def _copy(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def _fit(cfg: DictConfig, watch: Watch, plugin: MixedPrecision | None = None) -> pl.Trainer:
    data, module, trainer = assemble(cfg)
    trainer.callbacks.append(watch)
    if plugin is not None:
        trainer.strategy.precision_plugin = plugin
    trainer.fit(module, datamodule=data)
    return trainer


def _half(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def _rows(folder: Path, column: str) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    return [float(row[column]) for row in csv.DictReader(path.read_text().splitlines()) if row.get(column)]


@pytest.mark.parametrize(
    ("family", "precision", "half"),
    [
        ("detr", "32-true", torch.float32),
        ("detr", "16-mixed", torch.float16),
        ("detr", "bf16-mixed", torch.bfloat16),
        pytest.param("yolo", "bf16-mixed", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("yolo", "16-mixed", torch.float16, marks=pytest.mark.slow),
        pytest.param("yolo", "32-true", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_every_precision_trains_with_losses_in_float32(
    compose_run: Compose,
    small_run: Sequence[str],
    tmp_path: Path,
    family: str,
    precision: str,
    half: torch.dtype,
) -> None:
    watch = Watch()
    # Lightning has no float16 on CPUs and would take bfloat16; torch has both.
    requested = "32-true" if precision == "16-mixed" else precision
    settings = ("recipe.epochs=1", f"trainer.precision={requested}")
    if family == "detr":
        cfg = compose_run(tmp_path, *settings)
    else:
        shared = [setting for setting in small_run if not setting.startswith("detector.")]
        small = [f"detector.{key}={value}".replace(" ", "") for key, value in SMALL_YOLO.items()]
        folder = f"paths.output_dir={tmp_path}"
        cfg = compose("train", ["detector=yolo_tiny", *shared, *small, folder, *settings], hydra_config=True)
    _fit(cfg, watch, _half(2.0**8) if precision == "16-mixed" else None)
    assert watch.types == {(half, torch.float32)}
    changed = [name for name, value in watch.weights[-1].items() if not value.equal(watch.weights[0][name])]
    assert len(changed) > len(watch.weights[0]) / 2
    assert all(value.isfinite().all() for value in watch.weights[-1].values())


def test_an_overflow_is_counted_and_left_to_the_scaler(compose_run: Compose, tmp_path: Path) -> None:
    """The scaler halves its scale after each; weights and their average stay unchanged."""
    watch = Watch(broken_steps=(0, 1))
    trainer = _fit(compose_run(tmp_path, "recipe.epochs=2"), watch, _half(1024.0))
    assert _rows(tmp_path, "train/overflow_steps") == [1, 2, 2, 2]
    assert _rows(tmp_path, "train/loss_scale") == [1024, 512, 256, 256]
    same = [all(v.equal(watch.weights[i + 1][k]) for k, v in watch.weights[i].items()) for i in range(4)]
    assert same == [True, True, False, False]
    averaging = next(found for found in trainer.callbacks if isinstance(found, WeightAveraging))
    assert averaging.updates == 2
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint["numbers"] == {"skipped": 0, "in_a_row": 0, "overflows": 2, "recorded": 0}
    assert checkpoint["MixedPrecision"]["scale"] == 256


def test_a_scale_that_collapses_ends_the_run(compose_run: Compose, tmp_path: Path) -> None:
    watch = Watch(broken_steps=(0, 1, 2, 3))
    with pytest.raises(NonFiniteStepError) as caught:
        _fit(compose_run(tmp_path, "recipe.epochs=2"), watch, _half(4.0))
    message = str(caught.value)
    assert "step 2 of epoch 1" in message, "after overflows at scales of 4 and 2"
    assert "although the loss scale has fallen to 1;" in message
    assert "trainer.precision=bf16-mixed" in message
    assert "pass 'full': gradient of " in message


def test_a_skipped_step_leaves_the_scale_alone(compose_run: Compose, tmp_path: Path) -> None:
    cfg = compose_run(
        tmp_path,
        "recipe.epochs=2",
        "non_finite.action=skip",
        f"+callbacks.spoil={{_target_: {__name__}.Spoil}}",
    )
    with get_console().capture():
        _fit(cfg, Watch(), _half(256.0))
    assert _rows(tmp_path, "train/loss_scale") == [256] * 4
    assert _rows(tmp_path, "train/skipped_steps") == [0, 1, 1, 1]
    assert _rows(tmp_path, "train/overflow_steps") == [0] * 4


class Spoil(pl.Callback):
    """Puts an infinite box into the second step."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            batch.targets[0].boxes_cxcywh[0, 2] = torch.inf
