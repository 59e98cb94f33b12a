"""ResNet backbones whose stages split into an essential and a refinement path.

Shortcuts of variant "d" (average pool, then 1x1 convolution) as in RT-DETR's PResNet and in the any-depth
ResNets of the paper; the stem is either RT-DETR's deep one or the 7x7 one of adaptive depth networks.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from anydepth.detr.backbones.base import Backbone, BackboneKind, BackboneSettings
from anydepth.layers.conv import ConvNorm
from anydepth.layers.norm import SwitchableNorm, batch_norm
from anydepth.layers.stage import DepthStage, check_stages, essential_count

Block = Literal["basic", "bottleneck"]
Stem = Literal["deep", "plain"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity or projected shortcut (ResNet-18/34).

    Args:
        in_channels: Channels of the input.
        width: Channels of both convolutions and of the output.
        stride: Stride of the first convolution.
        project: Whether the shortcut is a convolution.
        switchable: Whether norms have two sets, for blocks of the essential path.
        frozen: Whether norms are frozen.
    """

    expansion = 1

    def __init__(
        self, *, in_channels: int, width: int, stride: int, project: bool, switchable: bool, frozen: bool
    ) -> None:
        super().__init__()
        make_norm = partial(batch_norm, switchable=switchable, frozen=frozen)
        self.conv1 = _conv_relu(in_channels, width, 3, make_norm(width), stride)
        self.conv2 = ConvNorm(in_channels=width, out_channels=width, kernel_size=3, norm=make_norm(width))
        self.shortcut = Shortcut(in_channels, width, stride, frozen) if project else nn.Identity()
        self.activation = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> SwitchableNorm:
        """Last norm of the residual branch."""
        return self.conv2.norm

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, in, H, W] -> [B, width, H / stride, W / stride]."""
        residual = self.conv2(self.conv1(features, refine), refine)
        out: Tensor = self.activation(residual + self.shortcut(features))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with the stride in the 3x3 (ResNet-50/101 v1.5).

    Args:
        in_channels: Channels of the input.
        width: Channels inside the block; the output has four times as many.
        stride: Stride of the 3x3 convolution.
        project: Whether the shortcut is a convolution.
        switchable: Whether norms have two sets, for blocks of the essential path.
        frozen: Whether norms are frozen.
    """

    expansion = 4

    def __init__(
        self, *, in_channels: int, width: int, stride: int, project: bool, switchable: bool, frozen: bool
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        make_norm = partial(batch_norm, switchable=switchable, frozen=frozen)
        self.conv1 = _conv_relu(in_channels, width, 1, make_norm(width))
        self.conv2 = _conv_relu(width, width, 3, make_norm(width), stride)
        self.conv3 = ConvNorm(
            in_channels=width, out_channels=out_channels, kernel_size=1, norm=make_norm(out_channels)
        )
        self.shortcut = Shortcut(in_channels, out_channels, stride, frozen) if project else nn.Identity()
        self.activation = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> SwitchableNorm:
        """Last norm of the residual branch."""
        return self.conv3.norm

    def forward(self, features: Tensor, refine: bool = True) -> Tensor:
        """[B, in, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        residual = self.conv3(self.conv2(self.conv1(features, refine), refine), refine)
        out: Tensor = self.activation(residual + self.shortcut(features))
        return out


class Shortcut(nn.Module):
    """1x1 projection, after an average pool if the block halves the map; its norm has one set."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, frozen: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.project = ConvNorm(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=1,
            norm=batch_norm(out_channels, frozen=frozen),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        projected: Tensor = self.project(self.pool(features))
        return projected


class ResNet(Backbone):
    """Stem and four stages; the maps of stages 2 to 4 go to the neck.

    Args:
        block: Type of the blocks: ``basic`` or ``bottleneck``.
        blocks: Number of blocks of each of the four stages.
        widths: Width of each of the four stages.
        stem: Type of the stem: ``deep`` (3x3 stride 2, 3x3, 3x3; RT-DETR) or ``plain`` (7x7 stride 2;
            adaptive depth networks).
        any_depth: Whether each stage is split; otherwise every block is essential (a fixed-depth ResNet).
        switchable_norms: Whether essential blocks have two norm sets; only with ``any_depth``.
        frozen: Whether all norms and the stem are frozen, for backbones whose weights hold both norm sets.

    Attributes:
        stem: Module from images to the input of the first stage; the same at every depth.
        out_channels: Channels of the three output maps (strides 8, 16, 32).

    Raises:
        ValueError: Lists that do not have four entries, or an any-depth stage of fewer than two blocks.
    """

    def __init__(
        self,
        *,
        block: Block,
        blocks: Sequence[int],
        widths: Sequence[int],
        stem: Stem,
        any_depth: bool = True,
        switchable_norms: bool = True,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        check_stages(blocks, widths, any_depth=any_depth)
        block_type = BasicBlock if block == "basic" else Bottleneck
        self.stem = _make_stem(stem, widths[0], frozen)
        channels = widths[0]
        stages = []
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            essential = essential_count(count) if any_depth else count
            made = []
            for position in range(count):
                made.append(
                    block_type(
                        in_channels=channels,
                        width=width,
                        stride=2 if position == 0 and index > 0 else 1,
                        project=position == 0,
                        switchable=any_depth and switchable_norms and position < essential,
                        frozen=frozen,
                    )
                )
                channels = width * block_type.expansion
            stages.append(DepthStage(essential=made[:essential], refinement=made[essential:]))
        self.stages = nn.ModuleList(stages)
        self.out_channels = tuple(width * block_type.expansion for width in widths[1:])
        self._initialise(frozen)

    def forward(self, features: Tensor, refine: Sequence[bool]) -> tuple[Tensor, ...]:
        """Compute the feature maps of stages 2, 3 and 4.

        Args:
            features: [B, C, H/4, W/4], the output of :attr:`stem` for images [B, 3, H, W].
            refine: One flag per stage.

        Returns:
            [B, C, H/8, W/8], [B, C, H/16, W/16], [B, C, H/32, W/32].
        """
        maps = []
        for stage, flag in zip(self.stages, refine, strict=True):
            features = stage(features, flag)
            maps.append(features)
        return tuple(maps[1:])

    def _initialise(self, frozen: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if frozen:
            for parameter in self.stem.parameters():
                parameter.requires_grad_(False)
            return
        # A refinement that starts as the identity preserves the output of the essential path, so that full
        # depth does not trail minimal depth early in training (Goyal et al. 2017 initialise residual branches
        # in this way).
        for name, module in self.named_modules():
            if isinstance(module, BasicBlock | Bottleneck) and ".refinement." in name:
                last = module.last_norm.full
                assert isinstance(last, nn.BatchNorm2d)
                nn.init.zeros_(last.weight)


def _conv_relu(
    in_channels: int, out_channels: int, kernel_size: int, norm: SwitchableNorm, stride: int = 1
) -> ConvNorm:
    return ConvNorm(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        norm=norm,
        activation=nn.ReLU(inplace=True),
    )


def _make_stem(kind: Stem, width: int, frozen: bool) -> nn.Sequential:
    def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> ConvNorm:
        norm = batch_norm(out_channels, frozen=frozen)
        return _conv_relu(in_channels, out_channels, kernel_size, norm, stride)

    if kind == "deep":
        half = width // 2
        convs = [conv(3, half, 3, 2), conv(half, half, 3, 1), conv(half, width, 3, 1)]
    else:
        convs = [conv(3, width, 7, 2)]
    return nn.Sequential(*convs, nn.MaxPool2d(3, stride=2, padding=1))


def _build(block: Block, settings: BackboneSettings) -> ResNet:
    return ResNet(
        block=block,
        blocks=settings.blocks,
        widths=settings.widths,
        stem="deep" if settings.stem == "deep" else "plain",
        any_depth=settings.any_depth,
        switchable_norms=settings.switchable_norms,
        frozen=settings.frozen,
    )


_STEMS = {"deep": "backbone.stem.2.conv.weight", "plain": ""}
BASIC = BackboneKind(
    label="a ResNet",
    build=partial(_build, "basic"),
    stems=_STEMS,
    marker="backbone.stages.0.0.conv1.conv.weight",
    block_weight="conv1.conv.weight",
    sizes={(2, 2, 2, 2): ("r18", "ResNet-18"), (3, 4, 6, 3): ("r34", "ResNet-34")},
)
"""ResNet-18 and 34."""
BOTTLENECK = BackboneKind(
    label="a ResNet",
    build=partial(_build, "bottleneck"),
    stems=_STEMS,
    marker="backbone.stages.0.0.conv3.conv.weight",
    block_weight="conv1.conv.weight",
    sizes={(3, 4, 6, 3): ("r50", "ResNet-50"), (3, 4, 23, 3): ("r101", "ResNet-101")},
)
"""ResNet-50 and 101."""
