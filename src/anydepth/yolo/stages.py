"""The stages of AnyDepth-YOLO: ELAN blocks whose chain of units is split into two paths."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from anydepth.layers.conv import ConvNorm
from anydepth.layers.stage import DepthStage
from anydepth.yolo.blocks import AttentionUnit, Bottleneck, C3k, FusionConv, conv

C3k2Split = Literal["bottleneck", "unit"]
C3k2Unit = Literal["bottleneck", "c3k"]
C3kSplit = Literal["bottleneck", "unit"]
# Number of units from which the fusion of a skipping A2C2f has a kernel of its own: with four units it sees
# 3/5 of the channels, and the shared kernel got conflicting gradients (AnyDepth-YOLO).
DEDICATED_FUSION_UNITS = 4
# Initial value of the learnt residual scale, that of YOLOv12.
_RESIDUAL_SCALE = 0.01


class ElanStage(nn.Module):
    """A chain of units whose outputs are all concatenated and fused.

    If the stage skips, the concatenation is shorter: nothing replaces the outputs of the refinement units.

    Args:
        entry: Convolution before the chain.
        chain: Units from the first to the last; each preserves its channels.
        fusion: Convolution over the outputs of ``entry`` and of every unit.
        halves: Whether the entry's output is cut in two and the chain starts from the second half (C3k2);
            otherwise the chain starts from all of it (A2C2f).
        residual_channels: Channels of a learnt scale with which the result is added to the input; None for no
            such residual.
    """

    def __init__(
        self,
        *,
        entry: ConvNorm,
        chain: DepthStage,
        fusion: FusionConv,
        halves: bool,
        residual_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.entry = entry
        self.chain = chain
        self.fusion = fusion
        self.halves = halves
        self.gamma = (
            nn.Parameter(torch.full((residual_channels,), _RESIDUAL_SCALE)) if residual_channels else None
        )

    def forward(self, features: Tensor, refine: bool) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        entered = self.entry(features, refine)
        outputs = list(entered.chunk(2, dim=1)) if self.halves else [entered]
        for unit in self.chain.active_blocks(refine):
            outputs.append(unit(outputs[-1], refine))
        fused: Tensor = self.fusion(outputs, refine)
        return fused if self.gamma is None else features + self.gamma.view(1, -1, 1, 1) * fused


def c3k2_stage(
    *,
    in_channels: int,
    out_channels: int,
    units: int,
    expansion: float,
    unit: C3k2Unit,
    split: C3k2Split,
    any_depth: bool,
    switchable: bool,
) -> ElanStage:
    """Build a C3k2 stage, whose units are C3k blocks or bottlenecks.

    With ``split="unit"`` the last half of the units is the refinement. With ``split="bottleneck"`` every unit
    is essential, and the refinement is the second bottleneck inside each C3k; a stage of bottleneck units
    then has no refinement, and only its norms switch.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        units: Number of units in the chain.
        expansion: Ratio of the channels of a unit to ``out_channels``.
        unit: Type of the units: ``c3k`` or ``bottleneck``.
        split: Part that is the refinement: ``bottleneck`` or ``unit``.
        any_depth: Whether the stage is split.
        switchable: Whether everything essential has two norm sets.
    """
    hidden = int(out_channels * expansion)
    inside = any_depth and split == "bottleneck" and unit == "c3k"
    essential = _essential_count(units) if any_depth and split == "unit" else units

    def make(is_essential: bool) -> nn.Module:
        switches = switchable and is_essential
        if unit == "c3k":
            return C3k(channels=hidden, switchable=switches, split=inside)
        return Bottleneck(channels=hidden, expansion=0.5, switchable=switches)

    return ElanStage(
        entry=conv(in_channels, 2 * hidden, switchable=switchable),
        chain=_chain(make, units, essential),
        fusion=FusionConv(
            in_channels=(2 + units) * hidden,
            skip_channels=(2 + essential) * hidden,
            out_channels=out_channels,
            dedicated=False,
            switchable=switchable,
        ),
        halves=True,
    )


def attention_stage(
    *,
    in_channels: int,
    out_channels: int,
    units: int,
    area: int,
    mlp_ratio: float,
    residual: bool,
    any_depth: bool,
    switchable: bool,
) -> ElanStage:
    """Build an A2C2f stage with attention units (R-ELAN); the last half of the units is the refinement.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a multiple of 64.
        units: Number of units in the chain, of two attention blocks each.
        area: Number of strips of the area attention.
        mlp_ratio: Ratio of hidden to outer channels in the MLPs.
        residual: Whether to add the input, with a learnt scale on the result; needs equal channels.
        any_depth: Whether the stage is split.
        switchable: Whether everything essential has two norm sets.
    """
    make = partial(_attention_unit, out_channels // 2, area, mlp_ratio, switchable)
    return _a2c2f(
        make,
        in_channels=in_channels,
        out_channels=out_channels,
        units=units,
        any_depth=any_depth,
        switchable=switchable,
        residual=residual,
    )


def c3k_stage(
    *,
    in_channels: int,
    out_channels: int,
    units: int,
    split: C3kSplit,
    any_depth: bool,
    switchable: bool,
) -> ElanStage:
    """Build an A2C2f stage with C3k units, as in the neck.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        units: Number of units in the chain.
        split: Part that is the refinement: ``unit`` is the last half of the units, of which a single one has
            none, ``bottleneck`` the second bottleneck inside each unit.
        any_depth: Whether the stage is split.
        switchable: Whether everything essential has two norm sets.
    """
    inside = any_depth and split == "bottleneck"
    make = partial(_c3k_unit, out_channels // 2, switchable, inside)
    return _a2c2f(
        make,
        in_channels=in_channels,
        out_channels=out_channels,
        units=units,
        any_depth=any_depth and not inside,
        switchable=switchable,
        residual=False,
    )


def _a2c2f(
    make: Callable[[bool], nn.Module],
    *,
    in_channels: int,
    out_channels: int,
    units: int,
    any_depth: bool,
    switchable: bool,
    residual: bool,
) -> ElanStage:
    hidden = out_channels // 2
    essential = _essential_count(units) if any_depth else units
    return ElanStage(
        entry=conv(in_channels, hidden, switchable=switchable),
        chain=_chain(make, units, essential),
        fusion=FusionConv(
            in_channels=(1 + units) * hidden,
            skip_channels=(1 + essential) * hidden,
            out_channels=out_channels,
            dedicated=any_depth and units >= DEDICATED_FUSION_UNITS,
            switchable=switchable,
        ),
        halves=False,
        residual_channels=out_channels if residual else None,
    )


def _attention_unit(
    channels: int, area: int, mlp_ratio: float, switchable: bool, is_essential: bool
) -> AttentionUnit:
    return AttentionUnit(
        channels=channels, area=area, mlp_ratio=mlp_ratio, switchable=switchable and is_essential
    )


def _c3k_unit(channels: int, switchable: bool, split: bool, is_essential: bool) -> C3k:
    return C3k(channels=channels, switchable=switchable and is_essential, split=split)


def _chain(make: Callable[[bool], nn.Module], units: int, essential: int) -> DepthStage:
    made = [make(position < essential) for position in range(units)]
    return DepthStage(essential=made[:essential], refinement=made[essential:])


def _essential_count(units: int) -> int:
    """Return how many units always run: the first half, rounded up."""
    return (units + 1) // 2
