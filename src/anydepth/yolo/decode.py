"""Decoding of the head's maps to boxes in pixels, for the losses and the post-processing.

Source: Generalized Focal Loss (Li et al., NeurIPS 2020) for sides as distributions over distance bins. An
anchor is the centre of a cell of a head map; ``A`` is the number of anchors of all maps, finest map first,
each map row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anydepth.yolo.output import BINS, STRIDES


@dataclass(frozen=True)
class Predictions:
    """The decoded predictions of one forward pass, float32.

    Attributes:
        box_logits: [B, A, 4, 16], logits of the distance bins of the sides left, top, right, bottom.
        class_logits: [B, A, K].
        boxes_xyxy: [B, A, 4], pixels.
        centres: [A, 2], anchors (x, y), pixels.
        strides: [A], pixels.
    """

    box_logits: Tensor
    class_logits: Tensor
    boxes_xyxy: Tensor
    centres: Tensor
    strides: Tensor

    @classmethod
    def decode(cls, maps: Sequence[Tensor]) -> "Predictions":
        """Decode head maps [B, 64 + K, H/s, W/s] of any floating-point type in float32.

        Raises:
            ValueError: A wrong number of maps or of channels.
        """
        box_logits, class_logits = (logits.float() for logits in flatten_maps(maps))
        centres, strides = anchor_points(maps)
        boxes = decode_boxes(box_logits, centres, strides)
        return cls(box_logits, class_logits, boxes, centres, strides)

    def detach(self) -> "Predictions":
        """Return the same predictions, detached from the autograd graph."""
        parts = (self.box_logits, self.class_logits, self.boxes_xyxy, self.centres, self.strides)
        return Predictions(*(part.detach() for part in parts))


def flatten_maps(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join the head maps into one list of anchors.

    Args:
        maps: [B, 64 + K, H/s, W/s] for each stride s, as in :class:`~anydepth.yolo.output.YoloOutput`.

    Returns:
        Box logits [B, A, 4, 16] and class logits [B, A, K], in the type of the maps.

    Raises:
        ValueError: A wrong number of maps or of channels.
    """
    sides = 4 * BINS
    if len(maps) != len(STRIDES) or any(level.ndim != 4 or level.shape[1] <= sides for level in maps):
        raise ValueError(
            f"got head maps of shapes {[tuple(level.shape) for level in maps]}; "
            f"give [B, {sides} + K, H/s, W/s] for each of the strides {STRIDES}"
        )
    # Channels last, so that the bins of a side and the classes of an anchor are contiguous in memory.
    anchors = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], dim=1)  # [B, A, 64 + K]
    return anchors[..., :sides].reshape(*anchors.shape[:2], 4, BINS), anchors[..., sides:]


def anchor_points(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return centres [A, 2] as (x, y) and strides [A] of all cells, both float32 and in pixels.

    Args:
        maps: [..., H/s, W/s] for each stride s, on the device of the result.
    """
    centres, strides = [], []
    for level, stride in zip(maps, STRIDES, strict=True):
        height, width = level.shape[-2:]
        x = torch.arange(width, dtype=torch.float32, device=level.device) + 0.5
        y = torch.arange(height, dtype=torch.float32, device=level.device) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(stride * torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1))
        strides.append(torch.full((height * width,), float(stride), device=level.device))
    return torch.cat(centres), torch.cat(strides)


def decode_boxes(box_logits: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Decode boxes [B, A, 4] xyxy in pixels, float32: each side lies at its expected distance to the anchor.

    Args:
        box_logits: [B, A, 4, 16], logits of the distances 0 to 15 strides to left, top, right, bottom.
        centres: [A, 2], anchors (x, y), pixels.
        strides: [A], pixels.
    """
    probabilities = box_logits.float().softmax(-1)  # [B, A, 4, 16]
    bins = torch.arange(BINS, dtype=torch.float32, device=box_logits.device)  # [16]
    # A sum instead of a matrix product, which may run in TF32 or under autocast.
    distances = (probabilities * bins).sum(-1) * strides[:, None]  # [B, A, 4]
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)


def image_size(maps: Sequence[Tensor]) -> tuple[int, int]:
    """Return (height, width) in pixels of the images that head maps [..., H/s, W/s] belong to."""
    height, width = maps[0].shape[-2:]
    return STRIDES[0] * height, STRIDES[0] * width
