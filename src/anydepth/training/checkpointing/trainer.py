"""Lightning's Trainer, for runs of several processes of which one writes checkpoints."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from anydepth.training.checkpointing.write import CheckpointWriteError


class Trainer(pl.Trainer):
    """Raises in all processes if the first one cannot write a checkpoint; they would wait for it forever."""

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint, which the first process writes; all processes must call this.

        Raises:
            CheckpointWriteError: The file cannot be written; raised in every process.
        """
        failed: CheckpointWriteError | None = None
        try:
            super().save_checkpoint(filepath, weights_only, storage_options)
        except CheckpointWriteError as error:
            failed = error
            # The other processes wait at this barrier after a checkpoint.
            self.strategy.barrier("Trainer.save_checkpoint")
        reason = self.strategy.broadcast(None if failed is None else str(failed))
        if reason is not None:
            raise failed or CheckpointWriteError(reason)
