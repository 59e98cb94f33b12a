"""Lightning's Trainer, for runs of several processes of which one writes."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from anydepth.training.checkpointing.write import CheckpointWriteError


class Trainer(pl.Trainer):
    """Tells all processes when the first one cannot write a checkpoint; they would wait for it forever."""

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint, which the first process writes; to be called by all.

        Raises:
            CheckpointWriteError: In every process.
        """
        failed: CheckpointWriteError | None = None
        try:
            super().save_checkpoint(filepath, weights_only, storage_options)
        except CheckpointWriteError as error:
            failed = error
            # There the others wait after a checkpoint.
            self.strategy.barrier("Trainer.save_checkpoint")
        reason = self.strategy.broadcast(None if failed is None else str(failed))
        if reason is not None:
            raise failed or CheckpointWriteError(reason)
