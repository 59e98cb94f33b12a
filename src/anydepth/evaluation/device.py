"""Device and precision of an evaluation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, or the CPU if there is no GPU.

    Raises:
        ValueError: The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name.partition(":")[0] != "cuda":
        raise ValueError(f"got device={name}, expected auto, cpu, cuda, or cuda:0, cuda:1, ...")
    index = name.partition(":")[2]
    if not torch.cuda.is_available() or (index and not index.isdecimal()):
        raise ValueError(f"got device={name}, but PyTorch sees no such GPU; use device=cpu or device=auto")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(
            f"got device={name}, but PyTorch sees GPUs 0 to {torch.cuda.device_count() - 1}; use one of them"
        )
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products and convolutions run in ``precision``; weights stay float32.

    Raises:
        ValueError: An unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"got precision={precision}, expected one of {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST_TYPES[precision])
