"""Collective operations that make several processes train on a batch as one process would.

Distributed training averages the gradients of the processes. The result is the gradient of the whole batch if
each process divides the sums of its losses by its part of the divisor of the whole batch
(:func:`loss_normalizer`), if the statistics of batch norms are those of the whole batch
(:mod:`anydepth.layers.sync_norm`), and if random numbers are drawn for the whole batch, of which each process
takes its rows (:func:`local_rows`). The last condition needs equal states of torch's generator in all
processes, which training ensures.

Everything here also works in a run of one process, without any communication. In distributed training every
process has to call the collective functions equally often and in the same order, whatever its images hold.
"""

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes that train together, 1 outside distributed training."""
    return dist.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Return the index of this process among them, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def loss_normalizer(amount: Tensor) -> Tensor:
    """Return the divisor of this process's loss sums: ``max(total over all processes, 1) / processes``.

    Args:
        amount: Float tensor, the share of this process in the total: its number of boxes, or the sum of the
            weights of its anchors.

    Returns:
        A tensor of the same shape, without gradients; never 0.
    """
    total = amount.detach()
    if world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=1) / world_size()


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the values of all processes, a float tensor without gradients; 0 of none.

    Args:
        values: Float tensor of any shape.
        weights: Weights, at least 0, of the same shape.
    """
    sums = torch.stack([(weights * values).sum(), weights.sum()]).detach()
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)


def all_max(value: int, device: torch.device) -> int:
    """Return the maximum of a value over all processes.

    Args:
        value: Value of this process, at least 0.
        device: Device of the training, on which the processes exchange tensors.
    """
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def all_true(flags: Tensor) -> Tensor:
    """Return the element-wise AND of the flags of all processes.

    Args:
        flags: Bool tensor on the device of the training, of the same shape in all processes.
    """
    if world_size() == 1:
        return flags
    agreed = flags.to(torch.uint8)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return agreed.bool()


def all_gather_object(value: T) -> list[T]:
    """Return the values of all processes in the order of their ranks; too slow for every step."""
    if world_size() == 1:
        return [value]
    found = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def local_rows(whole: Tensor) -> Tensor:
    """Return the rows [B, ...] of this process from a tensor [processes x B, ...] of the whole batch."""
    rows = len(whole) // world_size()
    return whole[rank() * rows : (rank() + 1) * rows]


def is_first_process() -> bool:
    """Return whether this process is the first one of the run, also before it has joined the others."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
