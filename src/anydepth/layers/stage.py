"""The stage: an essential path that always runs, then a refinement path that may be skipped."""

from collections.abc import Sequence

from torch import Tensor, nn


class DepthStage(nn.Module):
    """Blocks in sequence, the last of which may be skipped.

    Skipping means that the refinement blocks are not called; nothing replaces them, so they must keep
    shapes. Blocks are told whether the stage refines, which selects the norm set of essential blocks.

    Args:
        essential: Blocks called as ``block(features, refine)``; at least one.
        refinement: Blocks called likewise, always with true; none in a fixed-depth network.
        channels_last: The blocks take and give [B, H, W, C], as window attention does.
    """

    def __init__(
        self,
        *,
        essential: Sequence[nn.Module],
        refinement: Sequence[nn.Module] = (),
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if not essential:
            raise ValueError(
                f"a stage of {len(refinement)} refinement blocks has no essential block: give at least one"
            )
        self.channels_last = channels_last
        self.essential = nn.ModuleList(essential)
        self.refinement = nn.ModuleList(refinement)

    def running(self, refine: bool) -> list[nn.Module]:
        """The blocks that run, in order."""
        return [*self.essential, *self.refinement] if refine else list(self.essential)

    def forward(self, features: Tensor, refine: bool) -> Tensor:
        """Run the essential path on [B, C, H, W] (or channels last), and the refinement where ``refine``."""
        for block in self.running(refine):
            features = block(features, refine)
        return features


def essential_count(blocks: int) -> int:
    """How many blocks of a backbone's stage are essential: the first half; at least one is left to skip."""
    return min(blocks - 1, (blocks + 1) // 2)


def check_stages(blocks: Sequence[int], widths: Sequence[int], *, any_depth: bool) -> None:
    """Refuse sizes of a backbone other than four stages with enough blocks to split.

    Raises:
        ValueError: Lists of another length, or a stage of too few blocks.
    """
    if len(blocks) != 4 or len(widths) != 4:
        raise ValueError(f"blocks={list(blocks)}, widths={list(widths)}: give four numbers each")
    if min(blocks) < (2 if any_depth else 1):
        raise ValueError(f"blocks={list(blocks)}: an any-depth stage needs 2 blocks, a fixed one 1")
