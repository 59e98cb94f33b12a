"""Batch norm whose statistics are those of the whole batch, however many processes share it."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from anydepth import distributed


class HostSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes, for tensors in host memory, which ``nn.SyncBatchNorm`` refuses.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise [B, C, H, W] by the statistics of all processes, in eval mode by the running ones."""
        if not self.training or distributed.world_size() == 1:
            normalised: Tensor = super().forward(features)
            return normalised
        centred, mean, variance, count = _statistics(features)
        self._follow(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(features.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, that of the variance by its unbiased estimate."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)


def _statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over all processes: features less their mean, mean [C] and variance [C], and of how many values."""
    values = features.float()
    count = torch.tensor(float(features.numel() // features.shape[1]))
    dist.all_reduce(count)
    mean = _summed(values.sum((0, 2, 3))) / count
    # In a second exchange: the difference of large sums of squares would lose what is left of the variance.
    centred = values - mean.view(1, -1, 1, 1)
    return centred, mean, _summed(centred.square().sum((0, 2, 3))) / count, count


def _summed(values: Tensor) -> Tensor:
    """Over all processes; backward, their gradients are summed, too."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def synchronize_norms(module: nn.Module) -> nn.Module:
    """Replace every batch norm by one over all processes, with its parameters and statistics.

    Frozen ones are left alone. On GPUs it is ``nn.SyncBatchNorm``, in host memory :class:`HostSyncBatchNorm`.

    Returns:
        ``module``, changed in place, unless it is itself a batch norm.
    """
    if type(module) is nn.BatchNorm2d:
        return _as(module, HostSyncBatchNorm if module.weight.device.type == "cpu" else nn.SyncBatchNorm)
    for name, child in module.named_children():
        setattr(module, name, synchronize_norms(child))
    return module


def separate_norms(module: nn.Module) -> nn.Module:
    """Undo :func:`synchronize_norms`."""
    if isinstance(module, HostSyncBatchNorm | nn.SyncBatchNorm):
        return _as(module, nn.BatchNorm2d)
    for name, child in module.named_children():
        setattr(module, name, separate_norms(child))
    return module


Norm = nn.BatchNorm2d | nn.SyncBatchNorm


def _as(norm: Norm, kind: type[Norm]) -> Norm:
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.train(norm.training)
    # The tensors themselves, which an optimizer or an average may hold already.
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(made, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(made, name, buffer)
    return made
