"""Callback that looks at the gradients of each pass of a step while its graph still exists."""

from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
import torch
import torch._functorch.config

from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph


class PassObserver(pl.Callback):
    """Base of callbacks that observe the passes of each step during training."""

    def __init__(self) -> None:
        self._measured = -1
        self._observer: Callable[[PassGraph], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Allow more than one backward through compiled graphs."""
        assert isinstance(pl_module, DetectionModule)
        if stage == "fit" and pl_module.compile_forward:
            # Otherwise a compiled backward reuses the memory of its inputs.
            torch._functorch.config.donated_buffer = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Observe the passes of each step."""
        assert isinstance(pl_module, DetectionModule)
        self._measured = -1
        self._observer = partial(self._observe, trainer, pl_module)
        pl_module.observers.append(self._observer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop observing."""
        assert isinstance(pl_module, DetectionModule)
        if self._observer in pl_module.observers:
            pl_module.observers.remove(self._observer)

    def _observe(self, trainer: pl.Trainer, module: DetectionModule, graph: PassGraph) -> None:
        raise NotImplementedError
