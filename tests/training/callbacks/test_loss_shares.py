"""Shares of the loss terms in the gradient: compared with separate backward passes, and in training."""

import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from anydepth import zoo
from anydepth.detector import Objective
from anydepth.structures import Batch, Targets
from anydepth.train import run
from anydepth.training.callbacks.loss_shares import (
    LossShares,
    TermNorms,
    gradient_shares,
    mean_shares,
    term_norms,
)
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph
from anydepth.training.recipes import AdamWRecipe
from losses import detr_losses, yolo_losses
from small_networks import SMALL_DETECTOR


def _module(name: str, objective: Objective, minimal_weight: float = 1.0) -> DetectionModule:
    torch.manual_seed(0)
    settings = SMALL_DETECTOR if name == "detr_tiny" else {"input_size": [64, 64]}
    detector = zoo.build(name, 3, **settings).train()
    recipe = AdamWRecipe(lr=1e-3, backbone_lr=1e-4, weight_decay=0.0, epochs=1)
    module = DetectionModule(detector=detector, objective=objective, recipe=recipe, evaluator=None, seed=0)
    schedule = DepthSchedule(depths=("full", "minimal"), weights=(1.0, minimal_weight))
    module.plan = schedule.sample(detector.depth_space, seed=0, step=0)
    return module


def _batch(boxes: int = 2) -> Batch:
    images = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    some = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])[:boxes]
    targets = tuple(Targets(some, torch.tensor([0, 2])[:boxes]) for _ in range(2))
    return Batch(images, targets, (17, 42), ((64, 64), (64, 64)))


def _shares(module: DetectionModule, batch: Batch, scale: float = 1.0) -> dict[str, float]:
    norms: TermNorms = {}
    module.observers.append(lambda graph: norms.update(term_norms(module, graph, scale=scale)))
    module.training_step(batch, 0)
    return gradient_shares(norms)


def _reference(module: DetectionModule, batch: Batch) -> dict[str, float]:
    """Norms of the gradients that ordinary backward passes leave in the parameters, one term at a time."""
    graphs: list[PassGraph] = []
    module.observers.append(graphs.append)
    module.training_step(batch, 0)
    found: dict[str, dict[str, torch.Tensor]] = {}
    parameters = dict(module.detector.named_parameters())
    for graph in graphs:
        for name, term in graph.losses.terms.items():
            module.detector.zero_grad()
            if term.requires_grad:
                (graph.planned.weight * term).backward(retain_graph=True)
            gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
            found[f"{graph.planned.name}/{name}"] = gradients
    used = [
        {n for name, grads in found.items() if name.startswith(f"{one}/") for n in grads}
        for one in ("full", "minimal")
    ]
    both = used[0] & used[1]
    norms = {
        name: float(torch.stack([g.square().sum() for n, g in grads.items() if n in both]).sum().sqrt())
        if both & grads.keys()
        else 0.0
        for name, grads in found.items()
    }
    return {name: norm / sum(norms.values()) for name, norm in norms.items()}


@pytest.mark.parametrize(
    ("name", "losses"),
    [("detr_tiny", detr_losses), pytest.param("yolo_tiny", yolo_losses, marks=pytest.mark.slow)],
)
def test_shares_are_those_of_one_backward_per_term(name: str, losses: Callable[[], Objective]) -> None:
    found = _shares(_module(name, losses(), minimal_weight=0.5), _batch())
    expected = _reference(_module(name, losses(), minimal_weight=0.5), _batch())
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert sum(found.values()) == pytest.approx(1)
    assert {"full", "minimal"} == {term.partition("/")[0] for term in found}


def test_the_loss_scale_cancels_and_an_overflow_gives_no_shares() -> None:
    plain = _shares(_module("detr_tiny", detr_losses()), _batch())
    assert _shares(_module("detr_tiny", detr_losses()), _batch(), scale=1024.0) == pytest.approx(
        plain, rel=1e-4
    )
    assert _shares(_module("detr_tiny", detr_losses()), _batch(), scale=3e38) == {}


def test_terms_of_a_batch_without_boxes_have_no_share() -> None:
    shares = _shares(_module("detr_tiny", detr_losses()), _batch(boxes=0))
    assert shares["full/dn_vfl"] == 0
    assert sum(shares.values()) == pytest.approx(1)


def test_means_count_a_missing_term_as_nothing() -> None:
    assert mean_shares([{"a": 0.5, "b": 0.5}, {"a": 1.0}]) == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"min_measured": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"loss_shares.{next(iter(wrong))}=0: allowed are 1"):
        LossShares(**{"every_n_steps": 1, "min_measured": 1, **wrong})


@pytest.mark.parametrize(
    ("weight", "warned"),
    [
        pytest.param("5.0", [], id="balanced", marks=pytest.mark.slow),
        pytest.param("100000.0", ["minimal/kd_l1"], id="drowning"),
    ],
)
def test_training_logs_shares_and_names_a_term_that_drowns_the_others(
    compose_run: Callable[..., DictConfig], tmp_path: Path, weight: str, warned: list[str]
) -> None:
    settings = ("callbacks.loss_shares.every_n_steps=1", "callbacks.loss_shares.min_measured=2")
    losses = f"losses.distillation.l1_weight={weight}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(compose_run(tmp_path, *settings, losses))
    messages = [str(w.message) for w in caught if "of the gradient on the weights" in str(w.message)]
    assert [message.partition(" has ")[0] for message in messages] == warned
    (path,) = tmp_path.rglob("metrics.csv")
    rows = [
        row for row in csv.DictReader(path.read_text().splitlines()) if row.get("gradients/share/full/l1")
    ]
    assert [int(row["step"]) for row in rows] == [0, 1]
    total = sum(float(v) for k, v in rows[0].items() if k.startswith("gradients/share/") and v)
    assert total == pytest.approx(1)
