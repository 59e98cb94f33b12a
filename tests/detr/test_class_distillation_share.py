"""The class distillation keeps its share of the gradient, whatever the number of classes and queries."""

import math
import statistics

import pytest
import torch

from anydepth import zoo
from anydepth.detr.distillation import balanced_weight
from anydepth.structures import Targets
from losses import detr_losses
from small_networks import SMALL_DETECTOR

SIZE = 96
SEEDS = range(3)
# As wide as detr_tiny: logits of a decoder of 16 channels differ more than those of real ones.
WIDE = {"hidden_dim": 96, "decoder_dim": 96, "decoder_ffn_dim": 192, "decoder_layers": 3, "heads": 8}


def _share(classes: int, queries: int, seed: int) -> float:
    """Norm of the term's gradient by that of the deeper pass's losses, on the parameters of both passes."""
    torch.manual_seed(seed)
    size = SIZE if queries <= 100 else 128  # 300 queries need as many cells
    settings = {**SMALL_DETECTOR, **WIDE, "num_queries": queries, "input_size": [size, size]}
    detector = zoo.build("detr_tiny", classes, **settings).train()
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, size, size, generator=generator)
    centres = 0.25 + 0.5 * torch.rand(2, 5, 2, generator=generator)
    sizes = 0.1 + 0.3 * torch.rand(2, 5, 2, generator=generator)
    labels = torch.randint(0, classes, (2, 5), generator=generator)
    targets = [Targets(torch.cat([c, s], 1), k) for c, s, k in zip(centres, sizes, labels, strict=True)]
    objective = detr_losses()
    full = detector(images, "full", targets)
    taught = objective.supervised(full, targets)
    learnt = objective.distilled(detector(images, "minimal", targets), full, targets, taught)
    parameters = list(detector.parameters())
    of_full = torch.autograd.grad(taught.total, parameters, retain_graph=True, allow_unused=True)
    of_minimal = torch.autograd.grad(learnt.total, parameters, retain_graph=True, allow_unused=True)
    both = [
        (p, a)
        for p, a, b in zip(parameters, of_full, of_minimal, strict=True)
        if a is not None and b is not None
    ]
    term = torch.autograd.grad(learnt.terms["kd_class"], [p for p, _ in both], allow_unused=True)
    norm = torch.nn.utils.get_total_norm([gradient for gradient in term if gradient is not None])
    return float(norm / torch.nn.utils.get_total_norm([gradient for _, gradient in both]))


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([(1, 20), (2, 20), (80, 20), (365, 20), (80, 100)], id="few"),
        pytest.param(
            [(k, q) for k in (1, 2, 3, 20, 80, 365) for q in (20, 100, 300)],
            id="many",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shares_of_any_number_of_classes_and_queries_are_alike(cases: list[tuple[int, int]]) -> None:
    """Within a factor of 3; with the weight queries / classes they differ by a factor of 100."""
    shares = {
        (classes, queries): statistics.median(_share(classes, queries, seed) for seed in SEEDS)
        for classes, queries in cases
    }
    assert max(shares.values()) < 3 * min(shares.values()), shares


def test_the_weight_is_the_published_one_for_coco_and_bounded_elsewhere() -> None:
    assert balanced_weight(80) == 3.75
    assert balanced_weight(3) == pytest.approx(3.75 * math.log(4) / math.log(81))
    weights = [balanced_weight(classes) for classes in (2, 3, 20, 80, 365, 1000)]
    assert weights == sorted(weights)
    assert 0.5 < weights[0] < weights[-1] < 6
    assert balanced_weight(1) == 2 * balanced_weight(2)
