"""Lightning's part of batch norms over all processes."""

from lightning.pytorch.plugins import LayerSync
from torch import nn

from anydepth.layers.sync_norm import separate_norms, synchronise_norms


class NormSynchronisation(LayerSync):
    """Normalises by the whole batch while a run of several processes trains, on GPUs as on CPUs.

    Lightning's own (``sync_batchnorm=True``) works on GPUs only, and leaves norms of another class behind.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Join the norms, before training starts."""
        return synchronise_norms(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Make them those of one process again."""
        return separate_norms(model)
