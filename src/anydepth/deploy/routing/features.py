"""Features of a pass for a router: pooled maps of backbone and neck, by group."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.deploy.runtime.engines.base import FEATURES
from anydepth.detector import Detector
from anydepth.structures import DetectorOutput

GROUPS: Final = tuple(FEATURES)
"""Parts of a detector whose maps are grouped."""


def pooled_maps(output: DetectorOutput, grid: int) -> dict[str, Tensor]:
    """Return the maps of a pass, averaged over a grid of cells.

    Args:
        output: Output of a detector.
        grid: Side G of the grid.

    Returns:
        [B, C, G, G] float32 for ``backbone`` and ``neck``: the channels of all their maps, finest map first.
    """
    maps = {"backbone": output.backbone_features, "neck": output.neck_features}
    return {name: _pool(maps[name], grid) for name in GROUPS}


def _pool(maps: tuple[Tensor, ...], grid: int) -> Tensor:
    """Pool as ``adaptive_avg_pool2d`` does, by products of matrices, which every engine has."""
    pooled = []
    for level in maps:
        rows, columns = (_cells(side, grid, level) for side in level.shape[2:])
        pooled.append(((level.float() @ columns).transpose(2, 3) @ rows).transpose(2, 3))
    return torch.cat(pooled, dim=1)


def _cells(side: int, grid: int, level: Tensor) -> Tensor:
    """Return [side, G]: the share of each row or column in the mean of each cell."""
    cells = torch.zeros(side, grid, device=level.device)
    for cell in range(grid):
        start, end = cell * side // grid, -(-(cell + 1) * side // grid)
        cells[start:end, cell] = 1 / (end - start)
    return cells


class FeatureTap:
    """Keeps the pooled maps of a detector's last pass, for a router that runs beside it.

    Detectors that are specialised are tapped as well. :meth:`close` takes the tap off again.

    Args:
        detector: A PyTorch detector in eval mode.
        grid: Side G of the grid that the router was trained with, :attr:`Router.grid`.

    Raises:
        ValueError: A detector in training mode, whose prediction runs on a copy that no hook sees.
    """

    def __init__(self, detector: Detector, grid: int = 2) -> None:
        if any(part.training for part in detector.modules()):
            raise ValueError("got a detector in training mode; call detector.eval() before it is tapped")
        self._grid = grid
        self._maps: dict[str, NDArray[np.float32]] = {}
        self._handle = detector.register_forward_hook(self._store)

    def __call__(self) -> Mapping[str, NDArray[np.float32]]:
        """Return the maps [C, G, G] of the first image of the last pass, by group; empty before a pass."""
        return self._maps

    def close(self) -> None:
        """Take the tap off the detector."""
        self._handle.remove()

    def _store(self, module: nn.Module, inputs: Any, output: DetectorOutput) -> None:
        if output.neck_features[0].is_meta:
            return  # A pass that only counts operations.
        maps = pooled_maps(output, self._grid)
        self._maps = {name: values[0].cpu().numpy() for name, values in maps.items()}
