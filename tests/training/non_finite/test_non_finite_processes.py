"""Several processes stop, or skip a step, together, whichever of them meets NaN or infinity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_steps import (
    break_gradient,
    differences,
    explode_minimal,
    good_batch,
    infinite_box,
    make_optimizer,
    nan_pixel,
    state_of,
    take_step,
)
from steps import make_module
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from anydepth.layers.sync_norm import synchronize_norms
from anydepth.structures import Batch
from anydepth.training.module import Backward, DetectionModule
from anydepth.training.non_finite.recorder import StepRecorder, read_whole_step
from anydepth.training.non_finite.watch import Action, NonFinitePolicy, NonFiniteStepError, StepWatch
from spawned import spawn

PROCESSES = 2
BATCHES = {"pixel": nan_pixel, "box": infinite_box}


@dataclass(frozen=True)
class Case:
    """A step of two processes: only the second one meets the cause, or both meet a bad weight."""

    network: str
    cause: str
    action: Action = "skip"
    backward: Backward = "joint"

    def __str__(self) -> str:
        return f"{self.network}, {self.cause}, {self.action}, {self.backward}"


QUICK = (
    Case("yolo", "gradient", "skip", "separate"),
    Case("detr", "pixel", "stop"),
)
MORE = (
    Case("detr", "box"),
    Case("yolo", "minimal", "stop", "separate"),
    Case("yolo", "box"),
    Case("detr", "gradient", "skip", "separate"),
    Case("detr", "box", "stop"),
    Case("yolo", "gradient", "stop"),
    Case("yolo", "pixel", "skip", "separate"),
)


class Step(nn.Module):
    """A training step as Lightning wraps it for DDP."""

    def __init__(self, module: DetectionModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch, index: int) -> Tensor:
        return self.module.training_step(batch, index)


def _take(case: Case, rank: int, folder: Path) -> dict[str, Any]:
    module = make_module(case.network, case.backward)
    module.recipe = replace(module.recipe, multi_scale_sizes=())
    recorder = StepRecorder(folder=folder / str(case), module=module.detector, config={}, num_classes=3)
    module.watch = StepWatch(policy=NonFinitePolicy(action=case.action), recorder=recorder)
    synchronize_norms(module)
    step = DistributedDataParallel(Step(module), find_unused_parameters=case.backward == "separate")
    optimizer = make_optimizer(module)
    take = partial(take_step, module, optimizer, forward=step)
    rows = slice(2 * rank, 2 * rank + 2)
    taken = [take([good_batch(rows)])]
    before = state_of(module, optimizer)
    handle = break_gradient(module)[1] if case.cause == "gradient" and rank == 1 else None
    if case.cause == "minimal":
        explode_minimal(module)
    bad = BATCHES.get(case.cause, lambda batch: batch) if rank == 1 else lambda batch: batch
    message = ""
    try:
        taken.append(take([bad(good_batch(rows))]))
    except NonFiniteStepError as error:
        message = str(error)
    changed = [] if case.cause == "minimal" else differences(before, state_of(module, optimizer))
    if handle is not None:
        handle.remove()
    if not message:
        taken.append(take([good_batch(rows)]))
    return {"taken": taken, "changed": changed, "message": message, "weights": module.detector.state_dict()}


def _process(rank: int, folder: str, cases: Sequence[Case]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    results = {str(case): _take(case, rank, Path(folder)) for case in cases}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


Found = tuple[Path, list[dict[str, Any]]]


def _run(folder: Path, cases: Sequence[Case]) -> Found:
    """Run the cases; return the folder, and the results of each process by case."""
    spawn(_process, (str(folder), cases), PROCESSES)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return _run(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return _run(tmp_path_factory.mktemp("more"), MORE)


def _check(found: Found, case: Case) -> None:
    first, second = (results[str(case)] for results in found[1])
    assert first["taken"] == second["taken"] == ([True, False, True] if case.action == "skip" else [True])
    assert first["changed"] == second["changed"] == []
    weights = {name: value for name, value in first["weights"].items() if value.is_floating_point()}
    assert differences(weights, {name: second["weights"][name] for name in weights}) == []
    if case.action == "stop":
        for rank, results in enumerate(found[1]):
            _check_message(case, rank, results[str(case)]["message"])


def _check_message(case: Case, rank: int, message: str) -> None:
    """Every process names the faulty one; norms spread a NaN pixel to the images of the other."""
    assert "step 8 of epoch 1" in message
    assert f"step_8_rank_{rank}.pt" in message
    if case.cause == "box":
        assert "process 1, pass 'full': loss" in message
        assert "image ids [3]" in message
        assert "process 0" not in message
    if case.cause == "pixel":
        assert "process 0, pass 'full': loss" in message
        assert "process 1, pass 'full': loss" in message
    if case.cause == "gradient":
        assert "process 1, pass 'full': gradient of " in message
    if case.cause == "minimal":
        assert "process 0, pass 'minimal': loss" in message
        assert "process 1, pass 'minimal': loss" in message
        assert "'full'" not in message


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_processes_stop_or_skip_a_step_together(quick: Found, case: Case) -> None:
    _check(quick, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=str)
def test_processes_agree_in_further_cases(more: Found, case: Case) -> None:
    _check(more, case)


@pytest.mark.slow
def test_the_files_of_all_processes_give_the_losses_of_the_whole_step(quick: Found) -> None:
    """One process with all images takes the step of both: the same losses, up to float32 rounding."""
    _check_files(quick, Case("yolo", "gradient", "skip", "separate"))


@pytest.mark.slow
def test_denoising_is_drawn_as_in_the_whole_step(more: Found) -> None:
    """DETR draws the noise of denoising for the images of all processes."""
    _check_files(more, Case("detr", "gradient", "skip", "separate"))


def _check_files(found: Found, case: Case) -> None:
    folder = found[0] / str(case)
    step, missing = read_whole_step(folder / "step_8_rank_1.pt")
    assert missing == ()
    assert step.batch.image_ids == (0, 1, 2, 3)
    module = make_module(case.network)
    module.recipe = replace(module.recipe, multi_scale_sizes=())
    module.detector.load_state_dict(torch.load(folder / "step_8_weights.pt", weights_only=True))
    module.plan = step.planned_passes(module.detector.depth_space)
    names = []
    for graph in module.replay(step.batch, step.place):
        name = graph.planned.name
        names.append(name)
        terms = {name: float(value.detach()) for name, value in graph.losses.terms.items()}
        assert terms == pytest.approx(step.terms[name], rel=1e-4, abs=1e-6), name
    assert names == ["full", "minimal"]
    (folder / "step_8_rank_0.pt").rename(folder / "elsewhere.pt")
    part, missing = read_whole_step(folder / "step_8_rank_1.pt")
    assert (part.batch.image_ids, missing) == ((2, 3), (0,))
