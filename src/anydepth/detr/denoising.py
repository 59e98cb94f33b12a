"""Contrastive denoising queries: noised ground truth that the decoder learns to reconstruct.

Sources: DN-DETR (Li et al., CVPR 2022) for the noised copies and their attention mask; DINO (Zhang et al.,
ICLR 2023, section 3.3) for the negative copies; RT-DETR (Zhao et al., CVPR 2024) for the noise itself.
"""

import warnings
from collections.abc import Sequence
from functools import cache

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
# Budgets that one image may use. RT-DETR's 100 make 300 boxes, as many as it has queries; without a limit,
# 2,000 boxes take 7 times the memory and 12 times the time of a forward pass.
_MAX_SHARE = 3


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
    """Make noised copies of the boxes of a batch, in groups of one positive and one negative copy per box.

    The number of groups is ``budget`` divided by the largest number of boxes in the batch, rounded down, and
    at least 1: an image with more boxes than the budget still gets each of its boxes once, up to three times
    the budget. Of more boxes, so many are drawn anew in each step, and a warning says so. In distributed
    training the batch is that of all processes, for which the noise is drawn, so that the images of a batch
    get the same noise however many processes they are split between.

    Args:
        targets: Ground truth per image; images without boxes are allowed.
        num_classes: Number of classes, K; also the padding label.
        num_queries: Number of matching queries, Q, which follow the denoising queries in the decoder.
        budget: Number of positive queries per image, split into groups; 0 switches denoising off.
        label_noise: Share of the labels of which half are replaced by labels drawn from all classes.
        box_noise: Scale of the corner noise: a corner moves by this times u times half the box size, with u
            in [0, 1) for positives and in [1, 2) for negatives. The corners of negatives may therefore cross;
            such a side has no extent.
        generator: Source of the noise, on the device of the targets; None for torch's default.

    Returns:
        The queries of the given images, on their device, or None if the batch of all processes has no boxes
        or the budget is 0.

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
    chosen: list[Tensor] | None = None
    if most > _MAX_SHARE * budget:
        if distributed.is_first_process():
            _warn_of_many_boxes(_MAX_SHARE * budget)
        chosen = _draw_boxes(targets, most, _MAX_SHARE * budget, generator)
        targets = [
            Targets(t.boxes_cxcywh[rows], t.labels[rows]) for t, rows in zip(targets, chosen, strict=True)
        ]
        counts, most = [len(target) for target in targets], _MAX_SHARE * budget
    groups = max(1, budget // most)
    labels = pad_sequence([t.labels for t in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([t.boxes_cxcywh for t in targets], batch_first=True).to(torch.float32)
    missing = most - labels.shape[1]
    labels = F.pad(labels, (0, missing), value=num_classes)  # [B, most]
    boxes = F.pad(boxes, (0, 0, 0, missing))  # [B, most, 4]
    # D = groups x (positive, negative) x most
    labels, boxes = labels.tile(1, 2 * groups), boxes.tile(1, 2 * groups, 1)  # [B, D], [B, D, 4]
    negative = (torch.arange(2 * groups, device=boxes.device) % 2).repeat_interleave(most)  # [D]
    positives, positive_targets = _positive_positions(counts, most, groups, boxes.device)
    if chosen is not None:
        positive_targets = tuple(rows[kept] for rows, kept in zip(chosen, positive_targets, strict=True))
    return DenoisingQueries(
        labels=_noised_labels(labels, num_classes, label_noise, generator),
        boxes_logits=_inverse_sigmoid(_noised_boxes(boxes, negative, box_noise, generator)),
        attention_mask=_attention_mask(groups, 2 * most, num_queries, boxes.device),
        positives=positives,
        positive_targets=positive_targets,
        groups=groups,
        incomplete=chosen is not None,
    )


def _draw_boxes(
    targets: Sequence[Targets], most: int, limit: int, generator: torch.Generator | None
) -> list[Tensor]:
    """Return the indices of at most ``limit`` boxes of each image, in rising order."""
    device = targets[0].labels.device
    drawn = torch.rand((distributed.world_size() * len(targets), most), device=device, generator=generator)
    rows = distributed.local_rows(drawn)  # [B, most]
    return [
        row[: len(target)].argsort()[:limit].sort().values for row, target in zip(rows, targets, strict=True)
    ]


@cache
def _warn_of_many_boxes(limit: int) -> None:
    warnings.warn(
        f"an image has more than {limit} boxes: {limit} of them are noised in a step, drawn anew each time, "
        "because memory and time grow with their number. Raise detector.denoising_queries for more, or cut "
        "the image into tiles",
        stacklevel=2,
    )


def _noised_labels(
    labels: Tensor, num_classes: int, label_noise: float, generator: torch.Generator | None
) -> Tensor:
    """Noise labels [B, D], except padding."""
    shape = _global_shape(labels)
    chance = torch.rand(shape, device=labels.device, generator=generator)
    drawn = torch.randint(0, num_classes, shape, device=labels.device, generator=generator)
    # 0.5: only half of the chosen labels are replaced, as in DINO and RT-DETR.
    redrawn = (distributed.local_rows(chance) < 0.5 * label_noise) & (labels != num_classes)  # [B, D]
    return torch.where(redrawn, distributed.local_rows(drawn), labels)


def _noised_boxes(
    boxes: Tensor, negative: Tensor, box_noise: float, generator: torch.Generator | None
) -> Tensor:
    """Noise boxes [B, D, 4] (cxcywh, normalised); ``negative`` [D] is 1 for negatives and 0 for positives."""
    shape = _global_shape(boxes)
    sign = 2 * torch.randint(0, 2, shape, device=boxes.device, generator=generator) - 1
    amount = torch.rand(shape, device=boxes.device, generator=generator) + negative[:, None]
    half_size = 0.5 * boxes[..., 2:].tile(2)  # [B, D, 4]
    moved = distributed.local_rows(sign) * distributed.local_rows(amount) * half_size * box_noise
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moved).clamp(0, 1))


def _global_shape(values: Tensor) -> tuple[int, ...]:
    """Return the shape of these values for the batch of all processes."""
    return (distributed.world_size() * len(values), *values.shape[1:])


def _inverse_sigmoid(values: Tensor) -> Tensor:
    # torch.logit(eps=) clamps to 1 - eps, which float32 rounds: logits of borders would differ by 1e-3 from
    # those of the released networks.
    values = values.clamp(0, 1)
    return values.clamp(min=_LOGIT_EPSILON).log() - (1 - values).clamp(min=_LOGIT_EPSILON).log()


def _attention_mask(groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    """Return a mask [D + Q, D + Q], true between groups and from matching queries to denoising queries.

    Denoising queries may attend to the matching queries, which hold no ground truth.
    """
    group = torch.arange(groups, device=device).repeat_interleave(group_size)  # [D]
    # Matching queries form the group -1.
    group = torch.cat([group, torch.full((num_queries,), -1, device=device)])  # [D + Q]
    return (group[None, :] != -1) & (group[:, None] != group[None, :])


def _positive_positions(
    counts: Sequence[int], most: int, groups: int, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the positions in D of each image's positive queries, and the indices of the boxes they copy."""
    starts = 2 * most * torch.arange(groups)[:, None]  # [groups, 1]
    boxes = [torch.arange(count) for count in counts]
    positions = torch.cat([(starts + box).flatten() for box in boxes])
    sources = torch.cat([box.tile(groups) for box in boxes])
    # Built in host memory and moved in one piece: the counts are known there, so nobody waits for the device.
    sizes = [count * groups for count in counts]
    return torch.split(positions.to(device), sizes), torch.split(sources.to(device), sizes)


def _validate(num_classes: int, num_queries: int, budget: int, label_noise: float, box_noise: float) -> None:
    for name, value in (("num_classes", num_classes), ("num_queries", num_queries)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more")
    if budget < 0:
        raise ValueError(f"denoising budget={budget}: allowed is 0 (no denoising) or more")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise}: allowed are 0 to 1; half of this share is replaced")
    if not box_noise >= 0:
        raise ValueError(f"box_noise={box_noise}: allowed is 0 (exact boxes) or more")
