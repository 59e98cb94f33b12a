"""When and how strongly a pass learns from its teacher, against values computed by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from steps import make_batch, make_module

from anydepth import zoo
from anydepth.detector import WHOLE_TEACHING, Objective, PassLosses, Teaching
from anydepth.train import run
from anydepth.training.callbacks.loss_shares import TermNorms, gradient_shares, term_norms
from anydepth.training.callbacks.self_distillation import SelfDistillation
from anydepth.training.depth_schedule import DepthSchedule
from anydepth.training.module import DetectionModule
from anydepth.training.non_finite.recorder import RecordedStep, pass_to_plain
from anydepth.training.step_context import StepPlace
from anydepth.training.teaching import TeachingControl
from losses import detr_losses, yolo_losses


def _observed(control: TeachingControl, *pairs: tuple[float, float]) -> TeachingControl:
    for step, (teacher, student) in enumerate(pairs):
        control.observe_losses("minimal", teacher, student, step)
    return control


def test_the_published_method_is_the_default() -> None:
    control = TeachingControl()
    assert control.teaching("minimal", 0) is WHOLE_TEACHING
    assert not control.is_active
    assert (WHOLE_TEACHING.strength, WHOLE_TEACHING.factor("features")) == (1.0, 1.0)


def test_a_ramp_grows_with_the_steps() -> None:
    control = TeachingControl(ramp_steps=4)
    strengths = [control.teaching("minimal", step).strength for step in (0, 1, 2, 4, 9)]
    assert strengths == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_a_gate_opens_once_the_teacher_is_better_on_average() -> None:
    control = TeachingControl(gate=True, gate_steps=4)
    found = []
    for step, (teacher, student) in enumerate([(5.0, 4.0), (3.0, 4.0), (3.0, 4.0), (9.0, 2.0)]):
        found.append(control.teaching("minimal", step).strength)
        control.observe_losses("minimal", teacher, student, step)
    # The averages of the steps before: none; 5/4; (5 * 3 + 3 * 4) / 16 against (4 * 3 + 4 * 4) / 16; ...
    assert found == [0.0, 0.0, 1.0, 1.0]
    assert control.teaching("minimal", 4).strength == 0.0
    assert control.teaching("random1", 4).strength == 0.0
    assert control.teaching("minimal", 4).compares


def test_moving_averages_are_those_of_whole_steps() -> None:
    control = _observed(TeachingControl(gate=True, gate_steps=2), (6.0, 1.0))
    # Two further micro-batches of the same step, and one that is not finite.
    control.observe_losses("minimal", 2.0, 3.0, 0)
    control.observe_losses("minimal", 1.0, 2.0, 0)
    control.observe_losses("minimal", float("nan"), 2.0, 0)
    assert control.losses("minimal") is None
    assert control.teaching("minimal", 1).strength == 0.0
    assert control.losses("minimal") == pytest.approx((3.0, 2.0))
    control.observe_losses("minimal", 1.0, 5.0, 1)
    control.teaching("minimal", 2)
    # Weights 1/4 and 1/2, divided by their sum.
    assert control.losses("minimal") == pytest.approx(((3 / 4 + 1 / 2) / 0.75, (2 / 4 + 5 / 2) / 0.75))


def test_factors_lead_to_the_wanted_shares_and_are_bounded() -> None:
    control = TeachingControl(shares={"predictions": 0.3, "features": 0.1})
    for _ in range(30):
        factors = control.teaching("minimal", 0).factors
        control.observe_norms({"predictions": 5 * factors["predictions"], "features": 0.02}, 2.0)
        # Its norm does not follow its factor, and so never has its share.
    predictions = 5 * control.teaching("minimal", 0).factors["predictions"]
    # Of predictions, features and the rest: 0.3, 0.1 and 0.6.
    assert predictions == pytest.approx(2.0 * 0.3 / 0.6, rel=1e-4)
    assert control.teaching("minimal", 0).factors["features"] == 100.0
    before = dict(control.teaching("minimal", 0).factors)
    for levels, others in (({"predictions": 0.0}, 1.0), ({"predictions": 1.0}, 0.0), ({}, float("nan"))):
        control.observe_norms(levels, others)
    assert control.teaching("minimal", 0).factors == before


def test_what_was_observed_survives_a_checkpoint() -> None:
    settings: dict[str, Any] = {"gate": True, "gate_steps": 3, "shares": {"features": 0.2}, "ramp_steps": 9}
    first = _observed(TeachingControl(**settings), (5.0, 7.0), (6.0, 7.0))
    first.observe_norms({"features": 0.1}, 1.0)
    second = TeachingControl(**settings)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in (1, 2, 3):
        assert second.teaching("minimal", step) == first.teaching("minimal", step)
        for control in (first, second):
            control.observe_losses("minimal", 4.0 + step, 6.0, step)
    assert second.losses("minimal") == first.losses("minimal")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ramp_steps": -1}, r"teaching\.ramp_steps=-1: allowed are 0 and above"),
        ({"gate_steps": 0}, r"teaching\.gate_steps=0: allowed are 1"),
        ({"measure_every": 0}, r"teaching\.measure_every=0"),
        ({"shares": {"features": 0.0}}, "allowed are shares above 0"),
        ({"shares": {"features": 0.6, "predictions": 0.4}}, "leave something to the ground truth"),
    ],
)
def test_values_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeachingControl(**settings)


# -- losses --------------------------------------------------------------------------------------------------


def _passes(family: str, teaching: Teaching, **changes: object) -> tuple[PassLosses, PassLosses, PassLosses]:
    """Losses of the teacher, of its student, and of the student against ground truth alone."""
    module = make_module(family)
    losses = detr_losses(**changes) if family == "detr" else yolo_losses(**changes)
    batch = make_batch((2, 3))
    detector, depths = module.detector.train(), [one.depth for one in module.plan]
    images = batch.images.float() / 255
    torch.manual_seed(1)
    outputs = [detector(images, depth, batch.targets) for depth in depths]
    teacher = losses.supervised(outputs[0], batch.targets)
    student = losses.distilled(outputs[1], outputs[0], batch.targets, teacher, teaching)
    return teacher, student, losses.supervised(outputs[1], batch.targets)


@pytest.mark.parametrize("family", ["detr", "yolo"])
def test_without_strength_a_student_learns_from_ground_truth_alone(family: str) -> None:
    _, student, alone = _passes(family, Teaching(strength=0.0))
    assert student.terms.keys() == alone.terms.keys()
    for name, term in alone.terms.items():
        torch.testing.assert_close(student.terms[name], term)


@pytest.mark.parametrize("family", ["detr", "yolo"])
def test_strength_moves_what_is_learnt_from_ground_truth_to_the_teacher(family: str) -> None:
    whole = _passes(family, WHOLE_TEACHING)[1].terms
    alone = _passes(family, Teaching(strength=0.0))[1].terms
    some = _passes(family, Teaching(strength=0.25, factors={"features": 3.0}))[1].terms
    assert some.keys() == whole.keys() | alone.keys()
    features = {"kd_backbone", "kd_neck", "kd_feature"}
    for name, term in some.items():
        factor = 3.0 if name in features else 1.0
        wanted = 0.25 * factor * whole.get(name, torch.zeros(())) + 0.75 * alone.get(name, torch.zeros(()))
        torch.testing.assert_close(term, wanted, msg=name)


@pytest.mark.parametrize("family", ["detr", "yolo"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_losses_that_a_gate_compares_are_those_of_ground_truth_alone(
    family: str, strength: float
) -> None:
    teacher, student, alone = _passes(family, Teaching(strength, compares=True))
    last = ("vfl", "l1", "giou") if family == "detr" else ("box", "class", "dfl")
    for found, wanted in ((teacher, teacher), (student, alone)):
        assert found.against_truth is not None
        expected = sum(float(wanted.terms[name]) for name in last)
        assert float(found.against_truth) == pytest.approx(expected, rel=1e-5)
        assert not found.against_truth.requires_grad
    if strength == 1.0:
        # Nothing else changes.
        whole = _passes(family, WHOLE_TEACHING)[1]
        assert student.terms.keys() == whole.terms.keys()


# -- training ------------------------------------------------------------------------------------------------


def _step(module: DetectionModule, callback: SelfDistillation, step: int) -> None:
    """Run a step; the observers keep the trainer of the first one."""
    trainer: Any = module._trainer
    trainer.global_step, trainer.current_epoch = step, 0
    if not module.observers:
        callback.on_fit_start(trainer, module)
    callback.on_train_batch_start(trainer, module, None, 0)
    module.training_step(make_batch((2, 3)), 0)


@pytest.mark.parametrize("family", ["detr", "yolo"])
def test_measured_shares_reach_what_was_asked(family: str) -> None:
    module = make_module(family)
    module.recipe = replace(module.recipe, multi_scale_sizes=())
    wanted = {"predictions": 0.25, "features": 0.05}
    control = TeachingControl(shares=wanted, measure_every=1)
    callback = SelfDistillation(schedule=DepthSchedule(depths=("full", "minimal")), seed=0, teaching=control)
    norms: TermNorms = {}
    for step in range(12):
        _step(module, callback, step)
    module.observers.append(lambda graph: norms.update(term_norms(module, graph)))
    _step(module, callback, 12)
    shares = gradient_shares(norms)
    for level, terms in module.objective.distilled_terms.items():
        own = sum(share for name, share in shares.items() if name.partition("/")[2] in terms)
        factor = control.teaching("minimal", 12).factors[level]
        assert own == pytest.approx(wanted[level], rel=0.1), factor


def _callback(**settings: Any) -> SelfDistillation:
    schedule = DepthSchedule(depths=settings.pop("depths", ("full", "minimal")))
    return SelfDistillation(schedule=schedule, seed=0, teaching=TeachingControl(**settings))


def test_settings_that_could_have_no_effect_are_refused() -> None:
    module: Any = make_module("detr")
    trainer: Any = SimpleNamespace()
    with pytest.raises(ValueError, match=r"in this run none does \(full from ground truth\)"):
        _callback(ramp_steps=5, depths=("full",)).on_fit_start(trainer, module)
    module.objective = zoo.build_losses("detr_none")
    with pytest.raises(ValueError, match=r"none does \(the losses have no term of distillation\): leave"):
        _callback(gate=True).on_fit_start(trainer, module)
    module.objective = detr_losses(distillation__backbone_weight=0, distillation__neck_weight=0)
    with pytest.raises(ValueError, match=r"teaching\.shares\.features: .* allowed here are predictions"):
        _callback(shares={"features": 0.1}).on_fit_start(trainer, module)

    class Foreign(Objective):
        distilled_levels = frozenset({"predictions"})

        def supervised(self, output: Any, targets: Any) -> PassLosses:
            raise NotImplementedError

        def distilled(self, student: Any, teacher: Any, targets: Any, teacher_losses: Any) -> PassLosses:  # type: ignore[override]
            raise NotImplementedError

    module.objective = Foreign()
    with pytest.raises(ValueError, match=r"Foreign\.distilled has no parameter `teaching`"):
        _callback(gate=True).on_fit_start(trainer, module)
    # As published, it trains.
    _callback().on_fit_start(trainer, module)


def test_a_recorded_step_is_taught_alike_when_it_is_replayed() -> None:
    module = make_module("yolo")
    space = module.detector.depth_space
    _step(module, _callback(ramp_steps=4, shares={"predictions": 0.5}), 1)
    (_, student) = module.plan
    assert student.teaching.strength == 0.25
    plain = tuple(json.loads(json.dumps(pass_to_plain(one))) for one in module.plan)
    place = StepPlace(seed=0, epoch=0, batch_idx=0, step=1)
    step = RecordedStep(batch=make_batch((1,)), place=place, plan=plain, terms={}, message="")
    assert step.planned_passes(space) == module.plan
    for one in plain:
        del one["teaching"]
    assert all(one.teaching == WHOLE_TEACHING for one in step.planned_passes(space))


def test_a_run_logs_how_it_was_taught(compose_run: Callable[..., DictConfig], tmp_path: Path) -> None:
    settings = ("teaching.ramp_steps=4", "teaching.gate=true", "teaching.shares.predictions=0.2")
    short = ("recipe.epochs=1", "trainer.limit_train_batches=3", "teaching.measure_every=1")
    metrics, _ = run(compose_run(tmp_path, *settings, *short, "trainer.log_every_n_steps=1"))
    assert 0 <= metrics["teaching/strength/minimal"] <= 0.5
    assert metrics["teaching/factor/predictions"] > 0
    assert metrics["teaching/loss/minimal/teacher"] > 0
