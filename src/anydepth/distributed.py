"""What the processes of a run share, so that several with a part of a batch train as one with all of it.

Distributed training averages the gradients of the processes. The result is the gradient of the whole batch if
each process divides the sums of its losses by its part of what the whole batch would be divided by
(:func:`loss_normalizer`), if the statistics of batch norms are those of the whole batch
(:mod:`anydepth.layers.sync_norm`), and if random numbers are drawn for the whole batch, of which each process
takes its rows (:func:`local_rows`). The last one needs equal states of torch's generator in all processes,
which training sees to.

Everything here is also right in a run of one process, where nothing is exchanged. In distributed training
every process has to call what exchanges something, equally often and in the same order, whatever its images
hold.
"""

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def loss_normalizer(amount: Tensor) -> Tensor:
    """What a process divides a sum of losses by: ``max(total, 1) / processes``, of the totals of all of them.

    Args:
        amount: Float tensor, what the sums of this process come to: its boxes, or the weights of its anchors.

    Returns:
        The same shape, without gradients; never 0.
    """
    total = amount.detach()
    if world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=1) / world_size()


def all_max(value: int, device: torch.device) -> int:
    """The largest of the values that the processes call this with.

    Args:
        value: From 0.
        device: Where the processes exchange tensors: that of the training.
    """
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def all_true(flags: Tensor) -> Tensor:
    """Where the flags of all processes are true.

    Args:
        flags: Bool, on the device of the training.
    """
    if world_size() == 1:
        return flags
    agreed = flags.to(torch.uint8)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return agreed.bool()


def all_gather_object(value: T) -> list[T]:
    """What the processes call this with, in their order; for messages, not for every step."""
    if world_size() == 1:
        return [value]
    found = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def local_rows(whole: Tensor) -> Tensor:
    """The rows of this process in a tensor [processes x B, ...] about the images of the whole batch."""
    rows = len(whole) // world_size()
    return whole[rank() * rows : (rank() + 1) * rows]


def is_first_process() -> bool:
    """Whether this process is the first one of the run, also before it has joined the others."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
