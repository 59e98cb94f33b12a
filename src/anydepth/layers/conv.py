"""Convolution followed by a norm and an activation."""

from torch import Tensor, nn

from anydepth.layers.fold import FoldedConv, can_fold, fold
from anydepth.layers.norm import SwitchableNorm
from anydepth.layers.specialise import Form


class ConvNorm(nn.Module):
    """Convolution without bias, "same" padding, norm, activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel: 1, 3, 5 or 7; the padding is half of it.
        stride: Step of the kernel: 1 or 2.
        groups: Number of channel groups that are convolved separately.
        norm: Norm over ``out_channels``.
        activation: Activation after the norm; None for a linear output.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm: SwitchableNorm,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = norm
        self.activation = activation if activation is not None else nn.Identity()

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, in, H, W] -> [B, out, ceil(H/stride), ceil(W/stride)]; ``refine`` selects the norm set."""
        activated: Tensor = self.activation(self.norm(self.conv(features), refine))
        return activated

    def can_fold(self, form: Form) -> bool:
        """Return whether the norm may be folded into the kernel."""
        kept = form.share_weights and self.norm.skip is not None
        return not kept and can_fold(self.conv, self.norm.select(form.refine))

    def folded(self, refine: bool) -> nn.Conv2d:
        """Return the convolution with the norm folded into it, without the activation."""
        return fold(self.conv, self.norm.select(refine))

    def specialised(self, form: Form) -> nn.Module:
        """Return the convolution with the norm folded into it; a kernel to share keeps its norm behind it."""
        return FoldedConv(self.folded(form.refine), self.activation) if self.can_fold(form) else self
