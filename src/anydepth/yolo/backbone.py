"""The backbone of AnyDepth-YOLO: a stem that every depth shares, and four stages."""

from collections.abc import Sequence

from torch import Tensor, nn

from anydepth.yolo.blocks import conv
from anydepth.yolo.stages import C3k2Split, C3k2Unit, attention_stage, c3k2_stage


class YoloBackbone(nn.Module):
    """Layers 0 to 8 of YOLOv12: two C3k2 stages (strides 4 and 8), two attention stages (16 and 32).

    Groups, areas and the expansion of C3k2 are those of the published network.

    Args:
        widths: Channels at the five nominal widths 64, 128, 256, 512 and 1024.
        units: Number of units of each of the four stages.
        c3k2_unit: Type of the units of the first two stages.
        c3k2_split: Part that is the refinement in the first two stages.
        mlp_ratio: Ratio of hidden to outer channels in the attention blocks' MLPs.
        residual: Whether attention stages add their input, with a learnt scale on the result.
        any_depth: Whether the stages are split; otherwise everything is essential.
        switchable_norms: Whether everything essential has two norm sets; only with ``any_depth``.

    Attributes:
        stem: Module from images to the input of the first stage; the same at every depth.
        out_channels: Channels of the three output maps (strides 8, 16, 32).
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        units: Sequence[int],
        c3k2_unit: C3k2Unit,
        c3k2_split: C3k2Split,
        mlp_ratio: float,
        residual: bool,
        any_depth: bool,
        switchable_norms: bool,
    ) -> None:
        super().__init__()
        w64, w128, w256, w512, w1024 = widths
        switchable = any_depth and switchable_norms
        self.stem = nn.Sequential(conv(3, w64, 3, stride=2), conv(w64, w128, 3, stride=2, groups=2))
        # A convolution that halves the map uses the norm set of the stage it feeds.
        self.downs = nn.ModuleList(
            [
                conv(w256, w256, 3, stride=2, groups=4, switchable=switchable),
                conv(w512, w512, 3, stride=2, switchable=switchable),
                conv(w512, w1024, 3, stride=2, switchable=switchable),
            ]
        )
        c3k2 = [
            c3k2_stage(
                in_channels=source,
                out_channels=target,
                units=count,
                expansion=0.25,
                unit=c3k2_unit,
                split=c3k2_split,
                any_depth=any_depth,
                switchable=switchable,
            )
            for source, target, count in ((w128, w256, units[0]), (w256, w512, units[1]))
        ]
        attention = [
            attention_stage(
                in_channels=width,
                out_channels=width,
                units=count,
                area=area,
                mlp_ratio=mlp_ratio,
                residual=residual,
                any_depth=any_depth,
                switchable=switchable,
            )
            for width, count, area in ((w512, units[2], 4), (w1024, units[3], 1))
        ]
        self.stages = nn.ModuleList([*c3k2, *attention])
        self.out_channels = (w512, w512, w1024)

    def forward(self, features: Tensor, refine: Sequence[bool]) -> tuple[Tensor, ...]:
        """Compute the feature maps of stages 2, 3 and 4.

        Args:
            features: [B, C, H/4, W/4], the output of :attr:`stem` for images [B, 3, H, W].
            refine: One flag per stage.

        Returns:
            [B, C, H/8, W/8], [B, C, H/16, W/16], [B, C, H/32, W/32].
        """
        features = self.stages[0](features, refine[0])
        maps = []
        for down, stage, flag in zip(self.downs, self.stages[1:], refine[1:], strict=True):
            features = stage(down(features, flag), flag)
            maps.append(features)
        return tuple(maps)
