"""Contrastive denoising queries: noised ground truth that the decoder learns to reconstruct.

Sources: DN-DETR (Li et al., CVPR 2022) for the noised copies and their attention mask; DINO (Zhang et al.,
ICLR 2023, section 3.3) for the negative copies; RT-DETR (Zhao et al., CVPR 2024) for the noise itself.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anydepth import distributed
from anydepth.detr.output import DenoisingQueries
from anydepth.layers.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from anydepth.structures import Targets

# Keeps the inverse sigmoid of boxes that touch the border finite; the value of RT-DETR.
_LOGIT_EPSILON = 1e-5


def make_denoising_queries(
    targets: Sequence[Targets],
    *,
    num_classes: int,
    num_queries: int,
    budget: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> DenoisingQueries | None:
    """Noised copies of the boxes of a batch, in groups of one positive and one negative copy per box.

    The number of groups is ``budget`` divided by the largest number of boxes in the batch, rounded down, and
    at least 1: an image with more boxes than the budget still gets each of its boxes once. In distributed
    training the batch is that of all processes, for which the noise is drawn, so that the images of a batch
    get the same noise however many processes share them.

    Args:
        targets: Ground truth per image; images without boxes are allowed.
        num_classes: K; also the padding label.
        num_queries: Q, the matching queries that follow the denoising queries in the decoder.
        budget: Positive queries per image that the groups share out; 0 switches denoising off.
        label_noise: Half of this share of the labels is drawn anew from all classes.
        box_noise: Each corner moves by this times u times half the box size: u in [0, 1) for positives and
            in [1, 2) for negatives, whose corners may therefore cross; such a side has no extent.
        generator: Source of the noise, on the device of the targets; None for torch's default.

    Returns:
        The queries of the images that came, on their device, or None where the batch of all processes has no
        boxes or the budget is 0.

    Raises:
        ValueError: A number outside its range.
    """
    _validate(num_classes, num_queries, budget, label_noise, box_noise)
    counts = [len(target) for target in targets]
    if budget == 0 or not targets:
        return None
    most = distributed.all_max(max(counts), targets[0].labels.device)
    if most == 0:
        return None
    groups = max(1, budget // most)
    # [B, D], D = groups x (positive, negative) x most
    labels = pad_sequence([t.labels for t in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([t.boxes_cxcywh for t in targets], batch_first=True).to(torch.float32)
    missing = most - labels.shape[1]
    labels, boxes = F.pad(labels, (0, missing), value=num_classes), F.pad(boxes, (0, 0, 0, missing))
    labels, boxes = labels.tile(1, 2 * groups), boxes.tile(1, 2 * groups, 1)
    negative = (torch.arange(2 * groups, device=boxes.device) % 2).repeat_interleave(most)
    positives, positive_targets = _positive_positions(counts, most, groups, boxes.device)
    return DenoisingQueries(
        labels=_noised_labels(labels, num_classes, label_noise, generator),
        boxes_logits=_inverse_sigmoid(_noised_boxes(boxes, negative, box_noise, generator)),
        attention_mask=_attention_mask(groups, 2 * most, num_queries, boxes.device),
        positives=positives,
        positive_targets=positive_targets,
        groups=groups,
    )


def _noised_labels(
    labels: Tensor, num_classes: int, label_noise: float, generator: torch.Generator | None
) -> Tensor:
    shape = _of_all_processes(labels)
    chance = torch.rand(shape, device=labels.device, generator=generator)
    drawn = torch.randint(0, num_classes, shape, device=labels.device, generator=generator)
    redrawn = (distributed.local_rows(chance) < 0.5 * label_noise) & (labels != num_classes)
    return torch.where(redrawn, distributed.local_rows(drawn), labels)


def _noised_boxes(
    boxes: Tensor, negative: Tensor, box_noise: float, generator: torch.Generator | None
) -> Tensor:
    """Noised boxes [B, D, 4] (cxcywh, normalised) of boxes [B, D, 4]; ``negative`` [D] is 1 for negatives."""
    shape = _of_all_processes(boxes)
    sign = 2 * torch.randint(0, 2, shape, device=boxes.device, generator=generator) - 1
    amount = torch.rand(shape, device=boxes.device, generator=generator) + negative[:, None]
    half_size = 0.5 * boxes[..., 2:].tile(2)
    moved = distributed.local_rows(sign) * distributed.local_rows(amount) * half_size * box_noise
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moved).clamp(0, 1))


def _of_all_processes(values: Tensor) -> tuple[int, ...]:
    return (distributed.world_size() * len(values), *values.shape[1:])


def _inverse_sigmoid(values: Tensor) -> Tensor:
    # torch.logit(eps=) clamps 1 - eps, which float32 rounds: borders would be 1e-3 off the released networks.
    values = values.clamp(0, 1)
    return values.clamp(min=_LOGIT_EPSILON).log() - (1 - values).clamp(min=_LOGIT_EPSILON).log()


def _attention_mask(groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    """True [D + Q, D + Q] where a query must not look: into another group, or from a matching query into any.

    Denoising queries may look at the matching queries, which know nothing of the ground truth.
    """
    group = torch.arange(groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, torch.full((num_queries,), -1, device=device)])
    return (group[None, :] != -1) & (group[:, None] != group[None, :])


def _positive_positions(
    counts: Sequence[int], most: int, groups: int, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per image: positions in D of its positive queries, and the boxes they copy."""
    starts = 2 * most * torch.arange(groups)[:, None]
    boxes = [torch.arange(count) for count in counts]
    positions = torch.cat([(starts + box).flatten() for box in boxes])
    sources = torch.cat([box.tile(groups) for box in boxes])
    # Built in host memory and moved at once: the counts are known there, so the device never has to wait.
    sizes = [count * groups for count in counts]
    return torch.split(positions.to(device), sizes), torch.split(sources.to(device), sizes)


def _validate(num_classes: int, num_queries: int, budget: int, label_noise: float, box_noise: float) -> None:
    for name, value in (("num_classes", num_classes), ("num_queries", num_queries)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more")
    if budget < 0:
        raise ValueError(f"denoising budget={budget}: allowed is 0 (no denoising) or more")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise}: allowed are 0 to 1, the share of labels at risk")
    if not box_noise >= 0:
        raise ValueError(f"box_noise={box_noise}: allowed is 0 (exact boxes) or more")
