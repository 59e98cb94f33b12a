"""Switchable norms: one parameter set for "this stage refines", one for "this stage skips"."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class SwitchableNorm(nn.Module):
    """A norm layer with one set of parameters and statistics per state of its stage.

    The rule is local (adaptive depth networks, Kang et al.): a layer uses the set of its own stage's flag,
    whatever other stages do. Where a layer is not switchable, or belongs to a refinement path, one set
    serves both states.

    Args:
        full: The norm used where the stage refines.
        skip: The norm used where the stage skips; None to use ``full`` for both.
    """

    def __init__(self, *, full: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.full = full
        self.skip = skip

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """Normalise ``features`` (any shape that the norm takes) with the set of ``refine``."""
        norm = self.full if refine or self.skip is None else self.skip
        normalised: Tensor = norm(features)
        return normalised


def batch_norm(
    channels: int,
    *,
    switchable: bool = False,
    frozen: bool = False,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> SwitchableNorm:
    """Batch norm over [B, ``channels``, H, W].

    Args:
        channels: Number of channels.
        switchable: Give the skip state its own set.
        frozen: Weights and statistics are buffers that training leaves alone.
        eps: Added to the variance.
        momentum: Share of the newest batch in the running statistics.
    """
    make: Callable[[int], nn.Module] = (
        partial(FrozenBatchNorm2d, eps=eps) if frozen else partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
    )
    return SwitchableNorm(full=make(channels), skip=make(channels) if switchable else None)


def layer_norm(channels: int, *, switchable: bool = False) -> SwitchableNorm:
    """Layer norm over the last axis of [..., ``channels``], eps 1e-5."""
    return SwitchableNorm(full=nn.LayerNorm(channels), skip=nn.LayerNorm(channels) if switchable else None)


def switchable_norms(module: nn.Module) -> Iterator[tuple[str, SwitchableNorm]]:
    """Every norm of ``module`` that holds two sets, with its name."""
    for name, part in module.named_modules():
        if isinstance(part, SwitchableNorm) and part.skip is not None:
            yield name, part


@torch.no_grad()
def copy_full_norms_to_skip(module: nn.Module) -> int:
    """Start every skip set as a copy of its full set, as when weights of a fixed-depth network are loaded.

    Returns:
        How many norms were copied.
    """
    copied = 0
    for _, norm in switchable_norms(module):
        assert norm.skip is not None
        norm.skip.load_state_dict(norm.full.state_dict())
        copied += 1
    return copied
