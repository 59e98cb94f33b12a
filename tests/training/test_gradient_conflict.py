"""The gradients of the paths: what is compared with what, and that training does not notice."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import DictConfig
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from anydepth import zoo
from anydepth.detector import Detector
from anydepth.detr.objective import build_objective
from anydepth.structures import Batch, Targets
from anydepth.train import run
from anydepth.training.checkpoints import read_checkpoint
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.gradient_conflict import (
    GradientConflict,
    _averaged,
    _scale,
    compare_gradients,
    parameter_groups,
)
from anydepth.training.module import DetectionModule
from anydepth.training.optim import AdamWRecipe

SMALL = {
    "widths": [8, 8, 8, 8],
    "blocks": [2, 2, 2, 2],
    "hidden_dim": 16,
    "neck_ffn_dim": 16,
    "decoder_dim": 16,
    "decoder_ffn_dim": 16,
    "heads": 2,
    "decoder_layers": 2,
    "minimal_decoder_layers": 1,
    "num_queries": 10,
    "denoising_queries": 4,
    "input_size": [64, 64],
}
PARTS = ["stem", "stage1", "stage2", "stage3", "stage4", "neck", "decoder"]


def _batch(seed: int = 3, boxes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    some = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])[:boxes]
    targets = (Targets(some, torch.tensor([0, 1])[:boxes]), Targets(some[:1], torch.tensor([1])[:boxes]))
    return Batch(images, targets, (17, 42), ((64, 64), (64, 64)))


def _module(schedule: DepthSchedule | None = None, *, distilled: bool = True) -> DetectionModule:
    torch.manual_seed(0)
    detector = zoo.build("detr_tiny", 2, **SMALL)
    # Refinements that start as the identity have few gradients of their own.
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    recipe = AdamWRecipe(lr=1e-3, backbone_lr=1e-4, weight_decay=0.0, epochs=1)
    module = DetectionModule(
        detector=detector, objective=build_objective(), recipe=recipe, evaluator=None, seed=0
    )
    schedule = schedule or DepthSchedule(depths=("full", "minimal"), distill=distilled)
    module.plan = schedule.sample(detector.depth_space, seed=0, step=0)
    # Nothing is logged without a Trainer, which says what is.
    module.log_dict = lambda *_, **__: None
    module._is_logged_step = lambda: False
    return module


def _compared(module: DetectionModule, batch: Batch, scale: float = 1.0) -> dict[str, float]:
    """What the callback computes in the middle of a step."""
    found: dict[str, float] = {}
    names = [path.name for path in module.plan]
    module.observe_totals = lambda totals: found.update(
        compare_gradients(module.detector, totals, names, scale=scale)
    )
    module.training_step(batch, 0)
    module.observe_totals = None
    return found


def _separate_gradients(module: DetectionModule, batch: Batch) -> list[dict[str, Tensor]]:
    """The naive way: a forward and a backward of its own for the loss of each path."""
    gradients = []
    for position in range(len(module.plan)):
        kept: list[Sequence[Tensor]] = []
        module.observe_totals = kept.append
        module.zero_grad(set_to_none=True)
        module.training_step(batch, 0)
        kept[0][position].backward()
        gradients.append(
            {
                name: parameter.grad.clone()
                for name, parameter in module.detector.named_parameters()
                if parameter.grad is not None
            }
        )
    module.observe_totals = None
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
    for name, path in (("full", full), ("minimal", minimal)):
        assert found[f"gradients/norm/{name}"] == pytest.approx(float(_flat(path, shared).norm()), rel=1e-5)
    assert set(found) == {f"gradients/cosine/minimal/{part}" for part in prefixes} | {
        "gradients/norm/full",
        "gradients/norm/minimal",
    }
    cosines = [value for name, value in found.items() if "cosine" in name]
    assert min(cosines) < 0.95, "gradients of one direction alone would show nothing"


def test_only_parameters_of_both_paths_count() -> None:
    """Norm sets of one state and refinement paths have no gradient in the other path."""
    full, minimal = _separate_gradients(_module(), _batch())
    only_full, only_minimal = full.keys() - minimal.keys(), minimal.keys() - full.keys()
    assert any(".refinement." in name for name in only_full)
    assert all(".refinement." in name or ".full." in name for name in only_full)
    assert only_minimal
    assert all(".skip." in name for name in only_minimal)


def test_further_paths_are_compared_with_the_first_under_their_own_names() -> None:
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


def test_the_second_path_is_named_too() -> None:
    module = _module(DepthSchedule(depths=("full",), random_points=1))
    cosines = {name for name in _compared(module, _batch()) if name.startswith("gradients/cosine/")}
    assert cosines == {f"gradients/cosine/random1/{part}" for part in (*PARTS, "all")}


def test_a_loss_compared_with_itself_and_with_its_opposite() -> None:
    module = _module()
    found: dict[str, float] = {}

    def observe(totals: Sequence[Tensor]) -> None:
        three = [totals[0], totals[0], -2 * totals[0]]
        found.update(compare_gradients(module.detector, three, ["a", "b", "c"]))

    module.observe_totals = observe
    module.training_step(_batch(), 0)
    for part in (*PARTS, "all"):
        assert found[f"gradients/cosine/b/{part}"] == pytest.approx(1, abs=1e-9)
        assert found[f"gradients/cosine/c/{part}"] == pytest.approx(-1, abs=1e-9)
    assert found["gradients/norm/c"] == pytest.approx(2 * found["gradients/norm/a"], rel=1e-5)


def test_the_scale_of_half_precision_is_taken_out_again_and_an_overflow_left_out() -> None:
    plain, scaled = _compared(_module(), _batch()), _compared(_module(), _batch(), scale=65536.0)
    assert scaled == pytest.approx(plain, rel=1e-5)
    assert _compared(_module(), _batch(), scale=1e38) == {}
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    # The scaler knows its scale once it has scaled something.
    scaler.scale(torch.ones(1))
    assert _scale(cast(Any, SimpleNamespace(precision_plugin=plugin))) == 256
    assert _scale(cast(Any, SimpleNamespace(precision_plugin=None))) == 1


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
    run(compose_run(folder, *ACCUMULATED, *settings))
    state: dict[str, Tensor] = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def _logged(folder: Path) -> dict[int, dict[str, float]]:
    """By step, what was logged of the gradients."""
    (path,) = folder.rglob("metrics.csv")
    rows = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        values = {k: float(v) for k, v in row.items() if k.startswith("gradients/") and v}
        if values:
            assert int(row["step"]) not in rows, "one measurement per optimizer step"
            rows[int(row["step"])] = values
    return rows


def test_training_is_bit_for_bit_the_same_and_every_nth_step_is_logged(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """4 optimizer steps of 2 micro-batches each, logged whatever log_every_n_steps says."""
    without = _trained(compose_run, tmp_path / "without")
    every = "callbacks.gradient_conflict.every_n_steps=2"
    measured = _trained(compose_run, tmp_path / "with", "callbacks=gradients", every)
    assert without.keys() == measured.keys()
    assert [name for name in without if not torch.equal(without[name], measured[name])] == []
    assert _logged(tmp_path / "without") == {}
    logged = _logged(tmp_path / "with")
    assert list(logged) == [0, 2]
    assert {name.rpartition("/")[2] for name in logged[0] if "cosine" in name} <= {*PARTS, "all"}
    assert all(abs(value) <= 1 for row in logged.values() for key, value in row.items() if "cosine" in key)


def test_a_schedule_of_one_path_is_trained_with_a_warning(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"one path per step \(full\)"):
        run(
            compose_run(
                tmp_path, "callbacks=gradients", "depth_schedule=full_only", "validation.depths=[full]"
            )
        )
    assert _logged(tmp_path) == {}


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0"):
        GradientConflict(every_n_steps=0)


class _Step(nn.Module):
    """A training step as Lightning wraps it for DDP."""

    def __init__(self, module: DetectionModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    batch = _batch(seed=rank)
    results = {}
    for observed in (False, True):
        module = _module()
        step = DistributedDataParallel(_Step(module))
        found: dict[str, float] = {}
        if observed:
            module.observe_totals = lambda totals, m=module, f=found: f.update(
                compare_gradients(m.detector, totals, ["full", "minimal"])
            )
        step(batch).backward()
        gradients = {name: p.grad for name, p in module.detector.named_parameters()}
        results[observed] = (gradients, dict(found))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compare_the_gradients_of_their_whole_batch_and_train_alike(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    module = _module()
    separate = [_separate_gradients(module, _batch(seed=rank)) for rank in (0, 1)]
    full, minimal = (
        {name: (separate[0][path][name] + separate[1][path][name]) / 2 for name in separate[0][path]}
        for path in (0, 1)
    )
    shared = [name for name in full if name in minimal]
    expected = float(torch.cosine_similarity(_flat(full, shared), _flat(minimal, shared), dim=0))
    for results in ranks:
        (plain, _), (watched, found) = results[False], results[True]
        assert [name for name in plain if not torch.equal(plain[name], watched[name])] == []
        # DDP averages over the processes too; its sums are rounded in another order.
        assert found["gradients/cosine/minimal/all"] == pytest.approx(expected, abs=1e-4)
        assert found["gradients/norm/full"] == pytest.approx(float(_flat(full, shared).norm()), rel=1e-4)
    assert ranks[0][True][1] == ranks[1][True][1]


def test_gradients_of_other_memory_layouts_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses tensors that are not contiguous, as channels last; here the sum of 2 processes is told."""
    handed: list[bool] = []

    def all_reduce(tensor: Tensor, op: object = None) -> None:
        handed.append(tensor.is_contiguous())
        if op is None:
            tensor.mul_(2)

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    parameters = [nn.Parameter(weight), nn.Parameter(torch.zeros(3))]
    one = torch.ones(1).expand(3)
    averaged = _averaged([weight.clone(), one], parameters, scale=4.0)
    assert handed == [True] * 3
    assert averaged[0] is not None
    torch.testing.assert_close(averaged[0], weight / 4)
    torch.testing.assert_close(averaged[1], one / 4)
