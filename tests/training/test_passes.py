"""One backward per pass: the gradients of one backward for the sum, in the memory of one pass at a time."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig
from steps import NETWORKS, make_batch, make_module
from torch import Tensor

from anydepth.train import run
from anydepth.training.module import Backward

Compose = Callable[..., DictConfig]


class FirstGradients(pl.Callback):
    """Keeps the gradients of the first optimizer step, before they are clipped."""

    found: dict[str, Tensor] = {}  # noqa: RUF012

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == 0:
            FirstGradients.found = {
                name: parameter.grad.clone()
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            }


def _gradients(compose_run: Compose, folder: Path, *settings: str) -> dict[str, Tensor]:
    keep = f"+callbacks.keep={{_target_: {__name__}.FirstGradients}}"
    run(compose_run(folder, keep, "recipe.epochs=1", *settings))
    return FirstGradients.found


@pytest.mark.parametrize("backward", ["joint", "separate"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_stem_that_passes_share_runs_once(network: str, backward: Backward) -> None:
    module = make_module(network, backward)
    runs = []
    module.detector.backbone.stem.register_forward_hook(lambda *_: runs.append("forward"))
    module.detector.backbone.stem.register_full_backward_pre_hook(lambda *_: runs.append("backward"))
    module.training_step(make_batch((1, 2)), 0).backward()
    assert runs == ["forward", "backward"]


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_three_passes_and_accumulated_batches_give_the_same_gradients(
    compose_run: Compose, tmp_path: Path, precision: str
) -> None:
    settings = (
        "depth_schedule=sandwich",
        "depth_schedule.weights=[1,0.5,0.25]",
        "trainer.accumulate_grad_batches=2",
        f"trainer.precision={precision}",
    )
    joint = _gradients(compose_run, tmp_path / "joint", *settings)
    separate = _gradients(compose_run, tmp_path / "separate", *settings, "backward=separate")
    assert joint.keys() == separate.keys()
    assert any("backbone.stem" in name for name in joint), "the stem that passes share is trained"
    largest = max(float(gradient.abs().max()) for gradient in joint.values())
    # bfloat16 rounds the gradient at the stem before or after the gradients of the passes are added.
    tolerance = 1e-5 if precision == "32-true" else 1e-2
    for name, gradient in joint.items():
        assert float((separate[name] - gradient).abs().max()) <= tolerance * largest, name


@pytest.mark.slow
def test_observing_gradients_changes_nothing_in_either_backward_mode(
    compose_run: Compose, tmp_path: Path
) -> None:
    """Observing changes nothing, and sees the gradients of each pass alone."""
    logged = {}
    for backward in ("joint", "separate"):
        settings = (f"backward={backward}", "callbacks.progress=null")
        off = "callbacks.gradient_conflict=null"
        plain = _gradients(compose_run, tmp_path / f"{backward} plain", *settings, off)
        folder = tmp_path / backward
        watched = _gradients(compose_run, folder, *settings)
        assert watched.keys() == plain.keys() != set()
        assert all(torch.equal(plain[name], gradient) for name, gradient in watched.items())
        header, *rows = (folder / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
        columns = [name for name in header.split(",") if name.startswith("gradients/")]
        first = next(
            row
            for row in (dict(zip(header.split(","), row.split(","), strict=True)) for row in rows)
            if row["gradients/norm/full"]
        )
        logged[backward] = {name: float(first[name]) for name in columns}
    assert "gradients/cosine/minimal/stem" in logged["joint"]
    assert logged["separate"] == pytest.approx(logged["joint"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("backward", ["joint", "separate"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_activations_of_a_pass_are_freed_before_the_next_one(backward: Backward, network: str) -> None:
    """Of the outputs of all blocks, only those that the next pass learns from still exist."""
    module = make_module(network, backward)
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(part: torch.nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            kept.append(weakref.ref(output))

    for part in module.detector.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(watch)
    forward = module._forward

    def counted(*arguments: Any) -> Any:
        alive.append(sum(reference() is not None for reference in kept))
        return forward(*arguments)

    module._forward = counted
    module.training_step(make_batch((2, 1)), 0)
    assert len(alive) == 2
    if backward == "separate":
        assert alive[1] == alive[0]
    else:
        assert alive[1] > alive[0] + 20
