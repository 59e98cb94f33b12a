"""Training that learns nothing and records its images."""

from contextlib import suppress
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from anydepth.data.datamodule import DetectionDataModule
from anydepth.structures import Batch

Seen = list[tuple[int, int]]
"""(epoch, image id), in order."""


class Recorder(LightningModule):
    """Module that learns nothing and records its images."""

    def __init__(self, seen: Seen | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = [] if seen is None else seen
        self.validated: list[int] = []

    def training_step(self, batch: Batch) -> Tensor:
        self.seen += [(self.current_epoch, image_id) for image_id in batch.image_ids]
        return self.weight * 0

    def validation_step(self, batch: Batch) -> None:
        self.validated += batch.image_ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Interruption(Callback):
    """Interrupts a run like a machine failure, after this many batches of an epoch."""

    def __init__(self, epoch: int, batches: int) -> None:
        self.at = (epoch, batches)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise KeyboardInterrupt


def recorded_epochs(
    module: DetectionDataModule,
    folder: Path,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    seen: Seen | None = None,
) -> Seen:
    """Run three epochs with a checkpoint ``last.ckpt`` after each step, and return the recorded images."""
    recorder = Recorder(seen)
    checkpoint = ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoint, *callbacks],
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    # Lightning turns a KeyboardInterrupt into an exit.
    with suppress(SystemExit):
        trainer.fit(recorder, datamodule=module, ckpt_path=ckpt_path, weights_only=True)
    return recorder.seen
