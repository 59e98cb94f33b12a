"""The checkpoint to go on from: at the end of epochs, every few minutes within them, and at SIGTERM."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from anydepth import distributed
from anydepth.training.checkpointing.newest import LAST
from anydepth.training.checkpointing.sigterm import EXIT_CODE, Postponed, Terminated
from anydepth.training.checkpointing.write import CheckpointWriteError

# What the processes agree on, the most urgent of what any of them asks for.
_GO_ON, _SAVE, _STOP = 0, 1, 2


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run goes on as if it had never been interrupted, bit for bit.

    It is written at the end of every epoch, and within epochs when so much time has passed, between two
    optimizer steps: never between the batches whose gradients one step accumulates. Of the last step of an
    epoch that ends with a validation it is written before that validation, which then comes again.

    SIGTERM lets the step that runs be finished and saved; then the run ends with exit code 143. A validation
    in one process is given up at the next batch, in several processes it is finished first. The processes of
    a run do all of this together, whichever of them the signal reached; the clock is that of the first one.

    Args:
        dirpath: Folder of the checkpoints.
        every_minutes: Time between two checkpoints within an epoch; 0: each step; None: only at its end.
        clock: Seconds since some moment.

    Raises:
        ValueError: ``every_minutes`` is negative.
    """

    def __init__(
        self,
        *,
        dirpath: str | Path,
        every_minutes: float | None = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every_minutes is not None and every_minutes < 0:
            raise ValueError(
                f"every_minutes={every_minutes}: allowed are 0 (after every step) and above, or null (only "
                "at the end of epochs)"
            )
        self.path = Path(dirpath) / LAST
        self.every_minutes = every_minutes
        self._clock = clock
        self._saved_at = 0.0
        self._last_step = 0
        self._validation_ahead = False
        self._sigterm: Postponed | None = None

    # -- hooks -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note who handles SIGTERM, before Lightning does, which exchanges tensors whenever it comes."""
        if stage == TrainerFn.FITTING:
            self._sigterm = Postponed(signal.getsignal(signal.SIGTERM))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and postpone SIGTERM from now on."""
        self._saved_at = self._clock()
        self._last_step = trainer.global_step
        if self._sigterm is not None:
            self._sigterm.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two optimizer steps: save if it is time, stop if that was asked for."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        # What was done by then is saved when its epoch, or the validation before that, has its turn.
        if not trainer.should_stop and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_or_stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the last step of an epoch: likewise."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        # Where the validation comes again, those batches count that it begins with.
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
        self._save_or_stop(trainer, validation_ahead=True)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Give up a long validation that the end of the run would wait for."""
        if (
            trainer.state.fn == TrainerFn.FITTING
            and distributed.world_size() == 1
            and self._wish(trainer) == _STOP
        ):
            self._save_or_stop(trainer, validation_ahead=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and stop if that was asked for."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if that was asked for; from now on SIGTERM ends the program at once."""
        self._stop_if_asked(trainer)
        if self._sigterm is not None:
            self._sigterm.end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Tell the end by SIGTERM from what it leads to, as the loss of a worker that it reached first.

        Raises:
            Terminated: In place of such an exception.
        """
        if isinstance(exception, CheckpointWriteError) or not isinstance(exception, Exception):
            return
        if self._wish(trainer) == _STOP:
            raise Terminated(_exit_code(trainer)) from exception

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note in a checkpoint of a whole epoch that its validation is still to come."""
        if self._validation_ahead:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["is_last_batch"] = False
            for counts in (progress["total"], progress["current"]):
                # A batch that was begun and not finished: Lightning then validates before it trains on.
                counts.update(ready=1, started=1, processed=0, completed=0)

    # -- internals ---------------------------------------------------------------------------------------

    def _wish(self, trainer: pl.Trainer) -> int:
        """What this process asks for."""
        received = self._sigterm is not None and self._sigterm.received
        if received and self._sigterm is not None and self._sigterm.ends:
            return _STOP
        passed = self._clock() - self._saved_at
        timed = self.every_minutes is not None and passed >= 60 * self.every_minutes
        return _SAVE if received or (timed and trainer.is_global_zero) else _GO_ON

    def _agreed(self, trainer: pl.Trainer) -> int:
        return distributed.all_max(self._wish(trainer), trainer.strategy.root_device)

    def _save_or_stop(self, trainer: pl.Trainer, *, validation_ahead: bool = False) -> None:
        agreed = self._agreed(trainer)
        if agreed != _GO_ON:
            self._validation_ahead = validation_ahead
            try:
                self._save(trainer)
            finally:
                self._validation_ahead = False
        if agreed == _STOP:
            raise Terminated(_exit_code(trainer))

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._agreed(trainer) == _STOP:
            raise Terminated(_exit_code(trainer))

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at = self._clock()
        if self._sigterm is not None and not self._sigterm.ends:
            self._sigterm.received = False


def _exit_code(trainer: pl.Trainer) -> int:
    """That of SIGTERM; 0 in processes whose parent, another process of the run, gives that one.

    Lightning's watch over its child processes kills the parent when one of them ends with another code.
    """
    strategy: Any = trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    return 0 if isinstance(environment, LightningEnvironment) and strategy.local_rank != 0 else EXIT_CODE
