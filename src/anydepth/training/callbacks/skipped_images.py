"""The list of images that could not be read and were skipped."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from anydepth.structures import Batch
from anydepth.utils.console import print_lines


class SkippedImages(pl.Callback):
    """Lists the images that ``data.on_bad_image=skip`` skipped, each once, and prints their number.

    Args:
        path: Text file with one line per image, which all processes append to. It exists only if an image
            was skipped.
    """

    def __init__(self, *, path: str | Path) -> None:
        self.path = Path(path)
        self._known: set[str] = set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Record the images that a training batch skipped."""
        self._record(batch)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the images that a validation batch skipped."""
        self._record(batch)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print how many images were skipped."""
        if self._known:
            print_lines(
                f"process {trainer.global_rank}: {len(self._known)} images could not be read and were "
                f"skipped; see {self.path}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the images that are listed already."""
        return {"known": sorted(self._known)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the list of the interrupted run."""
        self._known = set(state_dict["known"])

    def _record(self, batch: Batch) -> None:
        new = [message for message in batch.skipped if message not in self._known]
        if new:
            self._known.update(new)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{message}\n" for message in dict.fromkeys(new))
