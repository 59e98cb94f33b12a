"""Swin Transformer whose stages split into an essential and a refinement path.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021; the split
follows adaptive depth networks (Kang et al.). Window attention is torchvision's, so that its weights fit.
"""

from collections.abc import Sequence
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import MLP, StochasticDepth

from anydepth import distributed
from anydepth.detr.backbones.base import Backbone, BackboneKind, BackboneSettings
from anydepth.layers.norm import layer_norm
from anydepth.layers.stage import DepthStage, check_stages, essential_count

# Sizes of the paper (section 3): patch and window side, channels of a head, hidden over outer width of MLPs.
PATCH = 4
WINDOW = 7
HEAD_DIM = 32
MLP_RATIO = 4
# Standard deviation of initial weights, that of the released implementation.
_INIT_STD = 0.02


class PatchEmbedding(nn.Module):
    """Turns each patch of 4x4 pixels into one token; its norm has one set."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = layer_norm(width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H/4, W/4]."""
        embedded: Tensor = self.norm(_channels_last(self.projection(images)))
        return _channels_first(embedded)


class PatchMerging(nn.Module):
    """Merges each 2x2 tokens into one; odd sizes are padded with zeros.

    Args:
        in_width: Channels of the input.
        width: Channels of the output.
        switchable: Whether the norm has two sets.
    """

    def __init__(self, *, in_width: int, width: int, switchable: bool) -> None:
        super().__init__()
        self.norm = layer_norm(4 * in_width, switchable=switchable)
        self.reduction = nn.Linear(4 * in_width, width, bias=False)

    def forward(self, features: Tensor, refine: bool) -> Tensor:
        """[B, H, W, in] -> [B, ceil(H/2), ceil(W/2), width]; ``refine`` selects the norm set."""
        height, width = features.shape[1:3]
        padded = F.pad(features, (0, 0, 0, width % 2, 0, height % 2))
        # Down before right, the order that pretrained weights expect.
        four = [padded[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(four, dim=-1), refine))
        return merged


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP, each with a shortcut around it.

    Both branches are dropped at random per image (stochastic depth) in training, but not if the stage skips
    its refinement path: the stage is shallow already (adaptive depth networks).

    Args:
        width: Number of channels; a multiple of 32.
        shifted: Whether windows are shifted by half their size.
        drop: Probability that a branch is dropped.
        switchable: Whether norms have two sets, for blocks of the essential path.
    """

    def __init__(self, *, width: int, shifted: bool, drop: float, switchable: bool) -> None:
        super().__init__()
        shift = WINDOW // 2 if shifted else 0
        self.norm1 = layer_norm(width, switchable=switchable)
        self.attn = ShiftedWindowAttention(width, [WINDOW] * 2, [shift] * 2, width // HEAD_DIM)
        self.norm2 = layer_norm(width, switchable=switchable)
        self.mlp = MLP(width, [MLP_RATIO * width, width], activation_layer=nn.GELU)
        self.stochastic_depth = StochasticDepth(drop, "row")

    @property
    def last_layers(self) -> tuple[nn.Linear, nn.Linear]:
        """Last linear layers of the two residual branches."""
        return self.attn.proj, self.mlp[-2]

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, H, W, width] -> the same; ``refine`` selects the norm sets."""
        features = features + self._drop(self.attn(self.norm1(features, refine)), refine)
        return features + self._drop(self.mlp(self.norm2(features, refine)), refine)

    def _drop(self, branch: Tensor, refine: bool) -> Tensor:
        if not (refine and self.training and self.stochastic_depth.p):
            return branch
        # Drawn for the images of all processes, like all random numbers of a step.
        ones = branch.new_ones(distributed.world_size() * len(branch), 1, 1, 1)
        kept: Tensor = branch * distributed.local_rows(self.stochastic_depth(ones))
        return kept


