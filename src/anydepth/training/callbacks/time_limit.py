"""The wall-time limit of a run, and the validation that ends it."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from anydepth.training.module import DetectionModule


class TimeLimit(pl.Callback):
    """Ends training after a wall time, tells the learning-rate schedule how far it is, validates at the end.

    The time includes validations and goes on from a checkpoint: a resumed run ends after the same total. The
    first process keeps the clock for all.

    Args:
        minutes: None: only epochs limit the run.
        clock: Seconds since some moment.
    """

    def __init__(self, *, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes = minutes
        self._clock = clock
        self._elapsed_before = 0.0
        self._started: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all resumed parts."""
        return self._elapsed_before + (0.0 if self._started is None else self._clock() - self._started)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = self._clock()
        # Lightning does not say that an epoch starts when a run goes on within it.
        self._validate_last_epoch(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the last epoch validated, wherever it falls between two validations."""
        self._validate_last_epoch(trainer)

    @staticmethod
    def _validate_last_epoch(trainer: pl.Trainer) -> None:
        if trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell the module which share of the time has passed."""
        assert isinstance(pl_module, DetectionModule)
        if self.minutes is not None:
            elapsed = trainer.strategy.broadcast(self.elapsed)
            pl_module.time_progress = min(elapsed / (60 * self.minutes), 1.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop once the time is over, with a validation."""
        assert isinstance(pl_module, DetectionModule)
        if pl_module.time_progress >= 1:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._elapsed_before, self._started = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the saved seconds."""
        self._elapsed_before = float(state_dict["elapsed"])
