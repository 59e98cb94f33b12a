"""Interface of the backbones of the DETR family, and the entries of the table that lists them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Stem and four stages; the maps of stages 2 to 4 go to the neck.

    Attributes:
        stem: Module from images [B, 3, H, W] to the input [B, C, H/4, W/4] of the first stage; the same at
            every depth.
        stages: Four :class:`~anydepth.layers.stage.DepthStage`, whose refinement paths may be skipped.
        out_channels: Channels of the three output maps (strides 8, 16, 32).
    """

    stem: nn.Module
    stages: nn.ModuleList
    out_channels: tuple[int, ...]

    @abstractmethod
    def forward(self, features: Tensor, refine: Sequence[bool]) -> tuple[Tensor, ...]:
        """Return the feature maps of stages 2, 3 and 4.

        Args:
            features: [B, C, H/4, W/4], output of :attr:`stem` for images [B, 3, H, W].
            refine: One flag per stage.

        Returns:
            [B, C, H/8, W/8], [B, C, H/16, W/16], [B, C, H/32, W/32].
        """


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """Settings that all kinds of backbones share.

    Attributes:
        blocks: Number of blocks of each of the four stages.
        widths: Width of each of the four stages.
        stem: Name of the stem, one of those of the kind.
        stochastic_depth: Probability that the last block drops its residual branches in training; 0 for a
            kind without stochastic depth.
        any_depth: Whether stages are split into essential and refinement paths.
        switchable_norms: Whether essential paths have two norm sets; only with ``any_depth``.
        frozen: Whether norms with statistics and the stem are frozen.
    """

    blocks: Sequence[int]
    widths: Sequence[int]
    stem: str
    stochastic_depth: float
    any_depth: bool
    switchable_norms: bool
    frozen: bool


@dataclass(frozen=True)
class BackboneKind:
    """A kind of backbone: its builder, and the weights by which it is detected in a file.

    Attributes:
        label: Common name with its article, e.g. ``a ResNet``.
        build: Function that builds a backbone; the stem and ``stochastic_depth`` are checked before.
        stems: Plain name of a weight that only this stem of the kind has, by name of the stem; empty for the
            stem that has none of these weights.
        marker: Plain name of a weight that only backbones of this kind have, or that no kind earlier in the
            table has; see :func:`anydepth.weights.plan.plain_names`.
        block_weight: Name of a weight that every block has, relative to the block.
        has_stochastic_depth: Whether it can drop residual branches in training.
        sizes: Suffix of the names of detectors with it, and its common name, by blocks per stage.
    """

    label: str
    build: Callable[[BackboneSettings], Backbone]
    stems: Mapping[str, str]
    marker: str
    block_weight: str
    has_stochastic_depth: bool = False
    sizes: Mapping[tuple[int, ...], tuple[str, str]] = field(default_factory=dict)

    def stem_in(self, has: Callable[[str], bool]) -> str:
        """Return the stem of the backbone for whose plain names of weights ``has`` is true."""
        marked = [stem for stem, weight in self.stems.items() if weight and has(weight)]
        plain = [stem for stem, weight in self.stems.items() if not weight]
        return (marked or plain or list(self.stems))[0]

    def blocks_in(self, has: Callable[[str], bool]) -> tuple[int, ...]:
        """Return the number of blocks of each stage, from the plain names for which ``has`` is true."""
        counts = []
        for stage in range(4):
            count = 0
            while has(f"backbone.stages.{stage}.{count}.{self.block_weight}"):
                count += 1
            counts.append(count)
        return tuple(counts)
