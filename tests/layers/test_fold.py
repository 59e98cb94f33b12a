"""Norms folded into convolutions: the same function in fewer tensors, checked in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from anydepth.layers.fold import can_fold, fold, merge_branches, plain_norm
from anydepth.layers.sync_norm import HostSyncBatchNorm

# Rounding of float64, with room for sums of a hundred products.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8, eps=1e-3),
    "no affine": lambda: nn.BatchNorm2d(8, affine=False),
    "host sync": lambda: HostSyncBatchNorm(8),
    "frozen": lambda: FrozenBatchNorm2d(8),
}


def make_norm(kind: str) -> nn.Module:
    """Make a norm whose four tensors are all random: a fresh one is the identity and hides mistakes."""
    generator = torch.Generator().manual_seed(1)
    norm = NORMS[kind]().double().eval()
    for name in ("weight", "running_var", "bias", "running_mean"):
        tensor = getattr(norm, name)
        if tensor is not None:
            low = 0.5 if name in ("weight", "running_var") else -1.0
            tensor.data.uniform_(low, low + 1.5, generator=generator)
    return norm


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1, "bias": False},
        {"stride": 2, "groups": 4, "padding": "valid"},
        {"dilation": 2, "padding": (2, 1), "padding_mode": "reflect"},
    ],
)
def test_a_folded_convolution_equals_the_convolution_and_its_norm(
    kind: str, settings: dict[str, object], images: Tensor
) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 8, 3, **settings).double(), make_norm(kind)  # type: ignore[arg-type]
    torch.testing.assert_close(fold(conv, norm)(images), norm(conv(images)), **CLOSE)


@pytest.mark.parametrize("kind", NORMS)
def test_an_ordinary_norm_equals_the_norm_that_it_stands_for(kind: str, images: Tensor) -> None:
    features = torch.cat([images, images.flip(2)], dim=1)
    norm = make_norm(kind)
    assert type(plain_norm(norm)) is nn.BatchNorm2d
    torch.testing.assert_close(plain_norm(norm)(features), norm(features), **CLOSE)


def test_merged_branches_equal_their_sum(images: Tensor) -> None:
    torch.manual_seed(0)
    square, point = nn.Conv2d(4, 6, 3, padding=1).double(), nn.Conv2d(4, 6, 1).double()
    torch.testing.assert_close(merge_branches(square, point)(images), square(images) + point(images), **CLOSE)


def test_folding_draws_no_random_numbers() -> None:
    conv, norm = nn.Conv2d(4, 8, 3), make_norm("batch")
    before = torch.get_rng_state()
    fold(conv, norm)
    plain_norm(norm)
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_that_compute_something_else_are_not_folded() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
            return 2 * super().forward(input)

    class Adapted(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) + 1

    assert can_fold(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))
    assert not can_fold(nn.Conv2d(4, 8, 1), Doubled(8))
    assert not can_fold(Adapted(4, 8, 1), nn.BatchNorm2d(8))
    assert not can_fold(nn.Conv2d(4, 8, 1), nn.LayerNorm(8))
    # Its scale and shift come from each batch, also in eval mode.
    assert not can_fold(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(ValueError, match="got a LayerNorm"):
        fold(nn.Conv2d(4, 8, 1), nn.LayerNorm(8))