class SwinTransformer(Backbone):
    """Stem and four stages; the maps of stages 2 to 4 go to the neck, without a final norm.

    The second, fourth, ... block of a stage has shifted windows. Maps are padded to multiples of the window
    inside the attention. The patch merging before a stage belongs to that stage: its norm follows the stage's
    flag.

    Args:
        blocks: Number of blocks of each of the four stages.
        widths: Channels of each of the four stages; heads have 32 channels each.
        any_depth: Whether each stage is split; otherwise every block is essential (a fixed-depth Swin
            Transformer).
        switchable_norms: Whether essential blocks and patch merging have two norm sets; only with
            ``any_depth``.
        stochastic_depth: Probability that the last block drops a branch; it grows linearly from 0 at the
            first block, counted over all stages.
        frozen_stem: Whether the patch embedding is frozen, as released for pretrained backbones. Layer norms
            have no statistics and stay trainable.

    Attributes:
        stem: Module from images to the input of the first stage; the same at every depth.
        out_channels: Channels of the three output maps (strides 8, 16, 32).

    Raises:
        ValueError: Lists that do not have four entries, an any-depth stage of fewer than two blocks, a width
            that is not a multiple of 32, or a probability outside [0, 1).
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        any_depth: bool = True,
        switchable_norms: bool = True,
        stochastic_depth: float = 0.1,
        frozen_stem: bool = False,
    ) -> None:
        super().__init__()
        check_stages(blocks, widths, any_depth=any_depth)
        if any(width % HEAD_DIM for width in widths):
            raise ValueError(f"widths={list(widths)}: give multiples of {HEAD_DIM}, the size of a head")
        if not 0 <= stochastic_depth < 1:
            raise ValueError(f"stochastic_depth={stochastic_depth}: allowed are 0 <= stochastic_depth < 1")
        switchable = any_depth and switchable_norms
        last = sum(blocks) - 1
        drops = (stochastic_depth * index / last for index in count())
        stages = []
        for total, width in zip(blocks, widths, strict=True):
            essential = essential_count(total) if any_depth else total
            made = [
                SwinBlock(
                    width=width,
                    shifted=position % 2 == 1,
                    drop=next(drops),
                    switchable=switchable and position < essential,
                )
                for position in range(total)
            ]
            stages.append(
                DepthStage(essential=made[:essential], refinement=made[essential:], channels_last=True)
            )
        self.stem = PatchEmbedding(width=widths[0])
        self.stages = nn.ModuleList(stages)
        # One before each of the stages 2 to 4.
        self.merges = nn.ModuleList(
            PatchMerging(in_width=before, width=after, switchable=switchable)
            for before, after in pairwise(widths)
        )
        self.out_channels = tuple(widths[1:])
        self._initialise(frozen_stem)

    def forward(self, features: Tensor, refine: Sequence[bool]) -> tuple[Tensor, ...]:
        """Compute the feature maps of stages 2, 3 and 4.

        Args:
            features: [B, C, H/4, W/4], the output of :attr:`stem` for images [B, 3, H, W].
            refine: One flag per stage.

        Returns:
            [B, C, H/8, W/8], [B, C, H/16, W/16], [B, C, H/32, W/32].
        """
        first, *others = zip(self.stages, refine, strict=True)
        tokens = first[0](_channels_last(features), first[1])
        maps = []
        for merge, (stage, flag) in zip(self.merges, others, strict=True):
            tokens = stage(merge(tokens, flag), flag)
            maps.append(_channels_first(tokens).contiguous())
        return tuple(maps)

    def _initialise(self, frozen_stem: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Refinements start as the identity, for the reason given in resnet.py, unless weights are loaded.
        for name, module in self.named_modules():
            if isinstance(module, SwinBlock) and ".refinement." in name:
                for layer in module.last_layers:
                    nn.init.zeros_(layer.weight)
        self.stem.requires_grad_(not frozen_stem)


def _channels_last(features: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C]."""
    return features.permute(0, 2, 3, 1)


def _channels_first(features: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W]."""
    return features.permute(0, 3, 1, 2)


def _build(settings: BackboneSettings) -> SwinTransformer:
    return SwinTransformer(
        blocks=settings.blocks,
        widths=settings.widths,
        any_depth=settings.any_depth,
        switchable_norms=settings.switchable_norms,
        stochastic_depth=settings.stochastic_depth,
        frozen_stem=settings.frozen,
    )


SWIN = BackboneKind(
    label="a Swin Transformer",
    build=_build,
    stems={"patch": ""},
    marker="backbone.stages.0.0.attn.qkv.weight",
    block_weight="attn.qkv.weight",
    has_stochastic_depth=True,
    sizes={(2, 2, 6, 2): ("swin_t", "Swin-T")},
)
"""Swin-T."""
