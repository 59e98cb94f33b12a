"""The losses, with a distillation level of their own: spatial attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anydepth import distributed
from anydepth.detector import Objective, PassLosses
from anydepth.layers.precision import disable_autocast
from anydepth.structures import DetectorOutput, Targets
from spotter.detector import SpotOutput, decode


class SpotDistillation:
    """What the shallower pass learns from the deeper one."""

    def __init__(self, *, score_weight: float, attention_weight: float) -> None:
        self.score_weight, self.attention_weight = score_weight, attention_weight

    @property
    def levels(self) -> frozenset[str]:
        """Levels that teach."""
        weights = {"predictions": self.score_weight, "attention": self.attention_weight}
        return frozenset(level for level, weight in weights.items() if weight)

    def terms(self, student: SpotOutput, teacher: SpotOutput) -> dict[str, Tensor]:
        """Distances of scores and of where features are strong."""
        targets = teacher.scores.detach().sigmoid()
        return {
            "kd_score": self.score_weight * F.binary_cross_entropy_with_logits(student.scores, targets),
            "kd_attention": self.attention_weight
            * F.mse_loss(_attention(student), _attention(teacher).detach()),
        }


class SpotObjective(Objective):
    """Binary cross entropy of the cells, L1 of the boxes, and the distillation."""

    def __init__(self, *, box_weight: float, distillation: SpotDistillation) -> None:
        super().__init__()
        self.box_weight, self.distillation = box_weight, distillation

    @property
    def distilled_levels(self) -> frozenset[str]:
        """Levels of the teacher that teach."""
        return self.distillation.levels

    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        """See :meth:`anydepth.detector.Objective.supervised`."""
        assert isinstance(output, SpotOutput)
        with disable_autocast(output.scores.device):
            wanted = torch.zeros_like(output.scores, dtype=torch.float32)
            boxes, truth = [], []
            height, width = wanted.shape[-2:]
            for image, target in enumerate(targets):
                columns = (target.boxes_cxcywh[:, 0] * width).long().clamp(0, width - 1)
                rows = (target.boxes_cxcywh[:, 1] * height).long().clamp(0, height - 1)
                wanted[image, target.labels, rows, columns] = 1
                boxes.append(decode(output.boxes.float())[image, :, rows, columns].T)
                truth.append(target.boxes_cxcywh)
            count = distributed.loss_normalizer(wanted.new_tensor(float(sum(map(len, truth)))))
            score = F.binary_cross_entropy_with_logits(output.scores.float(), wanted, reduction="sum") / count
            box = F.l1_loss(torch.cat(boxes), torch.cat(truth), reduction="sum") / count
        return PassLosses({"score": score, "box": self.box_weight * box})

    def distilled(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Targets],
        teacher_losses: PassLosses,
    ) -> PassLosses:
        """See :meth:`anydepth.detector.Objective.distilled`."""
        assert isinstance(student, SpotOutput)
        assert isinstance(teacher, SpotOutput)
        terms = dict(self.supervised(student, targets).terms)
        with disable_autocast(student.scores.device):
            return PassLosses(terms | self.distillation.terms(student, teacher))


def _attention(output: SpotOutput) -> Tensor:
    strength = output.neck_features[0].float().square().mean(1)
    return strength / (strength.sum((1, 2), keepdim=True) + 1e-6)
