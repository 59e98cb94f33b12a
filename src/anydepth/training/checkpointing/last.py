"""The checkpoint to resume from: written after epochs, every few minutes within them, and on SIGTERM."""

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
from anydepth.training.checkpointing.sigterm import EXIT_CODE, DeferredSigterm, Terminated
from anydepth.training.checkpointing.write import CheckpointWriteError

# Actions in increasing urgency: the processes agree on the largest one that any of them requests.
_CONTINUE, _SAVE, _STOP = 0, 1, 2


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run resumes as if it had never been interrupted, bit for bit.

    It is written at the end of every epoch, and within epochs after the given time, between two optimizer
    steps: never between the batches whose gradients one step accumulates. After the last step of an epoch
    that ends with a validation it is written before that validation, which a resumed run then repeats.

    On SIGTERM the current step is finished and saved; then the run ends with exit code 143. A validation in
    one process is aborted at the next batch, in several processes it is finished first. The processes of a
    run do all of this together, whichever of them receives the signal; the first one's clock counts.

    Args:
        dirpath: Folder of the checkpoints.
        every_minutes: Time between two checkpoints within an epoch; 0: each step; None: only at its end.
        clock: Function that returns seconds since an arbitrary moment.

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
        self._sigterm: DeferredSigterm | None = None

    # -- hooks -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Record the handler of SIGTERM before Lightning's, which runs a collective whenever it comes."""
        if stage == TrainerFn.FITTING:
            self._sigterm = DeferredSigterm(signal.getsignal(signal.SIGTERM))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and defer SIGTERM from now on."""
        self._saved_at = self._clock()
        self._last_step = trainer.global_step
        if self._sigterm is not None:
            self._sigterm.install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two optimizer steps if it is time, stop if requested."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        # The end of an epoch, or the validation before it, has hooks of its own below.
        if not trainer.should_stop and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_or_stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the last step of an epoch if it is time, stop if requested."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        # A repeated validation must not count batches that the interrupted one started and never completed.
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
        """Abort a validation that would delay a requested stop."""
        if (
            trainer.state.fn == TrainerFn.FITTING
            and distributed.world_size() == 1
            and self._requested_action(trainer) == _STOP
        ):
            self._save_or_stop(trainer, validation_ahead=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and stop if requested."""
        self._save(trainer)
        self._stop_if_requested(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if requested; from now on SIGTERM ends the program at once."""
        self._stop_if_requested(trainer)
        if self._sigterm is not None:
            self._sigterm.restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Replace exceptions that SIGTERM caused, such as the loss of a worker that received it first.

        Raises:
            Terminated: In place of such an exception.
        """
        if isinstance(exception, CheckpointWriteError) or not isinstance(exception, Exception):
            return
        if self._requested_action(trainer) == _STOP:
            raise Terminated(_exit_code(trainer)) from exception

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark in a checkpoint of a whole epoch that its validation is still to come."""
        if self._validation_ahead:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["is_last_batch"] = False
            for counts in (progress["total"], progress["current"]):
                # A batch that was started and not finished: Lightning then validates before it trains again.
                counts.update(ready=1, started=1, processed=0, completed=0)

    # -- internals ---------------------------------------------------------------------------------------

    def _requested_action(self, trainer: pl.Trainer) -> int:
        """Return the action that this process requests."""
        received = self._sigterm is not None and self._sigterm.received
        if received and self._sigterm is not None and self._sigterm.ends_program:
            return _STOP
        passed = self._clock() - self._saved_at
        due = self.every_minutes is not None and passed >= 60 * self.every_minutes
        return _SAVE if received or (due and trainer.is_global_zero) else _CONTINUE

    def _agree_on_action(self, trainer: pl.Trainer) -> int:
        return distributed.all_max(self._requested_action(trainer), trainer.strategy.root_device)

    def _save_or_stop(self, trainer: pl.Trainer, *, validation_ahead: bool = False) -> None:
        action = self._agree_on_action(trainer)
        if action != _CONTINUE:
            self._validation_ahead = validation_ahead
            try:
                self._save(trainer)
            finally:
                self._validation_ahead = False
        if action == _STOP:
            raise Terminated(_exit_code(trainer))

    def _stop_if_requested(self, trainer: pl.Trainer) -> None:
        if self._agree_on_action(trainer) == _STOP:
            raise Terminated(_exit_code(trainer))

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at = self._clock()
        if self._sigterm is not None and not self._sigterm.ends_program:
            self._sigterm.received = False


def _exit_code(trainer: pl.Trainer) -> int:
    """Return SIGTERM's exit code, or 0 in child processes of a run whose parent returns SIGTERM's.

    Lightning's watch over its child processes kills the parent if one of them ends with another code.
    """
    strategy: Any = trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    return 0 if isinstance(environment, LightningEnvironment) and strategy.local_rank != 0 else EXIT_CODE
