"""Causes of NaN and infinity in a training step, and steps as the Trainer takes them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from steps import make_batch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from anydepth.structures import Batch
from anydepth.training.module import DetectionModule

COUNTS = (3, 1, 2, 5)


def good_batch(rows: slice = slice(None)) -> Batch:
    return make_batch(COUNTS, rows)


def nan_pixel(batch: Batch) -> Batch:
    images = batch.images.float() / 255
    images[-1, 0, 5, 5] = torch.nan
    return replace(batch, images=images)


def infinite_box(batch: Batch) -> Batch:
    batch.targets[-1].boxes_cxcywh[0, 2] = torch.inf
    return batch


def explode_full(module: DetectionModule) -> None:
    """Spoil a weight that only the full pass uses."""
    _spoil(module, "refinement", "weight", 1e38)


def explode_minimal(module: DetectionModule) -> None:
    """Spoil a weight that only the minimal pass uses."""
    _spoil(module, ".skip.", "weight", torch.inf)


def _spoil(module: DetectionModule, part: str, kind: str, value: float) -> None:
    with torch.no_grad():
        for name, parameter in module.detector.named_parameters():
            if part in name and name.endswith(kind):
                parameter.fill_(value)


def break_gradient(module: DetectionModule, part: str = "") -> tuple[str, RemovableHandle]:
    """Make the gradient of a part's first parameter NaN, at a finite loss; return its name and the hook."""
    name, parameter = next(
        (name, p) for name, p in module.detector.named_parameters() if part in name and p.requires_grad
    )
    return name, parameter.register_hook(lambda gradient: gradient * torch.nan)


def make_optimizer(module: DetectionModule) -> torch.optim.Optimizer:
    """Build an optimizer with two moments and weight decay, so that a step without gradients could show."""
    groups = [{"params": list(module.detector.parameters()), "name": "head"}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    module.optimizers = lambda **_: optimizer
    return optimizer


def take_step(
    module: DetectionModule,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    forward: Callable[[Batch, int], Tensor] | None = None,
) -> bool:
    """Take an optimizer step on several batches, in the order of Lightning's hooks.

    Returns:
        Whether the weights were updated.
    """
    trainer: Any = module._trainer
    trainer.accumulate_grad_batches = len(batches)
    for index, batch in enumerate(batches):
        loss = (forward or module.training_step)(batch, index) / len(batches)
        if index == 0 and not module.separate_backward:
            optimizer.zero_grad()
        loss.backward()
    module.configure_gradient_clipping(optimizer, 0.1)
    optimizer.step()
    trainer.global_step += 1
    return module.watch.taken


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy every tensor that training changes."""
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{number}/{name}": value.clone() for name, value in moments.items()}
    return tensors


def differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not equal bit for bit; NaN equals itself."""
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not _same(value, second[name])]


def _same(first: Tensor, second: Tensor) -> bool:
    missing = first.isnan()
    return missing.equal(second.isnan()) and first[~missing].equal(second[~missing])
