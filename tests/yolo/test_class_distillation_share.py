"""The class distillation keeps its share of the gradient, whatever the number of classes."""

import statistics

import pytest
import torch

from anydepth import zoo
from losses import share_of_class_distillation, yolo_losses

SIZE = 96


def _share(classes: int, seed: int) -> float:
    torch.manual_seed(seed)
    detector = zoo.build("yolo_tiny", classes, input_size=[SIZE, SIZE]).train()
    return share_of_class_distillation(detector, yolo_losses(), SIZE, seed)


@pytest.mark.parametrize(
    "numbers",
    [pytest.param((1, 2, 80), id="few"), pytest.param((1, 2, 3, 20, 365), id="many", marks=pytest.mark.slow)],
)
def test_shares_of_any_number_of_classes_are_alike(numbers: tuple[int, ...]) -> None:
    """Within a factor of 3; the sigmoid scores of one class had a tenth of the share of several classes."""
    shares = {classes: statistics.median(_share(classes, seed) for seed in range(3)) for classes in numbers}
    assert max(shares.values()) < 3 * min(shares.values()), shares
