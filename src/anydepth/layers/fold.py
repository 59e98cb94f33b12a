"""Norms with fixed statistics, folded into the convolution in front of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from anydepth.layers.sync_norm import HostSyncBatchNorm

# Exactly these types: a subclass may compute something else.
_FIXED_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, HostSyncBatchNorm, FrozenBatchNorm2d)


class FoldedConv(nn.Module):
    """Convolution with bias and activation: what remains of a convolution, its norm and its activation.

    Args:
        conv: Convolution that the norm is folded into.
        activation: Activation after it.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']; ``refine`` is not used, there is one state."""
        activated: Tensor = self.activation(self.conv(features))
        return activated


def can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Return whether an ordinary convolution precedes a norm that is a fixed scale and shift in eval mode."""
    ordinary = isinstance(conv, nn.Conv2d) and type(conv).forward is nn.Conv2d.forward
    return ordinary and _read(norm) is not None


def fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return one convolution with bias that computes what a convolution and then a norm compute in eval mode.

    Args:
        conv: Convolution; it is not changed.
        norm: Norm over its output, for which :func:`can_fold` is true.

    Raises:
        ValueError: Another norm.
    """
    fixed = _read(norm)
    if fixed is None:
        raise ValueError(f"got a {type(norm).__name__}, expected a norm for which can_fold is true")
    scale, shift = fixed.scale_and_shift()  # [out] each
    weight = _exact(conv.weight) * scale.view(-1, 1, 1, 1)  # [out, in / groups, h, w]
    if conv.bias is not None:
        shift = shift + _exact(conv.bias) * scale
    return conv_like(conv, weight.to(conv.weight.dtype), shift.to(conv.weight.dtype))


def merge_branches(square: nn.Conv2d, point: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution that equals the sum of a 3x3 and a 1x1 convolution of the same input.

    Source: Ding et al., "RepVGG: Making VGG-style ConvNets great again", CVPR 2021, section 3.3.

    Args:
        square: 3x3 convolution with bias and padding 1.
        point: 1x1 convolution with bias, and the stride and groups of ``square``.
    """
    assert square.bias is not None
    assert point.bias is not None
    # A 1x1 kernel is a 3x3 kernel that sees only the centre.
    weight = _exact(square.weight) + F.pad(_exact(point.weight), (1, 1, 1, 1))  # [out, in / groups, 3, 3]
    bias = _exact(square.bias) + _exact(point.bias)
    return conv_like(square, weight.to(square.weight.dtype), bias.to(square.weight.dtype))


def conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a convolution with these tensors, and the stride, padding and groups of ``conv``."""
    # On ``meta``, initial weights take no memory and no random numbers.
    made = nn.Conv2d(
        weight.shape[1] * conv.groups,
        weight.shape[0],
        _pair(weight.shape[2:]),
        stride=_pair(conv.stride),
        padding=conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
        dilation=_pair(conv.dilation),
        groups=conv.groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    made.weight = _parameter(weight)
    if bias is not None:
        made.bias = _parameter(bias)
    return made


def plain_norm(norm: nn.Module) -> nn.Module:
    """Return an ordinary batch norm in place of a frozen or synchronised one; any other norm as it is."""
    fixed = _read(norm)
    if fixed is None:
        return norm
    made = nn.BatchNorm2d(len(fixed.mean), fixed.eps, affine=False, device="meta").eval()
    if fixed.weight is not None and fixed.bias is not None:
        made.affine = True
        made.weight, made.bias = _parameter(fixed.weight), _parameter(fixed.bias)
    made.running_mean, made.running_var = fixed.mean, fixed.variance
    # Only training counts batches.
    made.num_batches_tracked = None
    return made


@dataclass(frozen=True)
class _FixedNorm:
    """Tensors [C] of a norm with fixed statistics; without weight and bias, it only standardises."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return scale [C] and shift [C] that the norm applies to each channel."""
        scale = (_exact(self.variance) + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * _exact(self.weight)
        shift = -_exact(self.mean) * scale
        return scale, shift if self.bias is None else shift + _exact(self.bias)


def _read(norm: nn.Module) -> _FixedNorm | None:
    """Return the tensors of a norm, or None if it is not a fixed scale and shift per channel in eval mode."""
    if type(norm) not in _FIXED_NORMS:
        return None
    assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        return None
    return _FixedNorm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, so that folding rounds once, or in float32 on devices that lack float64."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
