"""Multi-layer perceptron."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_dim: Size of the last axis of the input.
        hidden_dim: Size between the layers.
        out_dim: Size of the last axis of the output.
        num_layers: Number of linear layers, at least 1.

    Raises:
        ValueError: ``num_layers`` is below 1.
    """

    def __init__(self, *, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: allowed is 1 or more")
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, features: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        for layer in self.layers[:-1]:
            features = F.relu(layer(features))
        out: Tensor = self.layers[-1](features)
        return out
