"""Output of the forward pass of the DETR family."""

from dataclasses import dataclass, field

from torch import Tensor

from anydepth.structures import DetectorOutput


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised ground truth that the decoder learns to reconstruct (DN-DETR, DINO).

    ``D`` = groups x 2 x the largest number of boxes in the batch: each group holds one positive and one
    negative copy of every box; images with fewer boxes are padded.

    Attributes:
        labels: [B, D] int64, noised classes in [0, K]; K is padding.
        boxes_logits: [B, D, 4], inverse sigmoid of the noised boxes (cxcywh, normalised).
        attention_mask: [D + Q, D + Q] bool, true where a query must not attend to another.
        positives: [P_i] int64 for each image i: indices in D of the positive copies.
        positive_targets: [P_i] int64 for each image i: index of the box that each positive reconstructs.
        groups: Number of groups, at least 1.
        incomplete: Whether an image of any process has more boxes than may be noised in a step.
    """

    labels: Tensor
    boxes_logits: Tensor
    attention_mask: Tensor
    positives: tuple[Tensor, ...]
    positive_targets: tuple[Tensor, ...]
    groups: int
    incomplete: bool = False


@dataclass(frozen=True)
class DetrOutput(DetectorOutput):
    """Predictions of one forward pass of an RT-DETR.

    Attributes:
        logits: [B, Q, K], class logits of the last decoder layer that ran.
        boxes_cxcywh: [B, Q, 4], boxes of the same layer, normalised.
        auxiliary_logits: [A, B, Q, K], class logits of the earlier decoder layers, then of the encoder's
            selected tokens (A = decoder layers); None in eval mode.
        auxiliary_boxes: [A, B, Q, 4], normalised cxcywh; None in eval mode.
        denoising: Noised queries; None in eval mode and if the batch has no boxes.
        denoising_logits: [decoder layers, B, D, K]; None without ``denoising``.
        denoising_boxes: [decoder layers, B, D, 4], normalised cxcywh; None without ``denoising``.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    auxiliary_logits: Tensor | None = field(default=None, repr=False)
    auxiliary_boxes: Tensor | None = field(default=None, repr=False)
    denoising: DenoisingQueries | None = field(default=None, repr=False)
    denoising_logits: Tensor | None = field(default=None, repr=False)
    denoising_boxes: Tensor | None = field(default=None, repr=False)
