"""Validation images without an object to find, whose score says nothing about the weights."""

import math

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from anydepth.training.module import SCORE, DetectionModule


class UnscoredValidationWarning(UserWarning):
    """Warns that validation cannot tell better weights from worse ones."""


class UnscoredValidation(pl.Callback):
    """Keeps the newest weights in place of the best ones while validations find no object to score.

    Such a validation logs NaN as its score. Lightning's checkpoint of the best score would keep the weights
    of the first one, because no later score is higher; here each replaces the former one, and the first real
    score replaces them all.

    Warns:
        UnscoredValidationWarning: Once, at the start if the ground truth holds no object, else after the
            first such validation.
    """

    def __init__(self) -> None:
        self._warned = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if no image of the validation split holds an object."""
        assert isinstance(pl_module, DetectionModule)
        if pl_module.evaluator is not None and not pl_module.evaluator.has_objects:
            self._warn("the validation split holds no object to find (crowd regions do not count)")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make checkpoints of the best score take these weights; Lightning calls those last."""
        if not math.isnan(float(trainer.callback_metrics.get(SCORE, 0.0))):
            return
        self._warn("the images of this validation hold no object to find; all of the split may hold some")
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.monitor != SCORE:
                continue
            # Lightning records -inf for NaN.
            if all(math.isinf(float(score)) for score in callback.best_k_models.values()):
                callback.best_k_models.clear()

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{reason}, so {SCORE} says nothing: the last weights are exported, not the best ones. Give "
                "validation images with boxes: data.val_json and data.val_images, or data.root",
                category=UnscoredValidationWarning,
            )
