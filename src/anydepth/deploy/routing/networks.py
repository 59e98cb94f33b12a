"""The networks of a router: TinyConv and GAP-MLP on pooled maps, a perceptron on statistics.

Source: Kang et al. (2026), "Dynamic Depth Routing for Budget-Adaptive Object Detection in ADAS", whose
TinyConv for the maps of AnyDepth-YOLO-S has 112,017 parameters.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.deploy.runtime.control.router import Kind

_WIDTH = 64
_PATH_WIDTH = 8


class RouterNetwork(nn.Module):
    """Regresses the advantage of full depth from features and the path that produced them.

    Args:
        kind: See :class:`anydepth.deploy.runtime.control.router.Router`.
        channels: Channels of each group of maps; of ``statistics``: their number.
        hidden: Width of the hidden layer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, kind: Kind, channels: Mapping[str, int], hidden: int = 128) -> None:
        super().__init__()
        self.kind = kind
        self.groups = tuple(channels)
        self.branches = nn.ModuleDict()
        if kind == "tiny_conv":
            self.branches.update({name: _branch(count) for name, count in channels.items()})
            width = _WIDTH * len(channels)
        else:
            width = sum(channels.values())
        # Of the training samples; convolutional branches begin with a norm instead.
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.path = nn.Embedding(2, _PATH_WIDTH)
        self.hidden = nn.Linear(width + _PATH_WIDTH, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, inputs: Mapping[str, Tensor], path: Tensor) -> Tensor:
        """Return the advantages [B].

        Args:
            inputs: ``statistics`` [B, 12], or pooled maps [B, C, G, G] by group.
            path: [B] int64, index of the end that produced them.
        """
        if self.kind == "tiny_conv":
            features = torch.cat([self.branches[name](inputs[name]) for name in self.groups], 1)
        else:
            features = (self.vector(inputs) - self.mean) / self.deviation
        hidden = torch.relu(self.hidden(torch.cat([features, self.path(path)], 1)))
        advantages: Tensor = self.last(hidden)[:, 0]
        return advantages

    def vector(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what a perceptron sees, [B, D]: statistics, or the means of the maps."""
        values = [inputs[name] for name in self.groups]
        return torch.cat([value.mean((2, 3)) if value.ndim == 4 else value for value in values], 1)

    def standardise(self, vectors: Tensor) -> None:
        """Take mean and deviation of the training samples [N, D]; a constant is left as it is."""
        deviation, mean = torch.std_mean(vectors, 0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights as :class:`anydepth.deploy.runtime.control.router.Router` takes them."""
        found = {
            "path": self.path.weight,
            "hidden.weight": self.hidden.weight,
            "hidden.bias": self.hidden.bias,
            "last.weight": self.last.weight,
            "last.bias": self.last.bias,
        }
        for name, branch in self.branches.items():
            assert isinstance(branch, nn.Sequential)
            found |= {f"{name}.{key}": value for key, value in _branch_arrays(branch).items()}
        if not self.branches:
            found |= {"mean": self.mean, "deviation": self.deviation}
        return {name: value.detach().cpu().float().numpy() for name, value in found.items()}


def _branch(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, _WIDTH, 1),
        nn.ReLU(),
        nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, groups=_WIDTH),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _branch_arrays(branch: nn.Sequential) -> dict[str, Tensor]:
    norm, reduce, _, depthwise, *_ = branch
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(reduce, nn.Conv2d)
    assert isinstance(depthwise, nn.Conv2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert reduce.bias is not None
    assert depthwise.bias is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return {
        "scale": scale,
        "shift": norm.bias - norm.running_mean * scale,
        "reduce": reduce.weight[:, :, 0, 0],
        "reduce_bias": reduce.bias,
        "depthwise": depthwise.weight[:, 0],
        "depthwise_bias": depthwise.bias,
    }
