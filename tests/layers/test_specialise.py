"""Specialisation of any module: what stays, what goes, and that the original never notices."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from anydepth.layers.conv import ConvNorm
from anydepth.layers.fold import FoldedConv
from anydepth.layers.norm import SwitchableNorm, batch_norm
from anydepth.layers.specialise import NotRun, specialise

IMAGES = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(channels: int = 3, *, switchable: bool = True) -> ConvNorm:
    return ConvNorm(
        in_channels=channels,
        out_channels=3,
        kernel_size=3,
        norm=batch_norm(3, switchable=switchable),
        activation=nn.ReLU(),
    )


class Network(nn.Module):
    """Everything that specialisation tells apart: parts that run once, twice, with both flags, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv()
        self.other = conv()
        self.both = conv()
        self.again = self.first
        self.paths = nn.ModuleList([conv(), conv(switchable=False)])
        self.dropout = nn.Dropout(0.25)
        self.shape_only = nn.Parameter(torch.zeros(5))
        self.unused = nn.Parameter(torch.zeros(7))
        self.register_buffer("offset", torch.ones(1), persistent=False)

    def forward(self, images: Tensor, refine: bool) -> Tensor:
        features = self.again(self.first(images, refine), refine)
        features = self.both(self.both(features, True), False)
        if refine:
            features = self.other(features)
        for path in self.paths if refine else self.paths[:1]:
            features = path(features, refine)
        # Neither a call nor a calculation, but the network needs both.
        return features * self.dropout.p + len(self.shape_only) + self.offset


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    made = Network().eval()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 1.5)
            part.running_mean.normal_()
            part.bias.data.normal_()
    return made


@pytest.mark.parametrize("share_weights", [False, True])
@pytest.mark.parametrize("refine", [False, True])
def test_the_result_equals_the_original(network: Network, refine: bool, share_weights: bool) -> None:
    fast = specialise(network, IMAGES, refine=refine, share_weights=share_weights)
    torch.testing.assert_close(fast(IMAGES, refine), network(IMAGES, refine))


def test_what_does_not_run_is_gone_and_says_so(network: Network) -> None:
    skipping = specialise(network, IMAGES, False)
    assert isinstance(skipping.other, NotRun)
    assert isinstance(skipping.paths[1], NotRun)
    assert skipping.unused is None
    assert not list(skipping.other.parameters())
    with pytest.raises(RuntimeError, match="got a call of a ConvNorm that does not run at the depth"):
        skipping(IMAGES, True)
    refining = specialise(network, IMAGES, True)
    assert isinstance(refining.other, FoldedConv)
    assert not any(isinstance(part, NotRun) for part in refining.modules())


def test_what_is_only_looked_at_stays(network: Network) -> None:
    fast = specialise(network, IMAGES, False)
    assert fast.dropout.p == 0.25
    assert torch.equal(fast.shape_only, network.shape_only)


def test_a_part_that_runs_with_both_flags_keeps_both_norm_sets(network: Network) -> None:
    fast = specialise(network, IMAGES, True)
    assert isinstance(fast.both, ConvNorm)
    assert fast.both.norm.skip is not None


def test_kernels_to_share_keep_their_values_and_get_the_norm_of_the_flag(network: Network) -> None:
    for refine in (False, True):
        fast = specialise(network, IMAGES, refine, share_weights=True)
        assert isinstance(fast.first, ConvNorm)
        assert torch.equal(fast.first.conv.weight, network.first.conv.weight)
        chosen = network.first.norm.full if refine else network.first.norm.skip
        assert chosen is not None
        assert type(fast.first.norm.full) is nn.BatchNorm2d
        assert torch.equal(fast.first.norm.full.running_mean, chosen.running_mean)  # type: ignore[arg-type]
        assert fast.first.norm.skip is None
    # One norm set: folded, as without sharing.
    assert isinstance(fast.paths[1], FoldedConv)


def test_modules_and_tensors_that_were_one_stay_one(network: Network) -> None:
    tied = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    tied[1].weight = tied[0].weight

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = tied

        def forward(self, images: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](images))

    fast = specialise(Tied(), IMAGES)
    assert fast.layers[0].weight is fast.layers[1].weight
    fast = specialise(network, IMAGES, True)
    assert fast.first is fast.again


def test_the_original_is_not_changed_and_shares_nothing(network: Network) -> None:
    network.train()
    called: list[nn.Module] = []
    network.register_forward_hook(lambda module, *_: called.append(module))
    network.both.register_forward_pre_hook(lambda module, *_: called.append(module), with_kwargs=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors = dict(network.named_parameters())
    random_state = torch.get_rng_state()

    fast = specialise(network, IMAGES, True)
    fast.register_forward_hook(lambda module, *_: called.append(module))
    with torch.no_grad():
        for tensor in (*fast.parameters(), *fast.buffers()):
            tensor.zero_()
    fast.double()

    assert called == [], "hooks of the original belong to the original"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(part.training for part in network.modules())
    assert all(part.training is False for part in fast.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(tensors[name] is tensor for name, tensor in network.named_parameters())
    assert all(tensor.requires_grad for tensor in network.parameters())
    assert not any(tensor.requires_grad for tensor in fast.parameters())
    assert len(network._forward_hooks) == 1
    assert isinstance(network._forward_hooks, OrderedDict)


def test_a_lone_switchable_norm_keeps_the_set_of_its_flag() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = SwitchableNorm(full=nn.LayerNorm(8), skip=nn.LayerNorm(8))
            nn.init.constant_(self.norm.full.bias, 1.0)  # type: ignore[arg-type]
            nn.init.constant_(self.norm.skip.bias, 2.0)  # type: ignore[arg-type, union-attr]

        def forward(self, images: Tensor, refine: bool) -> Tensor:
            normalised: Tensor = self.norm(images, refine)
            return normalised

    fast = specialise(Normed(), IMAGES, False)
    assert [float(tensor[0]) for name, tensor in fast.named_parameters() if "bias" in name] == [2.0]
    torch.testing.assert_close(fast(IMAGES, False).mean().item(), 2.0)


def test_kernels_follow_the_layout_that_is_asked_for(network: Network) -> None:
    fast = specialise(network, IMAGES, True, memory_format=torch.channels_last)
    assert fast(IMAGES, True).is_contiguous(memory_format=torch.channels_last)
    assert specialise(network, IMAGES, True)(IMAGES, True).is_contiguous()
