"""Exponential moving average of the weights, which is validated, selected, saved and evaluated."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from anydepth.training.module import DetectionModule

_PREFIX = "detector."


class WeightAveraging(pl.Callback):
    """Averages parameters and float buffers of the detector; integer buffers are copied.

    The decay after ``t`` updates is ``decay * (1 - exp(-t / warmup_steps))``, as in RT-DETR (Zhao et al.,
    CVPR 2024), so that the influence of early weights fades. One update per optimizer step, also when
    gradients are accumulated; steps that were skipped because they were not finite do not count.

    During validation, and after the fit, the detector holds the averaged weights. A checkpoint holds them as
    its ``state_dict``, so that any reader gets what was validated, and next to them the weights in training,
    for resuming. (Lightning's own callback evaluates the raw weights after a fit.)

    Args:
        decay: Decay in [0, 1).
        warmup_steps: Time constant of the warm-up in optimizer steps; 0: no warm-up.

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(self, *, decay: float = 0.9999, warmup_steps: int = 2000) -> None:
        if not 0 <= decay < 1 or warmup_steps < 0:
            raise ValueError(
                f"decay={decay}, warmup_steps={warmup_steps}: allowed are a decay in [0, 1) and steps from 0"
            )
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.updates = 0
        self._averaged: dict[str, Tensor] = {}
        # The weights in training, while the detector holds the averaged ones.
        self._training: dict[str, Tensor] | None = None
        self._last_step = -1

    def decay_at(self, updates: int) -> float:
        """Return the decay of update number ``updates``, counted from 1."""
        if not self.warmup_steps:
            return self.decay
        return self.decay * (1 - math.exp(-updates / self.warmup_steps))

    # -- hooks -------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the detector's weights, or continue from a checkpoint or an earlier fit."""
        detector = _detector(pl_module)
        self._swap_back(detector)
        current = detector.state_dict()
        if self._averaged:
            self._averaged = {key: value.to(current[key].device) for key, value in self._averaged.items()}
        else:
            self._averaged = _copy(current)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the current step, which a resumed run restores only after :meth:`on_fit_start`."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if this batch ended an optimizer step."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            assert isinstance(pl_module, DetectionModule)
            if pl_module.watch.taken:
                self._update(pl_module.detector)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the averaged weights; outside a fit the detector is validated as it is."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_in(_detector(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the weights in training."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_back(_detector(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the averaged weights in the detector."""
        self._swap_in(_detector(pl_module))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averaged weights as the ``state_dict`` and keep those in training beside them."""
        state = checkpoint["state_dict"]
        training = self._training or {key: state[_PREFIX + key] for key in self._averaged}
        checkpoint["weights_in_training"] = dict(training)
        checkpoint["state_dict"] = {
            **state,
            **{_PREFIX + key: value for key, value in self._averaged.items()},
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the weights in training when a fit is resumed."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        detector = _detector(pl_module)
        state = checkpoint["state_dict"]
        self._averaged = _copy({key: state[_PREFIX + key] for key in detector.state_dict()})
        self._training = None
        # A checkpoint that was written without this callback resumes from its only weights.
        if "weights_in_training" in checkpoint:
            detector.load_state_dict(checkpoint["weights_in_training"])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates; :meth:`on_save_checkpoint` saves the weights."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of updates."""
        self.updates = int(state_dict["updates"])

    # -- internals ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _update(self, detector: torch.nn.Module) -> None:
        self.updates += 1
        current = detector.state_dict()
        floats = [key for key, value in self._averaged.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self._averaged[key] for key in floats],
            [current[key] for key in floats],
            1 - self.decay_at(self.updates),
        )
        for key in self._averaged.keys() - set(floats):
            self._averaged[key].copy_(current[key])

    def _swap_in(self, detector: torch.nn.Module) -> None:
        if self._training is None and self._averaged:
            self._training = _copy(detector.state_dict())
            _fill(detector, self._averaged)

    def _swap_back(self, detector: torch.nn.Module) -> None:
        if self._training is not None:
            _fill(detector, self._training)
            self._training = None


def _detector(module: pl.LightningModule) -> torch.nn.Module:
    assert isinstance(module, DetectionModule)
    return module.detector


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


@torch.no_grad()
def _fill(detector: torch.nn.Module, values: dict[str, Tensor]) -> None:
    for key, value in detector.state_dict().items():
        value.copy_(values[key])
