"""Float32 blocks inside mixed precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


def disable_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off inside the block; the caller still has to cast inputs to float32.

    Does nothing on devices without autocast (``meta``, when operations are only counted).
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
