"""The stage: essential blocks always run and receive the flag, refinement blocks run on demand."""

import pytest
import torch
from torch import Tensor, nn

from anydepth.layers.stage import DepthStage


class _Essential(nn.Module):
    def forward(self, features: Tensor, refine: bool) -> Tensor:
        return features * 2 + int(refine)


class _Refinement(nn.Module):
    def forward(self, features: Tensor, refine: bool) -> Tensor:
        assert refine
        return features * 10


def test_refinement_follows_the_essential_path() -> None:
    stage = DepthStage(essential=[_Essential(), _Essential()], refinement=[_Refinement()])
    one = torch.ones(1)
    # Refining: ((1 * 2 + 1) * 2 + 1) * 10; skipping: 1 * 2 * 2.
    assert stage(one, True) == 70
    assert stage(one, False) == 4


def test_a_stage_without_refinement_only_passes_the_flag_on() -> None:
    stage = DepthStage(essential=[_Essential()])
    assert (stage(torch.ones(1), True), stage(torch.ones(1), False)) == (3, 2)


def test_a_stage_without_an_essential_block_is_refused() -> None:
    with pytest.raises(ValueError, match="got a stage of 1 refinement blocks and no essential block"):
        DepthStage(essential=[], refinement=[_Refinement()])
