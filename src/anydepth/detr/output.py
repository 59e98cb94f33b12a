"""What the DETR wing's forward returns."""

from dataclasses import dataclass, field

from torch import Tensor

from anydepth.structures import DetectorOutput


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised ground truth that the decoder learns to reconstruct (DN-DETR, DINO).

    ``D`` = groups x 2 x the largest number of boxes in the batch: each group holds one positive and one
    negative copy of every box; images with fewer boxes are padded.

    Attributes:
        labels: [B, D] int64 noised classes in [0, K]; K is padding.
        boxes_logits: [B, D, 4] inverse-sigmoid of the noised boxes (cxcywh, normalised).
        attention_mask: [D + Q, D + Q] bool, true where a query must not look.
        positives: Per image, int64 [P_i] positions in D of the positive copies.
        positive_targets: Per image, int64 [P_i]: the ground-truth box that each positive reconstructs.
        groups: Number of groups, at least 1.
    """

    labels: Tensor
    boxes_logits: Tensor
    attention_mask: Tensor
    positives: tuple[Tensor, ...]
    positive_targets: tuple[Tensor, ...]
    groups: int


@dataclass(frozen=True)
class DetrOutput(DetectorOutput):
    """Predictions of one path through an RT-DETR.

    Attributes:
        logits: [B, Q, K] of the last decoder layer that ran.
        boxes_cxcywh: [B, Q, 4] of the same layer, normalised.
        auxiliary_logits: Training only: [A, B, Q, K] of the earlier decoder layers, then of the encoder's
            selected tokens (A = decoder layers).
        auxiliary_boxes: Training only: [A, B, Q, 4], normalised cxcywh.
        denoising: Training only, None where the batch has no boxes: the noised queries.
        denoising_logits: With ``denoising``: [decoder layers, B, D, K].
        denoising_boxes: With ``denoising``: [decoder layers, B, D, 4], normalised cxcywh.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    auxiliary_logits: Tensor | None = field(default=None, repr=False)
    auxiliary_boxes: Tensor | None = field(default=None, repr=False)
    denoising: DenoisingQueries | None = field(default=None, repr=False)
    denoising_logits: Tensor | None = field(default=None, repr=False)
    denoising_boxes: Tensor | None = field(default=None, repr=False)
