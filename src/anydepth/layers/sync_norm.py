"""Batch norm with the statistics of the whole batch, however many processes it is split between."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from anydepth import distributed


class HostSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes for tensors in host memory, which ``nn.SyncBatchNorm`` does not support.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise [B, C, H, W] by the statistics of all processes, or the running ones in eval mode."""
        if not self.training or distributed.world_size() == 1:
            normalised: Tensor = super().forward(features)
            return normalised
        centred, mean, variance, count = _statistics(features)
        self._update_running_statistics(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(features.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards the batch's, using the unbiased estimate of the variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)


def _statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centred features, mean [C], variance [C] and number of values per channel of all processes."""
    values = features.float()  # [B, C, H, W]
    count = torch.tensor(float(features.numel() // features.shape[1]))
    dist.all_reduce(count)
    mean = _sum_over_processes(values.sum((0, 2, 3))) / count  # [C]
    # In a second exchange: subtracting large sums of squares from each other would cancel the variance.
    centred = values - mean.view(1, -1, 1, 1)  # [B, C, H, W]
    variance = _sum_over_processes(centred.square().sum((0, 2, 3))) / count  # [C]
    return centred, mean, variance, count


def _sum_over_processes(values: Tensor) -> Tensor:
    """Sum values over all processes; the backward pass sums their gradients, too."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def synchronize_norms(module: nn.Module) -> nn.Module:
    """Replace every batch norm by one over all processes, with the same parameters and statistics.

    Frozen norms are not replaced. The replacement is ``nn.SyncBatchNorm`` on GPUs and
    :class:`HostSyncBatchNorm` in host memory.

    Returns:
        ``module``, changed in place, unless it is itself a batch norm.
    """
    if type(module) is nn.BatchNorm2d:
        kind = HostSyncBatchNorm if module.weight.device.type == "cpu" else nn.SyncBatchNorm
        return _convert(module, kind)
    for name, child in module.named_children():
        setattr(module, name, synchronize_norms(child))
    return module


def separate_norms(module: nn.Module) -> nn.Module:
    """Undo :func:`synchronize_norms`."""
    if isinstance(module, HostSyncBatchNorm | nn.SyncBatchNorm):
        return _convert(module, nn.BatchNorm2d)
    for name, child in module.named_children():
        setattr(module, name, separate_norms(child))
    return module


Norm = nn.BatchNorm2d | nn.SyncBatchNorm


def _convert(norm: Norm, kind: type[Norm]) -> Norm:
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.train(norm.training)
    # The tensors themselves, because an optimizer or a weight average may already hold them.
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(made, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(made, name, buffer)
    return made
