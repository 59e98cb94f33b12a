"""Where and in which precision a detector is evaluated."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device that a name means; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name.partition(":")[0] != "cuda":
        raise ValueError(f"device={name}: allowed are auto, cpu, cuda, and cuda:0, cuda:1, ...")
    index = name.partition(":")[2]
    if not torch.cuda.is_available() or (index and not index.isdecimal()):
        raise ValueError(f"device={name}: PyTorch sees no such GPU here; use device=cpu or device=auto")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: PyTorch sees GPUs 0 to {torch.cuda.device_count() - 1}")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """A context in which the network's products run in ``precision``; weights stay float32.

    Raises:
        ValueError: An unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision}: allowed are {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST_TYPES[precision])
