"""Islands of float32 inside mixed precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


def disable_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast is off; inputs still have to be cast to float32 by the caller.

    Devices without autocast (``meta``, when operations are only counted) are left alone.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
