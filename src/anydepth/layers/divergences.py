"""KL divergences between class predictions, used for distillation by both detector families."""

import torch.nn.functional as F
from torch import Tensor


def softmax_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(teacher || student) [...] of the softmax over the last axis of logits [..., C]."""
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return divergence.sum(-1)


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(teacher || student) [...] of the sigmoid scores of logits [..., C], summed over C."""
    scores = teacher.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student, scores, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, scores, reduction="none")
    return (cross_entropy - entropy).sum(-1)
