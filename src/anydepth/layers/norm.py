"""Switchable norms: one set of parameters if the stage refines, another if it skips."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from anydepth.layers.fold import plain_norm
from anydepth.layers.specialise import Form


class SwitchableNorm(nn.Module):
    """A norm layer with one set of parameters and statistics per state of its stage.

    The rule is local (adaptive depth networks, Kang et al.): a layer uses the set of its own stage's flag,
    whatever other stages do. If a layer is not switchable, or belongs to a refinement path, one set serves
    both states.

    Args:
        full: Norm used if the stage refines.
        skip: Norm used if the stage skips; None to use ``full`` for both.
    """

    def __init__(self, *, full: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.full = full
        self.skip = skip

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """Normalise ``features`` (any shape that the norm accepts) with the set that ``refine`` selects."""
        normalised: Tensor = self.select(refine)(features)
        return normalised

    def select(self, refine: bool) -> nn.Module:
        """Return the set that ``refine`` selects."""
        return self.full if refine or self.skip is None else self.skip

    def specialised(self, form: Form) -> "SwitchableNorm":
        """Return a norm with one set; frozen and synchronised norms become ordinary ones."""
        return SwitchableNorm(full=plain_norm(self.select(form.refine)))


def batch_norm(
    channels: int,
    *,
    switchable: bool = False,
    frozen: bool = False,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> SwitchableNorm:
    """Build a batch norm over [B, ``channels``, H, W].

    Args:
        channels: Number of channels.
        switchable: Whether the skip state has a set of its own.
        frozen: Whether weights and statistics are buffers that training does not change.
        eps: Constant added to the variance; torch's default.
        momentum: Share of the newest batch in the running statistics; torch's default.
    """
    make: Callable[[int], nn.Module] = (
        partial(FrozenBatchNorm2d, eps=eps) if frozen else partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
    )
    return SwitchableNorm(full=make(channels), skip=make(channels) if switchable else None)


def layer_norm(channels: int, *, switchable: bool = False) -> SwitchableNorm:
    """Build a layer norm over the last axis of [..., ``channels``], eps 1e-5."""
    return SwitchableNorm(full=nn.LayerNorm(channels), skip=nn.LayerNorm(channels) if switchable else None)


def switchable_norms(module: nn.Module) -> Iterator[tuple[str, SwitchableNorm]]:
    """Yield the name and the norm of every part of ``module`` that holds two sets."""
    for name, part in module.named_modules():
        if isinstance(part, SwitchableNorm) and part.skip is not None:
            yield name, part


@torch.no_grad()
def copy_full_norms_to_skip(module: nn.Module) -> int:
    """Fill every skip set with a copy of its full set, as when weights of a fixed-depth network are loaded.

    Returns:
        The number of norms that were copied.
    """
    copied = 0
    for _, norm in switchable_norms(module):
        assert norm.skip is not None
        norm.skip.load_state_dict(norm.full.state_dict())
        copied += 1
    return copied
