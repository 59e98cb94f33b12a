"""KL divergences between class predictions, used for distillation by both detector families."""

import torch.nn.functional as F
from torch import Tensor

from anydepth import distributed


def softmax_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(teacher || student) [...] of the softmax over the last axis of logits [..., C]."""
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return divergence.sum(-1)


def class_kl(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Compute KL(teacher || student) [...] of the softmax over classes, with one class beside a constant.

    The softmax over one class is constant. With one class it is that over the class and a logit for none,
    the weighted mean of the teacher's logits over all processes: predictions that are compared differ from
    it as the logits of several classes differ from each other. The sigmoids of the logits themselves would
    hardly differ early in training, when all scores are near 0.01.

    Args:
        student: Logits [..., K].
        teacher: Logits [..., K], detached.
        weights: Weights [...] of the compared predictions; with one class, those of the teacher's logits in
            their mean.
    """
    if student.shape[-1] > 1:
        return softmax_kl(student, teacher)
    mean = distributed.mean(teacher[..., 0], weights)
    return bernoulli_kl(student - mean, teacher - mean)


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(teacher || student) [...] of the sigmoid scores of logits [..., C], summed over C."""
    scores = teacher.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student, scores, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, scores, reduction="none")
    return (cross_entropy - entropy).sum(-1)
