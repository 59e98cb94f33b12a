"""Eval mode beside a module in training mode: same tensors, other modules, nothing switched."""

import pytest
import torch
from torch import nn

from anydepth.layers.mode import in_eval_mode


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(0.5)))


def test_the_copy_computes_what_eval_mode_computes_and_leaves_the_module_in_training_mode() -> None:
    network, images = _network(), torch.rand(2, 3, 5, 5)
    statistics = network[1].running_mean.clone()
    found = in_eval_mode(network)(images)
    assert all(part.training for part in network.modules())
    assert torch.equal(network[1].running_mean, statistics)
    assert torch.equal(found, network.eval()(images))


def test_modules_in_eval_mode_are_used_as_they_are() -> None:
    network = _network().eval()
    assert in_eval_mode(network) is network
    network[2][0].train()
    assert in_eval_mode(network) is not network


def test_tensors_stay_shared_when_the_module_gets_others() -> None:
    network = _network()
    copy = in_eval_mode(network)
    network.double()  # replaces every buffer
    network.load_state_dict({name: torch.ones_like(value) for name, value in network.state_dict().items()})
    assert copy[1].running_var is network[1].running_var
    assert copy[0].weight is network[0].weight
    assert copy[0].weight.dtype == torch.float64


def test_a_submodule_that_is_registered_twice_is_one_module_in_the_copy() -> None:
    shared = nn.Linear(2, 2)
    copy = in_eval_mode(nn.ModuleDict({"a": shared, "b": shared}))
    assert copy["a"] is copy["b"]
    assert copy["a"] is not shared


def test_compiled_parts_do_not_lead_back_to_the_module_in_training_mode() -> None:
    network, images = _network(), torch.rand(2, 3, 5, 5)
    statistics = network[1].running_mean.clone()
    wrapped = nn.Sequential(torch.compile(network, backend="eager"))
    wrapped.compile(backend="eager")
    found = in_eval_mode(wrapped)(images)
    assert torch.equal(network[1].running_mean, statistics), (
        "the statistics show that it ran in training mode"
    )
    assert torch.equal(found, network.eval()(images))


def test_a_forward_that_belongs_to_the_instance_is_taken_along_or_refused() -> None:
    network = _network()
    network[1].forward = network[1].forward  # a method, as wrappers leave it behind
    statistics = network[1].running_mean.clone()
    in_eval_mode(network)(torch.rand(2, 3, 5, 5))
    assert torch.equal(network[1].running_mean, statistics)
    former = network[1].forward
    network[1].forward = lambda features: former(features)
    with pytest.raises(
        ValueError, match=r"BatchNorm2d in training mode whose forward was replaced.*eval\(\)"
    ):
        in_eval_mode(network)
