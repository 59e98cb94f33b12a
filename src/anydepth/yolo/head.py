"""The decoupled head: distance bins and class scores for every cell of three levels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anydepth.yolo.blocks import conv
from anydepth.yolo.output import BINS, STRIDES

# Initial class scores expect 5 objects in a 640-pixel image (bias of YOLOv5 and its successors).
_EXPECTED_OBJECTS = 5
_REFERENCE_SIZE = 640
# Limits of the widths of the two branches, those of YOLOv8's head.
_MIN_BOX_WIDTH = 16
_MAX_CLASS_WIDTH = 100
# Initial bias of the distance bins, that of YOLOv8's head; equal biases cancel in the softmax over the bins.
_BOX_BIAS = 1.0


class YoloHead(nn.Module):
    """Box and class branches per level; no norm is switchable, so every depth shares all of it.

    Args:
        in_channels: Channels of the maps with strides 8, 16 and 32.
        num_classes: Number of classes, K.

    Raises:
        ValueError: ``num_classes`` is below 1.
    """

    def __init__(self, *, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        width = max(_MIN_BOX_WIDTH, in_channels[0] // 4, 4 * BINS)
        self.box_branches = nn.ModuleList(
            nn.Sequential(
                conv(channels, width, 3), conv(width, width, 3), _last_conv(width, 4 * BINS, bias=_BOX_BIAS)
            )
            for channels in in_channels
        )
        self.class_branches = nn.ModuleList()
        self.reset_classes(num_classes)
        # Distances of the bins in strides: fixed, but a parameter as in the published network, whose files
        # and number of parameters include it.
        self.bins = nn.Parameter(torch.arange(BINS, dtype=torch.float32), requires_grad=False)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, C, H/s, W/s] of the neck -> raw maps [B, 64 + K, H/s, W/s]."""
        return tuple(
            torch.cat([boxes(features), classes(features)], dim=1)
            for features, boxes, classes in zip(maps, self.box_branches, self.class_branches, strict=True)
        )

    def reset_classes(self, num_classes: int) -> None:
        """Replace the class branches, whose width depends on the number of classes, by fresh ones.

        Raises:
            ValueError: ``num_classes`` is below 1.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: allowed is 1 or more")
        width = max(self.in_channels[0], min(num_classes, _MAX_CLASS_WIDTH))
        self.class_branches = nn.ModuleList(
            nn.Sequential(
                conv(channels, channels, 3, groups=channels),
                conv(channels, width),
                conv(width, width, 3, groups=width),
                conv(width, width),
                _last_conv(width, num_classes, bias=_initial_logit(num_classes, stride)),
            )
            for channels, stride in zip(self.in_channels, STRIDES, strict=True)
        )


def _last_conv(in_channels: int, out_channels: int, *, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 1)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


def _initial_logit(num_classes: int, stride: int) -> float:
    cells = (_REFERENCE_SIZE / stride) ** 2
    return math.log(_EXPECTED_OBJECTS / num_classes / cells)
