"""The stage: an essential path that always runs, then a refinement path that may be skipped."""

from collections.abc import Sequence

from torch import Tensor, nn


class DepthStage(nn.Module):
    """Blocks in sequence, the last of which may be skipped.

    Skipping means that the refinement blocks are not called; nothing replaces them, so they must preserve
    shapes. Each block receives the stage's flag, which selects the norm set of essential blocks.

    Args:
        essential: Blocks called as ``block(features, refine)``; at least one.
        refinement: Blocks called in the same way, always with true; none in a fixed-depth network.
        channels_last: Whether the blocks take and return [B, H, W, C], as window attention does.

    Raises:
        ValueError: No essential block.
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
                f"got a stage of {len(refinement)} refinement blocks and no essential block; give at least "
                "one essential block"
            )
        self.channels_last = channels_last
        self.essential = nn.ModuleList(essential)
        self.refinement = nn.ModuleList(refinement)

    def active_blocks(self, refine: bool) -> list[nn.Module]:
        """Return the blocks that run, in order."""
        return [*self.essential, *self.refinement] if refine else list(self.essential)

    def forward(self, features: Tensor, refine: bool) -> Tensor:
        """Run the essential path on [B, C, H, W] (or channels last), then, if ``refine``, the refinement."""
        for block in self.active_blocks(refine):
            features = block(features, refine)
        return features


def essential_count(blocks: int) -> int:
    """Return how many blocks of a backbone's stage are essential: the first half, and never all of them."""
    return min(blocks - 1, (blocks + 1) // 2)


def check_stages(blocks: Sequence[int], widths: Sequence[int], *, any_depth: bool) -> None:
    """Check that a backbone has four stages with enough blocks to split.

    Raises:
        ValueError: Lists that do not have four entries, or a stage of too few blocks.
    """
    if len(blocks) != 4 or len(widths) != 4:
        raise ValueError(f"blocks={list(blocks)}, widths={list(widths)}: give four numbers each")
    if min(blocks) < (2 if any_depth else 1):
        raise ValueError(f"blocks={list(blocks)}: an any-depth stage needs 2 blocks, a fixed one 1")
