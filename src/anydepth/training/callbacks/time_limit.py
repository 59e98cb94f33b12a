"""The wall-time limit of a run, and the validation that ends it."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from anydepth.training.module import DetectionModule


class TimeLimit(pl.Callback):
    """Ends training after a wall time with a validation, and reports the elapsed share to the module.

    The time includes validations and continues from a checkpoint: a resumed run ends after the same total.
    All processes use the clock of the first one.

    Args:
        minutes: Wall time of training; None: only epochs limit the run.
        clock: Function that returns seconds since an arbitrary moment.
    """

    def __init__(self, *, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes = minutes
        self._clock = clock
        self._elapsed_before = 0.0
        self._started: float | None = None

    @property
    def state_key(self) -> str:
        """Return the name under which checkpoints hold the elapsed time."""
        # Not the name of the class, Lightning's default: checkpoints written before the class was renamed
        # hold its state under this one, and a resumed run must not start its clock at zero.
        return "TrainingBudget"

    @property
    def elapsed(self) -> float:
        """Return the seconds of training so far, including those before a resume."""
        return self._elapsed_before + (0.0 if self._started is None else self._clock() - self._started)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = self._clock()
        # Lightning does not call on_train_epoch_start when a run resumes within an epoch.
        self._validate_last_epoch(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate after the last epoch, even if it falls between two validations."""
        self._validate_last_epoch(trainer)

    @staticmethod
    def _validate_last_epoch(trainer: pl.Trainer) -> None:
        if trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the module's share of the time that has passed."""
        assert isinstance(pl_module, DetectionModule)
        if self.minutes is not None:
            elapsed = trainer.strategy.broadcast(self.elapsed)
            pl_module.time_progress = min(elapsed / (60 * self.minutes), 1.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop with a validation once the time is over."""
        assert isinstance(pl_module, DetectionModule)
        if pl_module.time_progress >= 1:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._elapsed_before, self._started = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds of the interrupted run."""
        self._elapsed_before = float(state_dict["elapsed"])
