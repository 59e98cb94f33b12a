"""Training steps of small networks of both families, without a Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anydepth import zoo
from anydepth.structures import Batch, Targets
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import Backward, DetectionModule
from anydepth.training.recipes import AdamWRecipe
from small_networks import SMALL_DETECTOR, SMALL_YOLO

CLASSES = 3
NETWORKS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "detr": ("detr_tiny", SMALL_DETECTOR),
    "swin": (
        "detr_tiny",
        {
            **SMALL_DETECTOR,
            "block": "swin",
            "stem": "patch",
            "widths": [32, 32, 32, 32],
            "stochastic_depth": 0.5,
        },
    ),
    "yolo": ("yolo_tiny", SMALL_YOLO),
}


@contextmanager
def in_float64() -> Iterator[None]:
    """Within the block, code written for float32 computes in float64, whose rounding hides no mistake."""
    former = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        # Losses request float32 by name, to stay in it when the rest runs in half precision.
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(former)


def make_module(network: str, backward: Backward = "joint", classes: int = CLASSES) -> DetectionModule:
    """Build a module without zero weights, and with the plan of both extremes."""
    name, settings = NETWORKS[network]
    torch.manual_seed(0)
    detector = zoo.build(name, classes, **settings)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    recipe = AdamWRecipe(
        lr=1e-3, backbone_lr=1e-4, weight_decay=0.0, epochs=1, multi_scale_sizes=(96, 128, 160)
    )
    module = DetectionModule(
        detector=detector,
        objective=zoo.build_losses("yolo" if name.startswith("yolo") else "detr"),
        recipe=recipe,
        evaluator=None,
        seed=0,
        backward=backward,
    )
    module.plan = DepthSchedule(depths=("full", "minimal")).sample(detector.depth_space, seed=0, step=0)
    module.log_dict = lambda *_, **__: None
    module._is_logged_step = lambda: False
    optimizer = torch.optim.SGD(detector.parameters(), lr=1.0)
    module.optimizers = lambda **_: optimizer
    module._trainer = SimpleNamespace(
        accumulate_grad_batches=1, precision_plugin=None, global_step=7, current_epoch=1
    )
    return module


def make_batch(counts: Sequence[int], rows: slice = slice(None), classes: int = CLASSES) -> Batch:
    """Make rows of a batch of images with the given number of boxes each."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (len(counts), 3, 64, 64), dtype=torch.uint8, generator=generator)
    targets = []
    for count in counts:
        centres = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        sizes = 0.15 + 0.3 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(0, classes, (count,), generator=generator)
        targets.append(Targets(torch.cat([centres, sizes], dim=1), labels))
    ids = tuple(range(len(counts)))[rows]
    return Batch(images[rows], tuple(targets[rows]), ids, ((64, 64),) * len(ids))
