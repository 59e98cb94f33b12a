"""A backbone for AnyDepth-DETR: plain residual blocks."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.detr.backbones.base import Backbone, BackboneKind, BackboneSettings
from anydepth.layers.norm import batch_norm
from anydepth.layers.stage import DepthStage
from spotter.detector import Block


class PlainBackbone(Backbone):
    """Stages of :class:`~spotter.detector.Block`; the first of each is essential."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], any_depth: bool, switchable_norms: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), nn.ReLU())
        self.stages = nn.ModuleList(
            DepthStage(
                essential=[Block(width, switchable=any_depth and switchable_norms)],
                refinement=[Block(width, switchable=False) for _ in range(count - 1)],
            )
            for count, width in zip(blocks, widths, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 2, stride=2) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(batch_norm(width) for width in widths[1:])
        self.out_channels = tuple(widths[1:])

    def forward(self, features: Tensor, refine: Sequence[bool]) -> tuple[Tensor, ...]:
        """See :meth:`anydepth.detr.backbones.base.Backbone.forward`."""
        maps = [self.stages[0](features, refine[0])]
        for down, norm, stage, flag in zip(self.downs, self.norms, self.stages[1:], refine[1:], strict=True):
            maps.append(stage(F.relu(norm(down(maps[-1]))), flag))
        return tuple(maps[1:])


def build_plain(settings: BackboneSettings) -> PlainBackbone:
    """Build the backbone."""
    if settings.frozen:
        raise ValueError("the plain backbone has no pretrained weights: give freeze_backbone_norms=false")
    return PlainBackbone(settings.blocks, settings.widths, settings.any_depth, settings.switchable_norms)


PLAIN = BackboneKind(
    label="a plain backbone",
    build=build_plain,
    stems={"small": ""},
    marker="backbone.stages.0.0.conv.weight",
    block_weight="conv.weight",
)
