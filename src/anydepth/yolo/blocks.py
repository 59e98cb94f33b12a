"""The blocks of YOLOv12, whose forward takes the flag of their stage.

Tian et al., "YOLOv12: Attention-centric real-time object detectors", NeurIPS 2025 (R-ELAN, area attention);
switchable norms and shared fusion kernels follow AnyDepth-YOLO (Kang et al., 2026).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.layers.conv import ConvNorm
from anydepth.layers.fold import can_fold, conv_like, fold, plain_norm
from anydepth.layers.norm import batch_norm
from anydepth.layers.specialise import Form
from anydepth.layers.stage import DepthStage

# Channels of an attention head in YOLOv12.
HEAD_CHANNELS = 32
# Batch norm of YOLOv5 and its successors, whose weights were trained with these values.
_EPS, _MOMENTUM = 1e-3, 0.03
# Standard deviation of the initial weights of attention blocks in YOLOv12.
_INIT_STD = 0.02


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    switchable: bool = False,
    activation: bool = True,
) -> ConvNorm:
    """Build YOLO's convolution with batch norm (eps 1e-3, momentum 0.03) and SiLU."""
    return ConvNorm(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        groups=groups,
        norm=batch_norm(out_channels, switchable=switchable, eps=_EPS, momentum=_MOMENTUM),
        activation=nn.SiLU(inplace=True) if activation else None,
    )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions around an identity shortcut.

    Args:
        channels: Channels of input and output.
        expansion: Ratio of hidden to outer channels.
        switchable: Whether norms have two sets.
    """

    def __init__(self, *, channels: int, expansion: float, switchable: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.conv1 = conv(channels, hidden, 3, switchable=switchable)
        self.conv2 = conv(hidden, channels, 3, switchable=switchable)

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        residual: Tensor = self.conv2(self.conv1(features, refine), refine)
        return features + residual


class C3k(nn.Module):
    """Cross-stage partial block of two bottlenecks.

    Args:
        channels: Channels of input and output.
        switchable: Whether norms have two sets, for blocks of the essential path.
        split: Whether the second bottleneck is the refinement; otherwise both are essential.
    """

    def __init__(self, *, channels: int, switchable: bool, split: bool = False) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = conv(channels, hidden, switchable=switchable)
        self.conv2 = conv(channels, hidden, switchable=switchable)
        self.conv3 = conv(2 * hidden, channels, switchable=switchable)
        first = Bottleneck(channels=hidden, expansion=1.0, switchable=switchable)
        second = Bottleneck(channels=hidden, expansion=1.0, switchable=switchable and not split)
        self.bottlenecks = (
            DepthStage(essential=[first], refinement=[second])
            if split
            else DepthStage(essential=[first, second])
        )

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        processed = self.bottlenecks(self.conv1(features, refine), refine)
        merged: Tensor = self.conv3(torch.cat([processed, self.conv2(features, refine)], dim=1), refine)
        return merged


class AreaAttention(nn.Module):
    """Self-attention within horizontal strips of the map, with positions from a convolution.

    Args:
        channels: Number of channels; a multiple of 32, the channels of a head.
        area: Number of strips; 1 attends over the whole map.
        switchable: Whether norms have two sets.

    Raises:
        ValueError: ``channels`` is not a multiple of 32.
    """

    def __init__(self, *, channels: int, area: int, switchable: bool) -> None:
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(
                f"got area attention of {channels} channels; allowed are multiples of {HEAD_CHANNELS}"
            )
        self.area = area
        self.heads = channels // HEAD_CHANNELS
        self.queries_keys = conv(channels, 2 * channels, switchable=switchable, activation=False)
        self.values = conv(channels, channels, switchable=switchable, activation=False)
        self.position = conv(channels, channels, 5, groups=channels, switchable=switchable, activation=False)
        self.project = conv(channels, channels, switchable=switchable, activation=False)

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W].

        Raises:
            ValueError: H * W is not a multiple of the number of strips.
        """
        height, width = features.shape[-2:]
        if height * width % self.area:
            raise ValueError(
                f"area attention in {self.area} strips cannot divide a map of {height}x{width} cells; give "
                "images whose height and width are multiples of 32"
            )
        queries, keys = self.queries_keys(features, refine).chunk(2, dim=1)  # [B, C, H, W] each
        values = self.values(features, refine)  # [B, C, H, W]
        attended = F.scaled_dot_product_attention(  # [B * area, heads, H * W / area, 32]
            self._split(queries), self._split(keys), self._split(values)
        )
        joined = attended.transpose(1, 2).reshape(features.shape[0], height * width, -1)  # [B, H * W, C]
        attended = joined.transpose(1, 2).reshape(features.shape)  # [B, C, H, W]
        projected: Tensor = self.project(attended + self.position(values, refine), refine)
        return projected

    def _split(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B * area, heads, H * W / area, 32]."""
        tokens = maps.flatten(2).transpose(1, 2)  # [B, H * W, C]
        strips = tokens.reshape(maps.shape[0] * self.area, -1, self.heads, HEAD_CHANNELS)
        return strips.transpose(1, 2)


class AttentionBlock(nn.Module):
    """Area attention and a convolutional MLP, both residual.

    Args:
        channels: Channels of input and output.
        area: Number of strips.
        mlp_ratio: Ratio of hidden to outer channels in the MLP.
        switchable: Whether norms have two sets.
    """

    def __init__(self, *, channels: int, area: int, mlp_ratio: float, switchable: bool) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.attention = AreaAttention(channels=channels, area=area, switchable=switchable)
        self.expand = conv(channels, hidden, switchable=switchable)
        self.contract = conv(hidden, channels, switchable=switchable, activation=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        features = features + self.attention(features, refine)
        residual: Tensor = self.contract(self.expand(features, refine), refine)
        return features + residual


class AttentionUnit(nn.Module):
    """Two attention blocks: one unit of an attention stage."""

    def __init__(self, *, channels: int, area: int, mlp_ratio: float, switchable: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AttentionBlock(channels=channels, area=area, mlp_ratio=mlp_ratio, switchable=switchable)
            for _ in range(2)
        )

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        for block in self.blocks:
            features = block(features, refine)
        return features


class FusionConv(nn.Module):
    """1x1 convolution over the concatenated outputs of a stage, which are fewer if it skips.

    The channels that a skipping stage keeps are the first ones of the full concatenation, so the same kernel
    serves both states, cut to the channels of its input; or the skip state has a kernel of its own.

    Args:
        in_channels: Channels of the input if the stage refines.
        skip_channels: Channels of the input if it skips.
        out_channels: Channels of the output.
        dedicated: Whether the skip state has a kernel of its own, which starts as a copy of the cut one.
        switchable: Whether the norm has two sets.
    """

    def __init__(
        self, *, in_channels: int, skip_channels: int, out_channels: int, dedicated: bool, switchable: bool
    ) -> None:
        super().__init__()
        self.fuse = conv(in_channels, out_channels, switchable=switchable)
        self.skip_channels = skip_channels
        self.skip_conv = nn.Conv2d(skip_channels, out_channels, 1, bias=False) if dedicated else None
        if self.skip_conv is not None:
            copy_prefix(self.fuse.conv, self.skip_conv)

    def forward(self, outputs: Sequence[Tensor], refine: bool) -> Tensor:
        """Maps [B, c, H, W] whose channels add up to those of the state -> [B, out, H, W]."""
        features = torch.cat(list(outputs), dim=1)
        if not refine and self.skip_conv is not None:
            mixed = self.skip_conv(features)
        else:
            mixed = F.conv2d(features, self.fuse.conv.weight[:, : features.shape[1]])
        fused: Tensor = self.fuse.activation(self.fuse.norm(mixed, refine))
        return fused

    def specialised(self, form: Form) -> nn.Module:
        """Return the fusion of one state: its kernel, cut to its channels, with the norm folded into it.

        A kernel to share is cut when it is used, and one that two norm sets use keeps its norm behind it.
        """
        norms, norm = self.fuse.norm, self.fuse.norm.select(form.refine)
        dedicated = self.skip_conv is not None
        conv = self.fuse.conv if form.refine or self.skip_conv is None else self.skip_conv
        channels = conv.in_channels if form.refine or dedicated else self.skip_channels
        if not form.share_weights:
            conv = conv_like(conv, conv.weight[:, :channels], conv.bias)
        # With a kernel for each state, each kernel has one norm set.
        kept = form.share_weights and norms.skip is not None and not dedicated
        if kept or not can_fold(conv, norm):
            return FixedFusion(conv, channels, plain_norm(norm), self.fuse.activation)
        return FixedFusion(fold(conv, norm), channels, nn.Identity(), self.fuse.activation)


class FixedFusion(nn.Module):
    """Fusion of a stage whose state never changes.

    Args:
        conv: 1x1 convolution; its kernel may see more channels than the state has.
        channels: Channels of the input.
        norm: Norm behind it.
        activation: Activation after the norm.
    """

    def __init__(self, conv: nn.Conv2d, channels: int, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.channels = channels
        self.norm = norm
        self.activation = activation

    def forward(self, outputs: Sequence[Tensor], refine: bool) -> Tensor:
        """Maps [B, c, H, W] whose channels add up to those of the state -> [B, out, H, W]."""
        features = torch.cat(list(outputs), dim=1)
        weight = self.conv.weight
        if self.channels < self.conv.in_channels:
            weight = weight[:, : self.channels]
        fused: Tensor = self.activation(self.norm(F.conv2d(features, weight, self.conv.bias)))
        return fused


@torch.no_grad()
def copy_prefix(full: nn.Conv2d, skip: nn.Conv2d) -> None:
    """Copy the part of the full kernel that sees the same channels into the kernel of the skip state."""
    skip.weight.copy_(full.weight[:, : skip.weight.shape[1]])
