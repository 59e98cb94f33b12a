"""The callback that decides which depths each training step runs."""

from typing import Any

import lightning.pytorch as pl

from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule


class SelfDistillation(pl.Callback):
    """Samples the passes of each step from the depth schedule and hands them to the module.

    All micro-batches of one optimizer step (``accumulate_grad_batches``) run the same passes.

    Args:
        schedule: Depth schedule of the run.
        seed: Seed of the run; together with the step it determines the passes.
    """

    def __init__(self, *, schedule: DepthSchedule, seed: int) -> None:
        self.schedule = schedule
        self.seed = seed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the schedule against the detector before training starts.

        Raises:
            ValueError: The detector cannot be trained with this schedule.
        """
        assert isinstance(pl_module, DetectionModule)
        self.schedule.sample(pl_module.detector.depth_space, self.seed, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hand the plan of this step to the module."""
        assert isinstance(pl_module, DetectionModule)
        space = pl_module.detector.depth_space
        pl_module.plan = self.schedule.sample(space, self.seed, trainer.global_step)
