"""What a backbone of the DETR family has to be, and what a table entry says about one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Stem and four stages; the maps of stages 2 to 4 go to the neck.

    Attributes:
        stem: Images [B, 3, H, W] to the input [B, C, H/4, W/4] of the first stage; the same at every depth.
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


class BackboneBuilder(Protocol):
    """Builds a backbone from the settings that all kinds share."""

    def __call__(
        self,
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        stem: str,
        stochastic_depth: float,
        any_depth: bool,
        switchable_norms: bool,
        frozen: bool,
    ) -> Backbone:
        """Build the backbone.

        Args:
            blocks: Blocks per stage, four numbers.
            widths: Width per stage, four numbers.
            stem: One of the stems of the kind.
            stochastic_depth: Probability with which the last block drops its residual branches in training;
                0 for a kind without stochastic depth.
            any_depth: Split stages into essential and refinement paths.
            switchable_norms: Give essential paths two norm sets; only with ``any_depth``.
            frozen: Do not train norms with statistics, nor the stem.
        """


@dataclass(frozen=True)
class BackboneKind:
    """A kind of backbone: how it is built, and how its weights are recognised in a file.

    Attributes:
        label: What people call it, e.g. ``a ResNet``.
        build: Builds one.
        stems: By name of the stem, a weight that tells it from the other stems of the kind; empty for the
            stem that has none of these weights.
        marker: Plain name of a weight that only backbones of this kind have, or that no kind earlier in the
            table has; see :func:`anydepth.weights.plan.plain_names`.
        block_weight: Weight that every block has, below the name of the block.
        has_stochastic_depth: Whether it can drop residual branches in training.
        sizes: By blocks per stage, the end of the names of detectors with it, and what people call it.
    """

    label: str
    build: BackboneBuilder
    stems: Mapping[str, str]
    marker: str
    block_weight: str
    has_stochastic_depth: bool = False
    sizes: Mapping[tuple[int, ...], tuple[str, str]] = field(default_factory=dict)

    def stem_in(self, has: Callable[[str], bool]) -> str:
        """Return the stem of the backbone whose weights ``has`` knows by their plain names."""
        marked = [stem for stem, weight in self.stems.items() if weight and has(weight)]
        plain = [stem for stem, weight in self.stems.items() if not weight]
        return (marked or plain or list(self.stems))[0]

    def blocks_in(self, has: Callable[[str], bool]) -> tuple[int, ...]:
        """Return how many blocks each stage has, by the plain names of the weights that ``has`` knows."""
        counts = []
        for stage in range(4):
            count = 0
            while has(f"backbone.stages.{stage}.{count}.{self.block_weight}"):
                count += 1
            counts.append(count)
        return tuple(counts)
