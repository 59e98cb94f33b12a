"""Gradients of the passes: which are compared, and that training stays the same."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import DictConfig
from torch import Tensor, nn
from torch import distributed as dist

from anydepth import distributed, zoo
from anydepth.detector import Detector
from anydepth.structures import Batch, Targets
from anydepth.train import run
from anydepth.training.callbacks.gradient_conflict import (
    GradientConflict,
    Gradients,
    _average_gradients,
    compare_gradients,
    loss_scale,
    parameter_groups,
    pass_gradients,
)
from anydepth.training.checkpointing.read import read_checkpoint
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.training.passes import PassGraph
from anydepth.training.recipes import AdamWRecipe
from losses import detr_losses
from small_networks import SMALL_DETECTOR

PARTS = ["stem", "stage1", "stage2", "stage3", "stage4", "neck", "decoder"]


def _batch(seed: int = 3, boxes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    some = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])[:boxes]
    targets = (Targets(some, torch.tensor([0, 1])[:boxes]), Targets(some[:1], torch.tensor([1])[:boxes]))
    return Batch(images, targets, (17, 42), ((64, 64), (64, 64)))


def _module(schedule: DepthSchedule | None = None, *, distilled: bool = True) -> DetectionModule:
    torch.manual_seed(0)
    detector = zoo.build("detr_tiny", 2, **SMALL_DETECTOR)
    # Refinements that start as the identity have few gradients of their own.
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    recipe = AdamWRecipe(lr=1e-3, backbone_lr=1e-4, weight_decay=0.0, epochs=1)
    module = DetectionModule(
        detector=detector, objective=detr_losses(), recipe=recipe, evaluator=None, seed=0
    )
    schedule = schedule or DepthSchedule(depths=("full", "minimal"), distill=distilled)
    module.plan = schedule.sample(detector.depth_space, seed=0, step=0)
    # Without a Trainer nothing can be logged.
    module.log_dict = lambda *_, **__: None
    module._is_logged_step = lambda: False
    return module


def _compared(module: DetectionModule, batch: Batch, scale: float = 1.0) -> dict[str, float]:
    """Compute the figures of the callback in the middle of a step."""
    names = [planned.name for planned in module.plan]
    return compare_gradients(module.detector, _pass_gradients(module, batch, scale), names)


def _pass_gradients(module: DetectionModule, batch: Batch, scale: float = 1.0) -> list[Gradients]:
    found: list[Gradients] = []
    module.observers.append(lambda graph: found.append(pass_gradients(module.detector, graph, scale=scale)))
    module.training_step(batch, 0)
    module.observers.clear()
    return found


def _separate_gradients(module: DetectionModule, batch: Batch) -> list[dict[str, Tensor]]:
    """Compute gradients naively: a separate forward and backward for the loss of each pass."""
    gradients = []
    for position in range(len(module.plan)):
        kept: list[PassGraph] = []
        module.observers.append(kept.append)
        module.zero_grad(set_to_none=True)
        module.training_step(batch, 0)
        kept[position].total.backward()
        gradients.append(
            {
                name: parameter.grad.clone()
                for name, parameter in module.detector.named_parameters()
                if parameter.grad is not None
            }
        )
    module.observers.clear()
    module.zero_grad(set_to_none=True)
    return gradients


def _flat(gradients: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([gradients[name].double().flatten() for name in names])


@pytest.mark.parametrize("distilled", [True, False], ids=["distilled", "ground truth"])
def test_cosines_and_norms_are_those_of_separate_backward_passes(distilled: bool) -> None:
    module = _module(distilled=distilled)
    full, minimal = _separate_gradients(module, _batch())
    found = _compared(module, _batch())
    shared = [name for name in full if name in minimal]
    prefixes = {
        "stem": "backbone.stem.",
        **{f"stage{n}": f"backbone.stages.{n - 1}." for n in (1, 2, 3, 4)},
        "neck": "neck.",
        "decoder": "decoder.",
        "all": "",
    }
    for part, prefix in prefixes.items():
        names = [name for name in shared if name.startswith(prefix)]
        expected = torch.cosine_similarity(_flat(full, names), _flat(minimal, names), dim=0)
        assert found[f"gradients/cosine/minimal/{part}"] == pytest.approx(float(expected), abs=1e-6), part
    for name, gradients in (("full", full), ("minimal", minimal)):
        norm = float(_flat(gradients, shared).norm())
        assert found[f"gradients/norm/{name}"] == pytest.approx(norm, rel=1e-5)
    assert set(found) == {f"gradients/cosine/minimal/{part}" for part in prefixes} | {
        "gradients/norm/full",
        "gradients/norm/minimal",
    }
    cosines = [value for name, value in found.items() if "cosine" in name]
    assert min(cosines) < 0.95, "gradients of one direction alone would show nothing"


def test_only_parameters_of_both_passes_count() -> None:
    """Norm sets of one pass, and refinement paths, have no gradient in the other pass."""
    full, minimal = _separate_gradients(_module(), _batch())
    only_full, only_minimal = full.keys() - minimal.keys(), minimal.keys() - full.keys()
    assert any(".refinement." in name for name in only_full)
    assert all(".refinement." in name or ".full." in name for name in only_full)
    assert only_minimal
    assert all(".skip." in name for name in only_minimal)


def test_further_passes_are_compared_with_the_first_under_their_own_names() -> None:
    module = _module(DepthSchedule(depths=("full", "minimal"), random_points=1))
    gradients = _separate_gradients(module, _batch())
    found = _compared(module, _batch())
    shared = [name for name in gradients[0] if name in gradients[2]]
    expected = torch.cosine_similarity(_flat(gradients[0], shared), _flat(gradients[2], shared), dim=0)
    assert found["gradients/cosine/random1/all"] == pytest.approx(float(expected), abs=1e-6)
    common = [name for name in shared if name in gradients[1]]
    assert len(common) < len(shared), "the random point refines where minimal does not"
    norm = float(_flat(gradients[2], common).norm())
    assert found["gradients/norm/random1"] == pytest.approx(norm, rel=1e-5)


def test_the_second_pass_is_named_too() -> None:
    module = _module(DepthSchedule(depths=("full",), random_points=1))
    cosines = {name for name in _compared(module, _batch()) if name.startswith("gradients/cosine/")}
    assert cosines == {f"gradients/cosine/random1/{part}" for part in (*PARTS, "all")}


def test_a_loss_compared_with_itself_and_with_its_opposite() -> None:
    module = _module()
    full = _pass_gradients(module, _batch())[0]
    opposite = [None if gradient is None else -2 * gradient for gradient in full]
    found = compare_gradients(module.detector, [full, full, opposite], ["a", "b", "c"])
    for part in (*PARTS, "all"):
        assert found[f"gradients/cosine/b/{part}"] == pytest.approx(1, abs=1e-9)
        assert found[f"gradients/cosine/c/{part}"] == pytest.approx(-1, abs=1e-9)
    assert found["gradients/norm/c"] == pytest.approx(2 * found["gradients/norm/a"], rel=1e-5)


def test_the_loss_scale_cancels_and_an_overflow_is_left_out() -> None:
    plain, scaled = _compared(_module(), _batch()), _compared(_module(), _batch(), scale=65536.0)
    assert scaled == pytest.approx(plain, rel=1e-5)
    assert _compared(_module(), _batch(), scale=1e38) == {}
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    # The scaler initialises its scale when it is first used.
    scaler.scale(torch.ones(1))
    assert loss_scale(cast(Any, SimpleNamespace(precision_plugin=plugin))) == 256
    assert loss_scale(cast(Any, SimpleNamespace(precision_plugin=None))) == 1


def test_images_without_objects_can_be_measured() -> None:
    found = _compared(_module(), _batch(boxes=0))
    assert "gradients/cosine/minimal/all" in found


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("detr_tiny", set(PARTS)),
        ("detr_swin_t", {*PARTS, "backbone_other"}),
        (
            "yolo_tiny",
            {*PARTS[:5], "neck1", "neck2", "neck3", "neck4", "backbone_other", "neck_other", "head"},
        ),
    ],
)
def test_every_parameter_belongs_to_a_part_of_its_network(name: str, parts: set[str]) -> None:
    detector: Detector = zoo.build(name, 2)
    groups = parameter_groups(detector)
    assert set(groups) == {name for name, _ in detector.named_parameters()}
    assert set(groups.values()) == parts


# -- in training -----------------------------------------------------------------------------------------

ACCUMULATED = (
    "trainer.accumulate_grad_batches=2",
    "trainer.limit_train_batches=4",
    "trainer.log_every_n_steps=3",
)


def _trained(compose_run: Callable[..., DictConfig], folder: Path, *settings: str) -> dict[str, Tensor]:
    run(compose_run(folder, *ACCUMULATED, "recipe.epochs=2", *settings))
    state: dict[str, Tensor] = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def _logged(folder: Path) -> dict[int, dict[str, float]]:
    """Return the logged gradient metrics by step."""
    (path,) = folder.rglob("metrics.csv")
    rows = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        values = {k: float(v) for k, v in row.items() if k.startswith("gradients/") and v}
        if values:
            assert int(row["step"]) not in rows, "one measurement per optimizer step"
            rows[int(row["step"])] = values
    return rows


@pytest.mark.slow
def test_training_is_bit_for_bit_the_same_and_every_nth_step_is_logged(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """4 optimizer steps of 2 micro-batches each, logged independently of log_every_n_steps."""
    without = _trained(compose_run, tmp_path / "without", "callbacks.gradient_conflict=null")
    every = "callbacks.gradient_conflict.every_n_steps=2"
    measured = _trained(compose_run, tmp_path / "with", every)
    assert without.keys() == measured.keys()
    assert [name for name in without if not torch.equal(without[name], measured[name])] == []
    assert _logged(tmp_path / "without") == {}
    logged = _logged(tmp_path / "with")
    assert list(logged) == [0, 2]
    for row in logged.values():
        assert {name.rpartition("/")[2] for name in row if "cosine" in name} == {*PARTS, "all"}
    assert all(abs(value) <= 1 for row in logged.values() for key, value in row.items() if "cosine" in key)


def test_a_schedule_of_one_pass_is_trained_without_a_comparison(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run(compose_run(tmp_path, "depth_schedule=full_only", "validation.depths=[full]"))
    assert _logged(tmp_path) == {}


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0"):
        GradientConflict(every_n_steps=0)


def test_gradients_of_other_memory_layouts_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL rejects non-contiguous tensors such as channels last; all_reduce is replaced for 2 processes."""
    contiguous: list[bool] = []

    def all_reduce(tensor: Tensor, op: object = None) -> None:
        contiguous.append(tensor.is_contiguous())
        if op is None:
            tensor.mul_(2)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    parameters = [nn.Parameter(weight), nn.Parameter(torch.zeros(3))]
    one = torch.ones(1).expand(3)
    averaged = _average_gradients([weight.clone(), one], parameters, scale=4.0)
    assert contiguous == [True] * 3
    assert averaged[0] is not None
    torch.testing.assert_close(averaged[0], weight / 4)
    torch.testing.assert_close(averaged[1], one / 4)
