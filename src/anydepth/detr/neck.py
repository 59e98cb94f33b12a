"""RT-DETR's hybrid encoder, with CSP blocks split into an essential and a refinement path.

Zhao et al., "DETRs beat YOLOs on real-time object detection", CVPR 2024, section 4.2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.layers.attention import EncoderLayer, sine_position_embedding
from anydepth.layers.conv import ConvNorm
from anydepth.layers.fold import FoldedConv, merge_branches
from anydepth.layers.norm import batch_norm, layer_norm
from anydepth.layers.specialise import Form
from anydepth.layers.stage import DepthStage


class RepVGGBlock(nn.Module):
    """3x3 and 1x1 convolutions in parallel, without an identity branch (training form of RepVGG)."""

    def __init__(self, *, channels: int, switchable: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(
            in_channels=channels,
            out_channels=channels,
            kernel_size=3,
            norm=batch_norm(channels, switchable=switchable),
        )
        self.conv2 = ConvNorm(
            in_channels=channels,
            out_channels=channels,
            kernel_size=1,
            norm=batch_norm(channels, switchable=switchable),
        )

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return F.silu(self.conv1(features, refine) + self.conv2(features, refine), inplace=True)

    def specialised(self, form: Form) -> nn.Module:
        """Return the inference form of RepVGG, one 3x3 convolution; kernels to share stay two branches."""
        if not (self.conv1.can_fold(form) and self.conv2.can_fold(form)):
            return self
        merged = merge_branches(self.conv1.folded(form.refine), self.conv2.folded(form.refine))
        return FoldedConv(merged, nn.SiLU(inplace=True))


class CSPRepBlock(nn.Module):
    """Cross-stage partial block: one branch runs RepVGG blocks, the other is a plain projection.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Ratio of hidden to output channels; if it is not 1, a third convolution restores them.
        blocks: Number of RepVGG blocks.
        essential: Number of them that always run; ``blocks`` in a fixed-depth network.
        switchable: Whether the essential path has two norm sets.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        expansion: float,
        blocks: int,
        essential: int,
        switchable: bool,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)

        def project(source: int, target: int) -> ConvNorm:
            return ConvNorm(
                in_channels=source,
                out_channels=target,
                kernel_size=1,
                norm=batch_norm(target, switchable=switchable),
                activation=nn.SiLU(inplace=True),
            )

        self.conv1 = project(in_channels, hidden)
        self.conv2 = project(in_channels, hidden)
        made = [
            RepVGGBlock(channels=hidden, switchable=switchable and index < essential)
            for index in range(blocks)
        ]
        self.bottlenecks = DepthStage(essential=made[:essential], refinement=made[essential:])
        self.conv3 = project(hidden, out_channels) if hidden != out_channels else None

    def forward(self, features: Tensor, refine: bool) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        merged: Tensor = self.bottlenecks(self.conv1(features, refine), refine) + self.conv2(features, refine)
        if self.conv3 is None:
            return merged
        out: Tensor = self.conv3(merged, refine)
        return out


class HybridEncoder(nn.Module):
    """Attention on the coarsest map (AIFI), then top-down and bottom-up fusion (CCFF).

    One flag drives the refinement paths of all CSP blocks and all switchable norms together.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        hidden_dim: Channels of every output map.
        ffn_dim: Hidden size of the attention layer's feed-forward network.
        heads: Number of attention heads.
        expansion: Ratio of hidden to output channels in the CSP blocks.
        blocks: Number of RepVGG blocks per CSP block.
        any_depth: Whether the CSP blocks are split: floor((blocks + 1) / 2) - 1 RepVGG blocks are essential.
        switchable_norms: Whether everything essential has two norm sets; only with ``any_depth``.

    Raises:
        ValueError: Too few RepVGG blocks to keep one essential and skip one.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        hidden_dim: int = 256,
        ffn_dim: int = 1024,
        heads: int = 8,
        expansion: float = 1.0,
        blocks: int = 3,
        any_depth: bool = True,
        switchable_norms: bool = True,
    ) -> None:
        super().__init__()
        essential = (blocks + 1) // 2 - 1 if any_depth else blocks
        if essential < 1:
            raise ValueError(f"blocks={blocks}: an any-depth neck needs at least 3, a fixed one 1")
        switchable = any_depth and switchable_norms
        steps = len(in_channels) - 1

        def conv(channels: int, kernel_size: int, stride: int, activation: nn.Module | None) -> ConvNorm:
            return ConvNorm(
                in_channels=channels,
                out_channels=hidden_dim,
                kernel_size=kernel_size,
                stride=stride,
                norm=batch_norm(hidden_dim, switchable=switchable),
                activation=activation,
            )

        def csp() -> CSPRepBlock:
            return CSPRepBlock(
                in_channels=2 * hidden_dim,
                out_channels=hidden_dim,
                expansion=expansion,
                blocks=blocks,
                essential=essential,
                switchable=switchable,
            )

        self.input_proj = nn.ModuleList(conv(channels, 1, 1, None) for channels in in_channels)
        self.aifi = EncoderLayer(
            dim=hidden_dim,
            heads=heads,
            ffn_dim=ffn_dim,
            attention_norm=layer_norm(hidden_dim, switchable=switchable),
            ffn_norm=layer_norm(hidden_dim, switchable=switchable),
        )
        self.lateral_convs = nn.ModuleList(
            conv(hidden_dim, 1, 1, nn.SiLU(inplace=True)) for _ in range(steps)
        )
        self.fpn_blocks = nn.ModuleList(csp() for _ in range(steps))
        self.downsample_convs = nn.ModuleList(
            conv(hidden_dim, 3, 2, nn.SiLU(inplace=True)) for _ in range(steps)
        )
        self.pan_blocks = nn.ModuleList(csp() for _ in range(steps))
        self.out_channels = (hidden_dim,) * len(in_channels)

    def forward(self, maps: Sequence[Tensor], refine: bool) -> tuple[Tensor, ...]:
        """Fuse the backbone's maps.

        Args:
            maps: [B, C, H, W] each, finest first.
            refine: Whether the refinement paths run.

        Returns:
            [B, hidden_dim, H, W] each, finest first.
        """
        projected = [conv(features, refine) for conv, features in zip(self.input_proj, maps, strict=True)]
        # Attention on the coarsest map only: RT-DETR, section 4.2.
        projected[-1] = self._attend(projected[-1], refine)
        top = projected[-1]
        laterals: list[Tensor] = []
        for lateral, block, finer in zip(
            self.lateral_convs, self.fpn_blocks, reversed(projected[:-1]), strict=True
        ):
            top = lateral(top, refine)
            laterals.insert(0, top)
            top = block(torch.cat([F.interpolate(top, scale_factor=2.0), finer], dim=1), refine)
        fused = [top]
        for down, block, coarser in zip(self.downsample_convs, self.pan_blocks, laterals, strict=True):
            fused.append(block(torch.cat([down(fused[-1], refine), coarser], dim=1), refine))
        return tuple(fused)

    def _attend(self, features: Tensor, refine: bool) -> Tensor:
        _, dim, height, width = features.shape
        position = sine_position_embedding(height, width, dim, device=features.device).to(features.dtype)
        tokens = self.aifi(features.flatten(2).transpose(1, 2), position, refine)  # [B, H * W, C]
        attended: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))  # [B, C, H, W]
        return attended
