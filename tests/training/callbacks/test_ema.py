"""Averaged weights: the recursion, its warm-up, accumulation, and which weights the detector holds when."""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from anydepth.detector import Detector, Objective
from anydepth.training.callbacks.ema import WeightAveraging
from anydepth.training.module import DetectionModule
from anydepth.training.recipes import AdamWRecipe
from losses import detr_losses


class _Fit:
    """One fit, hook by hook, without Lightning's loops."""

    def __init__(self, callback: WeightAveraging, detector: Detector) -> None:
        recipe = AdamWRecipe(lr=1.0, backbone_lr=1.0, weight_decay=0.0, epochs=1)
        objective: Objective = detr_losses()
        self.module = DetectionModule(
            detector=detector, objective=objective, recipe=recipe, evaluator=None, seed=0
        )
        self.callback = callback
        self.state = SimpleNamespace(global_step=0, state=SimpleNamespace(fn=TrainerFn.FITTING))
        self.trainer = cast(pl.Trainer, self.state)
        callback.on_fit_start(self.trainer, self.module)
        callback.on_train_start(self.trainer, self.module)

    def batch(self, *, ends_step: bool = True) -> None:
        """Change every weight, as an optimizer would."""
        self.state.global_step += ends_step
        with torch.no_grad():
            for value in self.module.detector.state_dict().values():
                value.add_(1) if not value.is_floating_point() else value.add_(torch.randn_like(value))
        self.callback.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def hook(self, name: str) -> None:
        getattr(self.callback, name)(self.trainer, self.module)

    def weights(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.module.detector.state_dict().items()}


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def test_decay_warms_up_as_published() -> None:
    """Spec 3.4: 0.9999 x (1 - exp(-t / 2000))."""
    callback = WeightAveraging(decay=0.9999, warmup_steps=2000)
    for updates in (1, 2000, 20000):
        assert callback.decay_at(updates) == pytest.approx(0.9999 * (1 - math.exp(-updates / 2000)))
    assert WeightAveraging(decay=0.9, warmup_steps=0).decay_at(1) == 0.9


def test_average_follows_the_recursion_and_copies_integers(small_detector: Detector) -> None:
    callback = WeightAveraging(decay=0.8, warmup_steps=3)
    fit = _Fit(callback, small_detector)
    expected = {key: value.double() for key, value in fit.weights().items()}
    for update in range(1, 5):
        fit.batch()
        decay = 0.8 * (1 - math.exp(-update / 3))
        for key, value in fit.weights().items():
            mixed = decay * expected[key] + (1 - decay) * value.double()
            expected[key] = mixed if value.is_floating_point() else value.double()
    fit.hook("on_validation_start")
    for key, value in fit.weights().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-5)


def test_one_update_per_optimizer_step(small_detector: Detector) -> None:
    callback = WeightAveraging()
    fit = _Fit(callback, small_detector)
    for ends_step in (False, False, True, False, True):
        fit.batch(ends_step=ends_step)
    assert callback.updates == 2


def test_validation_sees_the_average_and_training_continues_with_its_own_weights(
    small_detector: Detector,
) -> None:
    fit = _Fit(WeightAveraging(), small_detector)
    start = fit.weights()
    fit.batch()
    training = fit.weights()
    fit.hook("on_validation_start")
    validated = fit.weights()
    fit.hook("on_validation_end")
    assert _equal(fit.weights(), training)
    assert not _equal(validated, training)
    assert not _equal(validated, start)


def test_after_a_fit_the_detector_holds_the_average_until_the_next_fit(small_detector: Detector) -> None:
    fit = _Fit(WeightAveraging(), small_detector)
    fit.batch()
    training = fit.weights()
    fit.hook("on_train_end")
    averaged = fit.weights()
    assert not _equal(averaged, training)
    # Outside a fit nothing is swapped: loaded weights are validated as they are.
    fit.state.state.fn = TrainerFn.VALIDATING
    fit.hook("on_validation_start")
    assert _equal(fit.weights(), averaged)
    fit.hook("on_validation_end")
    assert _equal(fit.weights(), averaged)
    fit.hook("on_fit_start")
    assert _equal(fit.weights(), training)


@pytest.mark.parametrize("ended", [False, True])
def test_a_fit_resumes_from_a_checkpoint_with_both_sets(
    build_small: Callable[..., Detector], ended: bool
) -> None:
    """Also from a checkpoint that was written when the detector already held the average."""
    fit = _Fit(WeightAveraging(), build_small())
    fit.batch()
    training = fit.weights()
    if ended:
        fit.hook("on_train_end")
    checkpoint: dict[str, Any] = {"state_dict": fit.module.state_dict()}
    fit.callback.on_save_checkpoint(fit.trainer, fit.module, checkpoint)
    checkpoint = copy.deepcopy(checkpoint)  # as a file would be
    fit.hook("on_validation_start")
    averaged = fit.weights()

    resumed = _Fit(WeightAveraging(), build_small(seed=1))
    resumed.module.load_state_dict(checkpoint["state_dict"])
    assert _equal(resumed.weights(), averaged)
    resumed.callback.on_load_checkpoint(resumed.trainer, resumed.module, checkpoint)
    resumed.callback.load_state_dict(fit.callback.state_dict())
    resumed.hook("on_fit_start")
    assert _equal(resumed.weights(), training)
    assert resumed.callback.updates == 1
    resumed.hook("on_validation_start")
    assert _equal(resumed.weights(), averaged)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"warmup_steps": -1}])
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        WeightAveraging(**settings)
