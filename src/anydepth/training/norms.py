"""Batch norms in training: statistics over all processes, and those of a step that is left out."""

from collections.abc import Sequence

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from anydepth.layers.sync_norm import separate_norms, synchronize_norms


class NormSynchronisation(LayerSync):
    """Normalises by the whole batch while a run of several processes trains, on GPUs as on CPUs.

    Lightning's own (``sync_batchnorm=True``) works on GPUs only, and leaves norms of another class behind.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Join the norms, before training starts."""
        return synchronize_norms(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Make them those of one process again."""
        return separate_norms(model)


class RunningStatistics:
    """Those of norms, which a forward pass changes before anybody knows whether the step is any good.

    Args:
        module: The network, on its device and with the norms that it is trained with.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [part for part in module.modules() if isinstance(part, _NormBase)]
        self._live: list[list[Tensor]] = []
        self._kept: list[list[Tensor]] = []

    def keep(self) -> None:
        """Copy them."""
        buffers = [
            buffer
            for norm in self._norms
            for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            if buffer is not None
        ]
        # Tensors of one type are copied in one go.
        floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._live = [floats, [buffer for buffer in buffers if not buffer.is_floating_point()]]
        if _devices(self._kept) != _devices(self._live):
            self._kept = [[torch.empty_like(buffer) for buffer in some] for some in self._live]
        self._copy(self._live, self._kept)

    def restore(self) -> None:
        """Put the copies back."""
        self._copy(self._kept, self._live)

    @torch.no_grad()
    def _copy(self, sources: Sequence[list[Tensor]], targets: Sequence[list[Tensor]]) -> None:
        for source, target in zip(sources, targets, strict=True):
            if source:
                torch._foreach_copy_(target, source)


def _devices(tensors: Sequence[Sequence[Tensor]]) -> list[list[torch.device]]:
    return [[tensor.device for tensor in some] for some in tensors]
