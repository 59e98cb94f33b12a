"""Batch norms in training: statistics over all processes, and their restoration after a skipped step."""

from collections.abc import Sequence

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from anydepth.layers.sync_norm import separate_norms, synchronize_norms


class NormSynchronization(LayerSync):
    """Normalises over the batch of all processes during distributed training, on GPUs and CPUs alike.

    Lightning's own (``sync_batchnorm=True``) works on GPUs only, and leaves the network with norms of another
    class.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise the norms, before training starts."""
        return synchronize_norms(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Make each process normalise on its own again."""
        return separate_norms(model)


class RunningStatistics:
    """Running statistics of norms: a forward pass changes them before the step is known to be finite.

    Args:
        module: The network, on its device and with the norms that it is trained with.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [part for part in module.modules() if isinstance(part, _NormBase)]
        self._live: list[list[Tensor]] = []
        self._saved: list[list[Tensor]] = []

    def save(self) -> None:
        """Copy the statistics."""
        buffers = [
            buffer
            for norm in self._norms
            for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            if buffer is not None
        ]
        # One fused copy per data type, instead of one kernel per buffer.
        floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._live = [floats, [buffer for buffer in buffers if not buffer.is_floating_point()]]
        if _devices(self._saved) != _devices(self._live):
            self._saved = [[torch.empty_like(buffer) for buffer in group] for group in self._live]
        self._copy(self._live, self._saved)

    def restore(self) -> None:
        """Copy the saved statistics back into the norms."""
        self._copy(self._saved, self._live)

    @torch.no_grad()
    def _copy(self, sources: Sequence[list[Tensor]], targets: Sequence[list[Tensor]]) -> None:
        for source, target in zip(sources, targets, strict=True):
            if source:
                torch._foreach_copy_(target, source)


def _devices(tensors: Sequence[Sequence[Tensor]]) -> list[list[torch.device]]:
    return [[tensor.device for tensor in group] for group in tensors]
