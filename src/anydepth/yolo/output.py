"""Output of the forward pass of the YOLO family."""

from dataclasses import dataclass

from torch import Tensor

from anydepth.structures import DetectorOutput

# Strides of the head maps in pixels, finest first.
STRIDES = (8, 16, 32)
# Bins per side of a box: distances of 0 to 15 strides (Generalized Focal Loss, Li et al. 2020).
BINS = 16


@dataclass(frozen=True)
class YoloOutput(DetectorOutput):
    """Raw predictions of one forward pass of a YOLO, the same in training and eval mode.

    Attributes:
        maps: [B, 64 + K, H/s, W/s] for s in :data:`STRIDES`. The first 64 channels are the logits of 16
            distance bins for each of the sides left, top, right, bottom (side-major); the other K are class
            logits.
    """

    maps: tuple[Tensor, ...]
