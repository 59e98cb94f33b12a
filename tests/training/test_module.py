"""One training step: passes, teachers, weights, sizes, precision, and errors."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.detector import Detector, Objective, PassLosses
from anydepth.structures import Batch, DetectorOutput, Targets
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.training.recipes import AdamWRecipe
from losses import detr_losses


class _Recorder(Objective):
    """Losses of known values; records its inputs."""

    def __init__(self, supervised: float = 2.0, distilled: float = 3.0) -> None:
        super().__init__()
        self.values = (supervised, distilled)
        self.taught: list[tuple[DetectorOutput, DetectorOutput, PassLosses]] = []
        self.results: list[PassLosses] = []
        self.outputs: list[DetectorOutput] = []
        self.autocast: list[bool] = []

    def _losses(self, output: DetectorOutput, value: float, name: str) -> PassLosses:
        self.outputs.append(output)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        # Half of it each, and tied to the network, so that it has a gradient.
        tie = output.neck_features[0].float().mean()
        terms = {f"{name}_a": value / 2 + 0 * tie, f"{name}_b": value / 2 + tie - tie.detach()}
        self.results.append(PassLosses(terms, assignment=len(self.results)))
        return self.results[-1]

    @property
    def distilled_levels(self) -> frozenset[str]:
        return frozenset()

    def supervised(self, output: DetectorOutput, targets: Sequence[Targets]) -> PassLosses:
        return self._losses(output, self.values[0], "gt")

    def distilled(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Targets],
        teacher_losses: PassLosses,
    ) -> PassLosses:
        self.taught.append((student, teacher, teacher_losses))
        return self._losses(student, self.values[1], "kd")


def _batch(size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])
    targets = (Targets(boxes, torch.tensor([0, 1])), Targets(boxes[:0], torch.zeros(0, dtype=torch.int64)))
    return Batch(images, targets, (17, 42), ((size, size), (size, size)))


def _module(
    detector: Detector, objective: Objective, sizes: Sequence[int] = (), **settings: Any
) -> DetectionModule:
    recipe = AdamWRecipe(lr=1e-3, backbone_lr=1e-4, weight_decay=0.0, epochs=1, multi_scale_sizes=sizes)
    module = DetectionModule(
        detector=detector, objective=objective, recipe=recipe, evaluator=None, seed=0, **settings
    )
    schedule = DepthSchedule(depths=("full", "minimal"), random_points=1, weights=(1.0, 0.5, 0.25))
    module.plan = schedule.sample(detector.depth_space, seed=0, step=0)
    # Nothing is logged without a Trainer.
    module.log_dict = lambda *_, **__: None
    module._is_logged_step = lambda: True
    return module


def test_the_step_sums_weighted_losses_of_all_passes(small_detector: Detector) -> None:
    """2 x 1 of full, 3 x 0.5 of minimal, 3 x 0.25 of the random point."""
    module = _module(small_detector, _Recorder())
    assert float(module.training_step(_batch(), 0).detach()) == pytest.approx(2 + 1.5 + 0.75)


def test_passes_learn_from_the_output_and_the_assignment_of_full(small_detector: Detector) -> None:
    objective = _Recorder()
    _module(small_detector, objective).training_step(_batch(), 0)
    assert len(objective.taught) == 2, "minimal and the random point"
    for position, (student, teacher, teacher_losses) in enumerate(objective.taught, start=1):
        assert student is objective.outputs[position]
        assert teacher is objective.outputs[0]
        assert teacher_losses is objective.results[0]


def test_one_backward_reaches_every_parameter(small_detector: Detector) -> None:
    """No single pass uses them all; plain distributed training needs all gradients in one backward."""
    module = _module(small_detector, detr_losses())
    module.training_step(_batch(), 0).backward()
    missing = [name for name, parameter in small_detector.named_parameters() if parameter.grad is None]
    assert missing == []


def test_all_passes_see_one_size_that_changes_with_the_step(small_detector: Detector) -> None:
    objective = _Recorder()
    module = _module(small_detector, objective, sizes=(64, 96))
    seen = []
    for step in range(6):
        type(module).global_step = property(lambda _, step=step: step)
        try:
            module.training_step(_batch(), 0)
        finally:
            del type(module).global_step
        strides = {output.neck_features[0].shape[-1] for output in objective.outputs[-3:]}
        assert len(strides) == 1
        seen.append(8 * strides.pop())
    assert set(seen) == {64, 96}


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({}, {"mode": "bilinear", "align_corners": False}),
        ({"antialias": True}, {"mode": "bilinear", "align_corners": False, "antialias": True}),
        ({"resize_mode": "nearest"}, {"mode": "nearest"}),
    ],
)
def test_images_reach_the_network_in_unit_range_and_resized(
    small_detector: Detector, settings: dict[str, Any], reference: dict[str, Any]
) -> None:
    module = _module(small_detector, _Recorder(), sizes=(32,), **settings)
    seen: list[Tensor] = []
    handle = small_detector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.training_step(_batch(), 0)
    handle.remove()
    expected = F.interpolate(_batch().images.float() / 255, size=(32, 32), **reference)
    assert len(seen) == 3
    for images in seen:
        torch.testing.assert_close(images, expected, rtol=0, atol=0)


def test_losses_are_computed_outside_of_autocast(small_detector: Detector) -> None:
    objective = _Recorder()
    module = _module(small_detector, objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.training_step(_batch(), 0)
    assert objective.outputs[0].neck_features[0].dtype == torch.bfloat16
    assert objective.autocast == [False] * 3


def test_random_numbers_are_a_function_of_the_batch(small_detector: Detector) -> None:
    """Denoising draws labels and boxes; the norms' statistics do not enter a training forward."""
    module = _module(small_detector, detr_losses())
    losses = [float(module.training_step(_batch(), batch_idx).detach()) for batch_idx in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_a_step_without_a_plan_is_refused(small_detector: Detector) -> None:
    module = _module(small_detector, _Recorder())
    module.plan = ()
    with pytest.raises(RuntimeError, match="SelfDistillation"):
        module.training_step(_batch(), 0)


def test_gradient_norm_is_logged_before_clipping(small_detector: Detector) -> None:
    module = _module(small_detector, _Recorder())
    logged: dict[str, Any] = {}
    module.log_dict = lambda values, **_: logged.update(values)
    optimizer = module.recipe.optimizer(small_detector)
    parameters = list(small_detector.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    norm = sum(parameter.numel() for parameter in parameters) ** 0.5
    module.configure_gradient_clipping(optimizer, 0.5)
    assert float(logged["train/gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert (logged["lr/backbone"], logged["lr/head"]) == (1e-4, 1e-3)
    clipped = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    assert float(clipped) == pytest.approx(0.5, rel=1e-4)
    module.configure_gradient_clipping(optimizer, None)
    assert float(logged["train/gradient_norm"]) == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(ValueError, match="only `norm`"):
        module.configure_gradient_clipping(optimizer, 0.5, "value")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "half"}, "allowed are mean, full, minimal"),
        ({"resize_mode": "bicubic"}, "allowed are bilinear and nearest"),
        ({"resize_mode": "nearest", "antialias": True}, "only mode bilinear"),
        ({"val_depths": ["ful"]}, "unknown stage 'ful'"),
    ],
)
def test_unknown_settings_are_refused(
    build_small: Callable[..., Detector], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _module(build_small(), _Recorder(), **settings)


def test_compilation_leaves_room_for_a_graph_per_depth(
    monkeypatch: pytest.MonkeyPatch, small_detector: Detector
) -> None:
    """By default torch.compile falls back to eager after 8 graphs, silently."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    module = _module(small_detector, _Recorder(), compile_forward=True)
    module.on_fit_start()
    module.training_step(_batch(), 0)
    assert compiled == [small_detector.stem_features, small_detector.forward]
    assert torch._dynamo.config.recompile_limit >= 2 ** len(small_detector.depth_space.stages)
