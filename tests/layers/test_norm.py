"""Switchable norms: each state has its own set, and training one does not change the other."""

import pytest
import torch
from torch import nn

from anydepth.layers.norm import (
    SwitchableNorm,
    batch_norm,
    copy_full_norms_to_skip,
    layer_norm,
    switchable_norms,
)

FEATURES = torch.rand(4, 6, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_each_state_uses_and_updates_its_own_set() -> None:
    norm = batch_norm(6, switchable=True)
    with torch.no_grad():
        norm.skip.weight.fill_(2.0)
    skipping, refining = norm(FEATURES, False), norm(FEATURES, True)
    torch.testing.assert_close(skipping, 2 * refining)
    assert norm.full.num_batches_tracked == norm.skip.num_batches_tracked == 1
    norm(FEATURES, False)
    assert (norm.full.num_batches_tracked, norm.skip.num_batches_tracked) == (1, 2)


def test_a_norm_with_one_set_uses_it_in_both_states() -> None:
    norm = batch_norm(6).eval()
    assert norm.skip is None
    assert torch.equal(norm(FEATURES, True), norm(FEATURES, False))


def test_batch_norm_has_the_values_of_rtdetr() -> None:
    # Specification 1.6: eps 1e-5, momentum 0.1.
    norm = batch_norm(6)
    assert isinstance(norm.full, nn.BatchNorm2d)
    assert (norm.full.eps, norm.full.momentum) == (1e-5, 0.1)
    norm(FEATURES)
    torch.testing.assert_close(norm.full.running_mean, 0.1 * FEATURES.mean(dim=(0, 2, 3)))


def test_frozen_norms_have_no_parameters_and_never_change() -> None:
    norm = batch_norm(6, switchable=True, frozen=True).train()
    assert list(norm.parameters()) == []
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    assert len(before) == 2 * 4
    for refine in (True, False):
        torch.testing.assert_close(norm(FEATURES, refine), FEATURES, atol=1e-3, rtol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_frozen_norms_equal_batch_norm_in_eval_mode() -> None:
    live, frozen = batch_norm(6), batch_norm(6, frozen=True)
    live(FEATURES)
    live.full.weight.data.uniform_(0.5, 2)
    live.eval()
    frozen.load_state_dict({k: v for k, v in live.state_dict().items() if "num_batches" not in k})
    torch.testing.assert_close(frozen(FEATURES), live(FEATURES))


def test_layer_norm_normalises_the_last_axis() -> None:
    tokens = torch.rand(2, 3, 8)
    norm = layer_norm(8, switchable=True)
    torch.testing.assert_close(norm(tokens, True).mean(dim=-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    assert {id(norm.full), id(norm.skip)} == {id(part) for part in norm.children()}


def test_skip_sets_are_copies_of_full_sets_after_copying() -> None:
    module = nn.ModuleList([batch_norm(6, switchable=True), batch_norm(6), layer_norm(4, switchable=True)])
    for part in module:
        nn.init.uniform_(part.full.weight)
    module[0](FEATURES)
    assert copy_full_norms_to_skip(module) == 2
    assert [name for name, _ in switchable_norms(module)] == ["0", "2"]
    for _, norm in switchable_norms(module):
        for key, value in norm.full.state_dict().items():
            assert torch.equal(value, norm.skip.state_dict()[key])
            assert value.data_ptr() != norm.skip.state_dict()[key].data_ptr()


@pytest.mark.parametrize("refine", [True, False])
def test_any_norms_can_be_switched(refine: bool) -> None:
    norm = SwitchableNorm(full=nn.Identity(), skip=nn.Tanh())
    tokens = torch.rand(3)
    assert torch.equal(norm(tokens, refine), tokens if refine else tokens.tanh())
