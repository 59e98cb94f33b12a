"""One training step on noise of what ``anydepth-train OVERRIDES`` composes to, for the examples in docs."""

import sys
from collections.abc import Sequence

import torch

from anydepth import zoo
from anydepth.config.compose import compose, instantiate, resolve_config
from anydepth.structures import Targets


def run(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Run both passes and go backward.

    Returns:
        Name of the backbone's class, and names of the loss terms of the minimal pass.
    """
    config = compose("train", overrides, hydra_config=True)
    settings = resolve_config(config)
    torch.manual_seed(0)
    detector = zoo.build_configured(settings["detector_name"], settings["detector"], 2)
    objective = instantiate(config.losses)
    targets = [Targets(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1]))]
    images = torch.rand(1, 3, 64, 64)
    full, minimal = detector(images, "full", targets), detector(images, "minimal", targets)
    losses = objective.supervised(full, targets)
    taught = objective.distilled(minimal, full, targets, losses)
    (losses.total + taught.total).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    return type(detector.backbone).__name__, sorted(taught.terms)


if __name__ == "__main__":
    print(*run(sys.argv[1:]))
