"""Parameter groups, learning-rate schedules and the checks of a recipe."""

import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from anydepth.detector import Detector
from anydepth.training.recipes import AdamWRecipe, NoDecay, SGDRecipe, parameter_groups


class _Net(nn.Module):
    """Norms that their names do not reveal, a frozen layer, and a stacked bias."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False))
        self.backbone[2].requires_grad_(False)
        self.attention = nn.MultiheadAttention(4, 2)
        self.last = nn.LayerNorm(4)


def _names(net: nn.Module, no_decay: NoDecay) -> dict[str, set[str]]:
    name_of = {id(parameter): name for name, parameter in net.named_parameters()}
    recipe = _recipe(lr=1.0, backbone_lr=0.1, weight_decay=0.5, no_decay=no_decay)
    groups = recipe.optimizer(net).param_groups
    for group in groups:
        assert group["lr"] == (0.1 if group["name"].startswith("backbone") else 1.0)
        assert group["weight_decay"] == (0.0 if group["name"].endswith("no_decay") else 0.5)
    return {group["name"]: {name_of[id(parameter)] for parameter in group["params"]} for group in groups}


def test_norms_and_biases_do_not_decay() -> None:
    assert _names(_Net(), "norm_and_bias") == {
        "backbone": {"backbone.0.weight"},
        "backbone_no_decay": {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias"},
        "head": {"attention.in_proj_weight", "attention.out_proj.weight"},
        "head_no_decay": {"attention.in_proj_bias", "attention.out_proj.bias", "last.weight", "last.bias"},
    }


def test_only_norms_do_not_decay() -> None:
    groups = _names(_Net(), "norm")
    assert groups["backbone_no_decay"] == {"backbone.1.weight", "backbone.1.bias"}
    assert groups["head_no_decay"] == {"last.weight", "last.bias"}


def test_everything_decays() -> None:
    groups = _names(_Net(), "none")
    assert groups.keys() == {"backbone", "head"}
    assert sum(map(len, groups.values())) == 10


def test_all_parameters_of_a_detector_are_trained_once(small_detector: Detector) -> None:
    groups = parameter_groups(small_detector, lr=1.0, backbone_lr=1.0, weight_decay=0.1, exempt=frozenset())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in small_detector.parameters() if p.requires_grad}


def test_what_only_shallower_depths_use_may_have_a_learning_rate_of_its_own(small_detector: Detector) -> None:
    name_of = {id(parameter): name for name, parameter in small_detector.named_parameters()}
    for own, parts in ((None, {"backbone", "head"}), (5.0, {"backbone", "head", "skip"})):
        groups = (
            _recipe(backbone_lr=0.1, weight_decay=0.5, skip_lr=own).optimizer(small_detector).param_groups
        )
        assert {group["name"].partition("_")[0] for group in groups} == parts
        names = [[name_of[id(parameter)] for parameter in group["params"]] for group in groups]
        assert sorted(chain(*names)) == sorted(name_of.values())
        for group, inside in zip(groups, names, strict=True):
            for name in inside:
                usual = 0.1 if name.startswith("backbone.") else 1.0
                assert group["lr"] == (usual if own is None or ".skip." not in name else own), name
                assert group["weight_decay"] in ((0.0,) if ".skip." in name else (0.0, 0.5))


def test_kernels_that_only_shallower_depths_use_are_of_that_group_and_decay() -> None:
    net = nn.Module()
    net.backbone, net.skip_conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False)
    net.block = nn.ModuleDict({"skip_conv": nn.Conv2d(4, 4, 1, bias=False)})
    groups = {g["name"]: g for g in _recipe(skip_lr=5.0, weight_decay=0.5).optimizer(net).param_groups}
    assert (groups["skip"]["lr"], groups["skip"]["weight_decay"]) == (5.0, 0.5)
    assert [id(one) for one in groups["skip"]["params"]] == [id(net.block["skip_conv"].weight)]


def test_a_detector_without_trainable_parameters_is_refused() -> None:
    net = _Net()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        _names(net, "none")
    with pytest.raises(ValueError, match="no `backbone`"):
        parameter_groups(nn.Linear(1, 1), lr=1, backbone_lr=1, weight_decay=0, exempt=frozenset())


def _recipe(**settings: object) -> AdamWRecipe:
    return AdamWRecipe(**{"lr": 1.0, "backbone_lr": 0.1, "weight_decay": 0.0, "epochs": 1, **settings})


def test_cosine_agrees_with_torch() -> None:
    """Reference: torch.optim.lr_scheduler.CosineAnnealingLR over 10 steps down to 5 %."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.05)
    recipe = _recipe(schedule="cosine", final_lr=0.05)
    for step in range(11):
        assert recipe.lr_factor(step, step / 10) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_warm_up_is_linear_and_ends() -> None:
    recipe = _recipe(warmup_steps=4)
    assert [recipe.lr_factor(step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_multistep_drops_at_shares_of_the_run() -> None:
    recipe = _recipe(schedule="multistep", milestones=[0.5, 0.9], gamma=0.1)
    factors = [recipe.lr_factor(0, progress) for progress in (0.0, 0.49, 0.5, 0.89, 0.9, 1.0)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_learning_rate_follows_steps_or_time_whichever_is_further() -> None:
    recipe = _recipe(schedule="cosine")
    time_progress = 0.0
    net = _Net()
    optimizer = recipe.optimizer(net)
    scheduler = recipe.scheduler(optimizer, total_steps=lambda: 4, time_progress=lambda: time_progress)
    rates = []
    for elapsed in (0.0, 0.0, 0.5, 0.9):
        time_progress = elapsed
        optimizer.step()
        scheduler.step()
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups}["head"])
    expected = [(1 + math.cos(math.pi * progress)) / 2 for progress in (0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * rates[-1])


def test_time_alone_limits_a_run_without_epochs() -> None:
    recipe = _recipe(schedule="cosine", epochs=None, minutes=5)
    scheduler = recipe.scheduler(
        recipe.optimizer(_Net()), total_steps=lambda: math.inf, time_progress=lambda: 0.5
    )
    assert scheduler.get_last_lr()[-1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"backbone_lr": -1.0},
        {"skip_lr": -1.0},
        {"weight_decay": -1.0},
        {"no_decay": "biases"},
        {"betas": [0.9, 1.0]},
        {"schedule": "square"},
        {"warmup_steps": -1},
        {"final_lr": 2.0},
        {"milestones": [0.9, 0.5]},
        {"gamma": 0.0},
        {"epochs": 0},
        {"minutes": 0.0},
        {"clip_norm": 0.0},
        {"ema_decay": 1.0},
        {"ema_warmup_steps": -1},
        {"validate_every_epochs": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_values_out_of_range_are_named(settings: dict[str, object]) -> None:
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"recipe\.{name}=.*allowed are"):
        _recipe(**settings)


def test_a_run_needs_an_end() -> None:
    with pytest.raises(ValueError, match="never end"):
        _recipe(epochs=None)


# -- SGD -------------------------------------------------------------------------------------------------


def _sgd(**settings: Any) -> SGDRecipe:
    defaults: dict[str, Any] = {"lr": 0.1, "backbone_lr": 0.1, "weight_decay": 0.5, "epochs": 1}
    return SGDRecipe(**{**defaults, **settings})


def test_sgd_has_three_groups_and_only_weights_decay() -> None:
    net = _Net()
    name_of = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = {group["name"]: group for group in _sgd().optimizer(net).param_groups}
    names = {name: {name_of[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert names == {
        "backbone": {"backbone.0.weight"},
        "backbone_no_decay": {"backbone.1.weight", "backbone.1.bias"},
        "backbone_bias": {"backbone.0.bias"},
        "head": {"attention.in_proj_weight", "attention.out_proj.weight"},
        "head_no_decay": {"last.weight", "last.bias"},
        "head_bias": {"attention.in_proj_bias", "attention.out_proj.bias"},
    }
    assert {name for name, group in groups.items() if group["weight_decay"]} == {"backbone", "head"}
    assert all(group["nesterov"] for group in groups.values())


def test_sgd_warms_up_rates_momentum_and_biases_and_then_decays() -> None:
    """Hand-computed: 4 warm-up steps of 8, linear decay to a tenth."""
    recipe = _sgd(
        warmup_steps=4,
        warmup_momentum=0.5,
        momentum=0.9,
        warmup_bias_lr=0.2,
        schedule="linear",
        final_lr=0.1,
    )
    optimizer = recipe.optimizer(_Net())
    scheduler = recipe.scheduler(optimizer, total_steps=lambda: 8, time_progress=lambda: 0.0)
    seen = []
    for _ in range(9):
        groups = {group["name"]: group for group in optimizer.param_groups}
        seen.append((groups["head"]["lr"], groups["head_bias"]["lr"], groups["head"]["momentum"]))
        optimizer.step()
        scheduler.step()
    decay = [1 - 0.9 * step / 8 for step in range(9)]
    done = [min(1.0, step / 4) for step in range(9)]
    assert [rate for rate, _, _ in seen] == pytest.approx(
        [0.1 * d * w for d, w in zip(decay, done, strict=True)]
    )
    assert [rate for _, rate, _ in seen] == pytest.approx(
        [0.2 + w * (0.1 * d - 0.2) for d, w in zip(decay, done, strict=True)]
    )
    assert [momentum for _, _, momentum in seen] == pytest.approx([0.5 + 0.4 * w for w in done])


def test_the_warm_up_continues_after_a_checkpoint() -> None:
    """Loaded groups replace those that the schedule was created for."""
    recipe = _sgd(warmup_steps=8, warmup_momentum=0.5, momentum=0.9)
    seen = []
    for interrupted in (False, True):
        optimizer = recipe.optimizer(_Net())
        scheduler = recipe.scheduler(optimizer, total_steps=lambda: 8, time_progress=lambda: 0.0)
        for step in range(6):
            if interrupted and step == 3:
                saved = optimizer.state_dict(), scheduler.state_dict()
                optimizer = recipe.optimizer(_Net())
                scheduler = recipe.scheduler(optimizer, total_steps=lambda: 8, time_progress=lambda: 0.0)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            optimizer.step()
            scheduler.step()
        seen.append([(group["momentum"], group["lr"]) for group in optimizer.param_groups])
    assert seen[0] == seen[1]
    assert seen[0][0][0] == pytest.approx(0.5 + 0.4 * 6 / 8)


def test_sgd_sums_gradients_over_the_nominal_batch() -> None:
    assert _sgd(nominal_batch=64).loss_scale == 64
    assert _recipe().loss_scale == 1


@pytest.mark.parametrize("name", ["momentum", "nominal_batch", "warmup_momentum", "warmup_bias_lr"])
def test_values_of_sgd_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"recipe\.{name}=-1.*allowed are"):
        _sgd(**{name: -1})
