"""Random predictions and ground truth that several tests of the YOLO losses share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anydepth.structures import Targets
from anydepth.yolo.output import BINS, STRIDES, YoloOutput

# 96 + 24 + 6 anchors.
HEIGHT, WIDTH = 64, 96
ANCHORS = 126


def make_maps(batch: int, classes: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Make head maps that require gradients; distances are biased to few strides, so that boxes overlap."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.zeros(4 * BINS + classes, 1, 1)
    bias[: 4 * BINS, 0, 0] = (-0.6 * (torch.arange(BINS) - 1.5).abs()).repeat(4)
    return tuple(
        (
            bias
            + torch.randn(batch, 4 * BINS + classes, HEIGHT // stride, WIDTH // stride, generator=generator)
        ).requires_grad_()
        for stride in STRIDES
    )


def make_output(batch: int, classes: int, seed: int = 0) -> YoloOutput:
    """Make an output whose features require gradients, too."""
    generator = torch.Generator().manual_seed(seed + 1000)

    def features(*widths: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(batch, width, HEIGHT // stride, WIDTH // stride, generator=generator).requires_grad_()
            for width, stride in zip(widths, STRIDES, strict=True)
        )

    return YoloOutput(features(4, 6, 8), features(3, 6, 5), make_maps(batch, classes, seed))


def make_targets(counts: Sequence[int], classes: int, seed: int = 0) -> list[Targets]:
    """Make boxes of 15 to 60 % of the image, which overlap each other if there are several."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Targets(
            torch.cat(
                [
                    0.3 + 0.4 * torch.rand(count, 2, generator=generator),
                    0.15 + 0.45 * torch.rand(count, 2, generator=generator),
                ],
                dim=1,
            ),
            torch.randint(0, classes, (count,), generator=generator),
        )
        for count in counts
    ]


def leaves_of(output: YoloOutput) -> list[Tensor]:
    """Return all tensors of an output that a loss may send gradients to."""
    return [*output.maps, *output.backbone_features, *output.neck_features]


def repeated(output: YoloOutput, times: int) -> YoloOutput:
    """Repeat the images of an output; ``times=1`` returns the output itself."""
    if times == 1:
        return output

    def repeat(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(level.repeat(times, 1, 1, 1) for level in maps)

    return YoloOutput(repeat(output.backbone_features), repeat(output.neck_features), repeat(output.maps))
