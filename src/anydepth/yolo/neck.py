"""The neck of AnyDepth-YOLO: top-down and bottom-up fusion in four stages (PAN)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.yolo.blocks import conv
from anydepth.yolo.stages import C3k2Split, C3kSplit, c3k2_stage, c3k_stage


class YoloNeck(nn.Module):
    """Layers 9 to 20 of YOLOv12.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        widths: Channels at the nominal widths 256, 512 and 1024, those of the outputs.
        units: Number of units of each of the four stages.
        c3k_split: Part that is the refinement in the first three stages.
        c3k2_split: Part that is the refinement in the last stage.
        any_depth: Whether the stages are split; otherwise everything is essential.
        switchable_norms: Whether everything essential has two norm sets; only with ``any_depth``.

    Attributes:
        out_channels: Channels of the three output maps (strides 8, 16, 32).
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        widths: Sequence[int],
        units: Sequence[int],
        c3k_split: C3kSplit,
        c3k2_split: C3k2Split,
        any_depth: bool,
        switchable_norms: bool,
    ) -> None:
        super().__init__()
        p3, p4, p5 = in_channels
        w256, w512, w1024 = widths
        switchable = any_depth and switchable_norms
        # A convolution that halves the map uses the norm set of the stage it feeds.
        self.downs = nn.ModuleList(
            [
                conv(w256, w256, 3, stride=2, switchable=switchable),
                conv(w512, w512, 3, stride=2, switchable=switchable),
            ]
        )
        stages = [
            c3k_stage(
                in_channels=source,
                out_channels=target,
                units=count,
                split=c3k_split,
                any_depth=any_depth,
                switchable=switchable,
            )
            for source, target, count in (
                (p5 + p4, w512, units[0]),
                (w512 + p3, w256, units[1]),
                (w256 + w512, w512, units[2]),
            )
        ]
        last = c3k2_stage(
            in_channels=w512 + p5,
            out_channels=w1024,
            units=units[3],
            expansion=0.5,
            unit="c3k",
            split=c3k2_split,
            any_depth=any_depth,
            switchable=switchable,
        )
        self.stages = nn.ModuleList([*stages, last])
        self.out_channels = (w256, w512, w1024)

    def forward(self, maps: Sequence[Tensor], refine: Sequence[bool]) -> tuple[Tensor, ...]:
        """Fuse the backbone's maps.

        Args:
            maps: [B, C, H/8, W/8], [B, C, H/16, W/16], [B, C, H/32, W/32].
            refine: One flag per stage.

        Returns:
            Maps of the same sizes with :attr:`out_channels` channels.
        """
        fine, middle, coarse = maps
        down_middle = self.stages[0](torch.cat([_upsample(coarse), middle], dim=1), refine[0])
        out_fine = self.stages[1](torch.cat([_upsample(down_middle), fine], dim=1), refine[1])
        halved = self.downs[0](out_fine, refine[2])
        out_middle = self.stages[2](torch.cat([halved, down_middle], dim=1), refine[2])
        halved = self.downs[1](out_middle, refine[3])
        out_coarse = self.stages[3](torch.cat([halved, coarse], dim=1), refine[3])
        return out_fine, out_middle, out_coarse


def _upsample(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")
