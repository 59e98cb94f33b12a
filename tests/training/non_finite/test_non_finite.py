"""NaN or infinite steps: their error messages, and that they never reach the weights."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_steps import (
    break_gradient,
    differences,
    explode_full,
    explode_minimal,
    good_batch,
    infinite_box,
    make_optimizer,
    nan_pixel,
    state_of,
    take_step,
)
from rich import get_console
from steps import make_module

from anydepth.training.module import Backward, DetectionModule
from anydepth.training.non_finite.recorder import StepRecorder
from anydepth.training.non_finite.watch import NonFinitePolicy, NonFiniteStepError, StepWatch

FAMILIES = ("detr", "yolo")
BACKWARD_MODES: tuple[Backward, ...] = ("joint", "separate")


def _module(network: str, backward: Backward = "joint", **policy: Any) -> tuple[DetectionModule, Any]:
    module = make_module(network, backward)
    module.recipe = replace(module.recipe, multi_scale_sizes=())
    module.watch = StepWatch(policy=NonFinitePolicy(**policy))
    return module, make_optimizer(module)


def _message(network: str, spoil: Any, backward: Backward = "joint", *, batch: Any = None) -> str:
    """Return the error message of a step that stops the run."""
    module, optimizer = _module(network, backward)
    if spoil is not None:
        spoil(module)
    with pytest.raises(NonFiniteStepError) as caught:
        take_step(module, optimizer, [batch or good_batch()])
    return str(caught.value)


@pytest.mark.parametrize(("network", "backward"), [("detr", "separate"), ("yolo", "joint")])
def test_a_nan_in_an_image_names_step_passes_terms_and_images(network: str, backward: Backward) -> None:
    """Batch norms spread it to all images of the batch."""
    message = _message(network, None, backward, batch=nan_pixel(good_batch()))
    assert message.startswith("step 7 of epoch 1 is NaN or infinite and was not taken:\npass 'full': loss ")
    assert f"{'vfl' if network == 'detr' else 'class'} is nan" in message
    assert "pass 'minimal': loss" in message
    assert "image ids [0, 1, 2, 3]" in message
    assert "recipe.lr" in message


@pytest.mark.parametrize("network", FAMILIES)
def test_an_infinite_box_names_its_image_alone(network: str) -> None:
    message = _message(network, None, batch=infinite_box(good_batch()))
    assert "image ids [3];" in message
    assert "ground-truth boxes" in message
    assert "check the annotations of these images" in message


@pytest.mark.parametrize("network", FAMILIES)
def test_a_weight_that_explodes_in_one_pass_names_that_pass(network: str) -> None:
    full = _message(network, explode_full)
    assert "pass 'full': loss" in full
    minimal = _message(network, explode_minimal)
    assert "pass 'minimal': loss" in minimal
    assert "pass 'full'" not in minimal


@pytest.mark.parametrize(("network", "backward"), [("detr", "separate"), ("yolo", "joint")])
@pytest.mark.parametrize(
    ("name", "part"), [("full", "refinement"), pytest.param("minimal", ".skip.", marks=pytest.mark.slow)]
)
def test_a_gradient_at_finite_losses_names_the_parameter_of_its_pass(
    network: str, backward: Backward, name: str, part: str
) -> None:
    parameters: list[str] = []
    message = _message(network, lambda module: parameters.append(break_gradient(module, part)[0]), backward)
    other = "minimal" if name == "full" else "full"
    assert f"pass '{name}': gradient of {parameters[0]}; image ids [0, 1, 2, 3]" in message
    assert f"pass '{other}'" not in message
    assert "loss" not in message.splitlines()[1]


CAUSES = {"pixel": nan_pixel, "box": infinite_box, "gradient": None}


@pytest.mark.parametrize(
    ("network", "cause", "backward"),
    [
        ("detr", "pixel", "joint"),
        ("yolo", "gradient", "separate"),
        pytest.param("detr", "gradient", "separate", marks=pytest.mark.slow),
        pytest.param("yolo", "box", "joint", marks=pytest.mark.slow),
    ],
)
def test_a_skipped_step_leaves_every_tensor_as_it_was_and_the_next_one_is_taken(
    network: str, backward: Backward, cause: str
) -> None:
    """Parameters, running statistics and moments; the next step is that of a run without the bad one."""
    spoil = CAUSES[cause]
    module, optimizer = _module(network, backward, action="skip")
    plain, plain_optimizer = _module(network, backward)
    for one, its in ((module, optimizer), (plain, plain_optimizer)):
        assert take_step(one, its, [good_batch()])
    before = state_of(module, optimizer)
    _, handle = break_gradient(module)
    if spoil is not None:
        handle.remove()
    assert not take_step(module, optimizer, [spoil(good_batch()) if spoil else good_batch()])
    handle.remove()
    assert differences(state_of(module, optimizer), before) == []
    assert module.watch.skipped == 1
    for one, its in ((module, optimizer), (plain, plain_optimizer)):
        assert take_step(one, its, [good_batch()])
    assert differences(state_of(module, optimizer), state_of(plain, plain_optimizer)) == []


@pytest.mark.parametrize("backward", BACKWARD_MODES)
def test_an_accumulated_step_is_skipped_whole_and_names_its_bad_batch(
    backward: Backward, capsys: pytest.CaptureFixture[str]
) -> None:
    module, optimizer = _module("detr", backward, action="skip")
    take_step(module, optimizer, [good_batch()])
    before = state_of(module, optimizer)
    bad = infinite_box(good_batch())
    object.__setattr__(bad, "image_ids", (10, 11, 12, 13))
    assert not take_step(module, optimizer, [good_batch(), bad, good_batch()])
    assert differences(state_of(module, optimizer), before) == []
    shown = capsys.readouterr().out
    assert "image ids [13]" in shown
    assert "skipped 1 of at most 100 steps" in shown


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"limit_in_a_row": 2}, r"The 2 steps before it were skipped as well \(non_finite.limit_in_a_row\)"),
        ({"limit": 2}, r"2 steps were skipped before it \(non_finite.limit\)"),
    ],
)
def test_too_many_skipped_steps_end_the_run(policy: dict[str, Any], message: str) -> None:
    module, optimizer = _module("detr", action="skip", **policy)
    for _ in range(2):
        assert not take_step(module, optimizer, [infinite_box(good_batch())])
    with pytest.raises(NonFiniteStepError, match=message):
        take_step(module, optimizer, [infinite_box(good_batch())])


def test_a_step_that_is_taken_resets_the_row() -> None:
    module, optimizer = _module("detr", action="skip", limit_in_a_row=1)
    for _ in range(2):
        assert not take_step(module, optimizer, [infinite_box(good_batch())])
        assert take_step(module, optimizer, [good_batch()])
    assert module.watch.skipped == 2


def test_counts_continue_from_a_checkpoint() -> None:
    module, optimizer = _module("detr", action="skip", limit=2)
    take_step(module, optimizer, [infinite_box(good_batch())])
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    resumed, optimizer = _module("detr", action="skip", limit=2)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.watch.skipped == 1
    take_step(resumed, optimizer, [infinite_box(good_batch())])
    with pytest.raises(NonFiniteStepError, match="2 steps were skipped before it"):
        take_step(resumed, optimizer, [infinite_box(good_batch())])
    resumed.on_load_checkpoint({})
    assert resumed.watch.skipped == 0, "a checkpoint of an older version"


def test_a_step_is_checked_with_one_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer = _module("yolo")
    module.training_step(good_batch(), 0).backward()
    reads: list[str] = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda tensor, real=real, name=name: reads.append(name) or real(tensor)
        )
    module.configure_gradient_clipping(optimizer, 0.1)
    assert reads == ["tolist"]


def test_files_are_written_up_to_the_limit_and_a_failing_disk_is_reported(tmp_path: Path) -> None:
    module, optimizer = _module("detr", action="skip")
    recorder = StepRecorder(
        folder=tmp_path / "non_finite", module=module.detector, config={}, num_classes=3, limit=2
    )
    module.watch.recorder = recorder
    for _ in range(3):
        take_step(module, optimizer, [infinite_box(good_batch())])
    files = sorted(path.name for path in (tmp_path / "non_finite").iterdir())
    assert files == ["step_7_rank_0.pt", "step_7_weights.pt", "step_8_rank_0.pt", "step_8_weights.pt"]
    (tmp_path / "file").write_text("in the way")
    module.watch.recorder = StepRecorder(
        folder=tmp_path / "file", module=module.detector, config={}, num_classes=3
    )
    with get_console().capture() as shown:
        take_step(module, optimizer, [infinite_box(good_batch())])
    assert re.search(r"The step could not be written to .*file.step_10_rank_0\.pt: ", shown.get())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "ignore"}, "non_finite.action='ignore': allowed are stop and skip"),
        ({"limit": 0}, "non_finite.limit=0: allowed are 1 and above"),
        ({"limit_in_a_row": 0}, "non_finite.limit_in_a_row=0: allowed are 1 and above"),
    ],
)
def test_unknown_policies_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NonFinitePolicy(**settings)
