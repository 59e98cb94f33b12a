"""The class distillation keeps its share of the gradient, whatever the number of classes and queries."""

import math
import statistics

import pytest
import torch

from anydepth import zoo
from anydepth.detr.distillation import balanced_weight
from losses import detr_losses, share_of_class_distillation
from small_networks import SMALL_DETECTOR

SIZE = 96
SEEDS = range(3)
# As wide as detr_tiny: logits of a decoder of 16 channels differ more than those of real ones.
WIDE = {"hidden_dim": 96, "decoder_dim": 96, "decoder_ffn_dim": 192, "decoder_layers": 3, "heads": 8}


def _share(classes: int, queries: int, seed: int) -> float:
    torch.manual_seed(seed)
    size = SIZE if queries <= 100 else 128  # 300 queries need as many cells
    settings = {**SMALL_DETECTOR, **WIDE, "num_queries": queries, "input_size": [size, size]}
    detector = zoo.build("detr_tiny", classes, **settings).train()
    return share_of_class_distillation(detector, detr_losses(), size, seed)


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
