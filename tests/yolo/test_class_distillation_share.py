"""The class distillation keeps its share of the gradient, whatever the number of classes."""

import statistics

import pytest
import torch

from anydepth import zoo
from anydepth.structures import Targets
from losses import yolo_losses

SIZE = 96


def _share(classes: int, seed: int) -> float:
    """Norm of the term's gradient by that of the deeper pass's losses, on the parameters of both passes."""
    torch.manual_seed(seed)
    detector = zoo.build("yolo_tiny", classes, input_size=[SIZE, SIZE]).train()
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    centres = 0.25 + 0.5 * torch.rand(2, 5, 2, generator=generator)
    sizes = 0.1 + 0.3 * torch.rand(2, 5, 2, generator=generator)
    labels = torch.randint(0, classes, (2, 5), generator=generator)
    targets = [Targets(torch.cat([c, s], 1), k) for c, s, k in zip(centres, sizes, labels, strict=True)]
    objective = yolo_losses()
    full = detector(images, "full", targets)
    taught = objective.supervised(full, targets)
    learnt = objective.distilled(detector(images, "minimal", targets), full, targets, taught)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    of_full = torch.autograd.grad(taught.total, parameters, retain_graph=True, allow_unused=True)
    of_term = torch.autograd.grad(learnt.terms["kd_class"], parameters, allow_unused=True)
    both = [(a, b) for a, b in zip(of_full, of_term, strict=True) if a is not None and b is not None]
    norms = [torch.nn.utils.get_total_norm(list(gradients)) for gradients in zip(*both, strict=True)]
    return float(norms[1] / norms[0])


@pytest.mark.parametrize(
    "numbers",
    [pytest.param((1, 2, 80), id="few"), pytest.param((1, 2, 3, 20, 365), id="many", marks=pytest.mark.slow)],
)
def test_shares_of_any_number_of_classes_are_alike(numbers: tuple[int, ...]) -> None:
    """Within a factor of 3; the sigmoid scores of one class had a tenth of the share of several classes."""
    shares = {classes: statistics.median(_share(classes, seed) for seed in range(3)) for classes in numbers}
    assert max(shares.values()) < 3 * min(shares.values()), shares
