"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each query samples a few points around its reference box on every level.

    Args:
        dim: Channels; a multiple of ``heads``.
        heads: Number of heads.
        levels: Number of feature levels.
        points: Sampled points per head and level.
    """

    def __init__(self, *, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is no multiple of heads={heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Head h starts looking in direction h of a circle, point p at distance p + 1."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * distances[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, queries: Tensor, reference_cxcywh: Tensor, memory: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Sample the memory around each query's box.

        Args:
            queries: [B, Q, C].
            reference_cxcywh: [B, Q, 4] float32, normalised.
            memory: [B, sum of H * W over levels, C].
            sizes: (H, W) of each level.

        Returns:
            [B, Q, C].
        """
        batch, count, _ = queries.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        values = self.value_proj(memory).unflatten(-1, (self.heads, -1))
        # Positions stay in float32 under autocast: half a cell at stride 8 is below bfloat16's resolution.
        offsets = self.sampling_offsets(queries).float().view(*shape, 2)
        weights = self.attention_weights(queries).view(*shape[:3], -1).softmax(dim=-1)
        reference = reference_cxcywh[:, :, None, None, None]
        locations = reference[..., :2] + offsets * (0.5 / self.points) * reference[..., 2:]
        sampled = self._sample(values, locations, sizes)
        heads_first = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, -1)
        attended = (sampled * heads_first).sum(dim=-1).view(batch, -1, count).transpose(1, 2)
        projected: Tensor = self.output_proj(attended)
        return projected

    def _sample(self, values: Tensor, locations: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Bilinear samples [B * heads, C / heads, Q, levels * points] at normalised locations."""
        grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
        samples = []
        levels = torch.split(values, [height * width for height, width in sizes], dim=1)
        for level, (value, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
            flat = value.permute(0, 2, 3, 1).flatten(0, 1).float()
            feature_map = flat.view(*flat.shape[:2], height, width)
            grid = grids[:, :, level]
            samples.append(F.grid_sample(feature_map, grid, padding_mode="zeros", align_corners=False))
        return torch.cat(samples, dim=-1)
