"""MACs are counted from shapes alone; expected numbers are computed by hand from the layer definitions."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anydepth.layers.macs import count_forward, count_macs


def test_convolution_counts_kernel_times_channels_times_positions() -> None:
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    # 8 x 8 output positions, 6 output channels, 9 taps over 4 / 2 input channels, 2 images.
    assert count_macs(convolution, torch.empty(2, 4, 16, 16)) == 2 * 8 * 8 * 6 * 9 * 2


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}, (8, 12)),
        ({"padding": "same"}, (16, 20)),
        ({"padding": "valid", "groups": 2}, (14, 16)),
        ({"padding": 1, "padding_mode": "reflect"}, (16, 18)),
    ],
    ids=str,
)
def test_convolutions_of_any_form_count_and_keep_their_shape(
    settings: dict[str, Any], size: tuple[int, int]
) -> None:
    """Kernels of 3 x 5 on 16 x 20: (side + 2 padding - dilation (kernel - 1) - 1) // stride + 1 positions."""
    height, width = size
    convolution = nn.Conv2d(4, 6, (3, 5), **settings)
    taps = 3 * 5 * 4 // convolution.groups
    # The linear layer fits no other shape.
    module = nn.Sequential(convolution, nn.Flatten(), nn.Linear(6 * height * width, 2))
    expected = 2 * 6 * height * width * taps + 2 * 6 * height * width * 2
    assert count_macs(module, torch.empty(2, 4, 16, 20)) == expected
    # One image without the batch axis.
    assert count_macs(convolution, torch.empty(4, 16, 20)) == 6 * height * width * taps


def test_sums_of_other_shapes_and_types_are_left_to_torch() -> None:
    class Sums(nn.Module):
        def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
            wide: Tensor = 1 + (tokens + bias) + tokens.double()
            assert (wide.shape, wide.dtype) == ((2, 3, 5), torch.float64)
            return nn.functional.linear(wide.float(), weight=bias.view(1, 5))

    assert count_macs(Sums(), torch.empty(2, 3, 5), torch.empty(5)) == 2 * 3 * 5


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Linear(5, 7), (2, 4), "reduction dim"),
        (nn.Conv2d(4, 6, 3), (2, 3, 8, 8), "channel"),
        (nn.Conv2d(4, 6, 3), (2, 4, 2, 2), "[Kk]ernel size"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_as_torch_does(
    module: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        count_macs(module, torch.empty(shape))


def test_linear_layers_count_with_and_without_bias_and_for_any_leading_axes() -> None:
    for bias in (True, False):
        assert count_macs(nn.Linear(5, 7, bias=bias), torch.empty(2, 3, 5)) == 2 * 3 * 5 * 7


class _CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        attended: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return attended


@pytest.mark.parametrize("training", [True, False])
def test_attention_counts_four_projections_and_both_products(training: bool) -> None:
    # Eval mode matters: torch's fused inference kernel is invisible to the counter and must not be used.
    module = _CrossAttention().train(training)
    projections, products = 4 * 10 * 8 * 8, 2 * 10 * 10 * 8
    with torch.inference_mode():
        assert count_macs(module, torch.empty(1, 10, 8)) == projections + products
    assert (module.training, module.attention.training) == (training, training)


def test_scaled_dot_product_attention_counts_both_products() -> None:
    class Attention(nn.Module):
        def forward(self, query: Tensor, memory: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(query, memory, memory)

    query, memory = torch.empty(2, 4, 5, 8), torch.empty(2, 4, 11, 8)
    assert count_macs(Attention(), query, memory=memory) == 2 * (2 * 4 * 5 * 11 * 8)


def test_counting_changes_neither_weights_nor_statistics_nor_gradients_nor_the_random_state() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random_state = torch.get_rng_state()
    count_macs(module, torch.empty(2, 3, 4, 4))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].device.type == "cpu" for name in before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(part.training for part in module.modules())


def test_a_module_far_too_large_to_run_is_counted() -> None:
    with torch.device("meta"):
        huge = nn.Linear(1_000_000, 1_000_000, bias=False)
    assert count_macs(huge, torch.empty(1, 1_000_000, device="meta")) == 10**12


def test_a_parameter_that_two_modules_share_is_counted_in_both() -> None:
    first = nn.Linear(4, 4)
    second = nn.Linear(4, 4)
    second.weight = first.weight
    assert count_macs(nn.Sequential(first, second), torch.empty(1, 4)) == 2 * 16


class _TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(4, 4, bias=False)
        self.sometimes = nn.Linear(4, 4)

    def forward(self, tokens: Tensor, deep: bool) -> Tensor:
        tokens = self.always(tokens.to(self.sometimes.weight.dtype))
        return self.sometimes(tokens) if deep else tokens


def test_only_parameters_that_an_operation_reads_are_counted_as_run() -> None:
    module = _TwoBranches()
    assert count_forward(module, torch.empty(1, 4), deep=True).parameters == 16 + 20
    assert count_forward(module, torch.empty(1, 4), deep=False).parameters == 16


def test_weights_that_a_fused_module_uses_without_calling_the_child_count_as_run() -> None:
    module = _CrossAttention()
    assert count_forward(module, torch.empty(1, 10, 8)).parameters == sum(
        p.numel() for p in module.parameters()
    )


def test_the_macs_of_every_submodule_that_ran_are_listed() -> None:
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Sequential(nn.ReLU(), nn.Linear(6, 2, bias=False)))
    shares = count_forward(module, torch.empty(3, 4)).macs_by_module
    assert {name: macs for name, macs in shares.items() if macs} == {"0": 3 * 24, "1": 3 * 12, "1.1": 3 * 12}
    branches = count_forward(_TwoBranches(), torch.empty(1, 4), deep=False)
    assert dict(branches.macs_by_module) == {"always": 16}


def test_passes_of_other_threads_neither_see_the_count_nor_enter_it() -> None:
    """The count must not swap the tensors of the module, and counts what ran in its own copy alone."""
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    seen: list[tuple[str, bool]] = []

    class Watch(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            def other() -> None:
                seen.append((module[0].weight.device.type, module.training))
                module[0](torch.ones(3, 4))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return values

    found = count_forward(nn.Sequential(module, Watch()), torch.empty(1, 4))
    assert seen == [("cpu", True)]
    assert found.macs == 16
    assert found.macs_by_module == {"0": 16, "0.0": 16, "0.1": 0, "1": 0}
