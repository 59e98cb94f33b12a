"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each query samples a few points around its reference box on every level.

    Args:
        dim: Number of channels; a multiple of ``heads``.
        heads: Number of heads.
        levels: Number of feature levels, L.
        points: Number of sampled points per head and level.

    Raises:
        ValueError: ``dim`` is not a multiple of ``heads``.
    """

    def __init__(self, *, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Initialise head h to look in direction h of a circle, and its point p at distance p + 1."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)  # [heads]
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)  # [heads, 2]
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)  # [points]
        offsets = directions[:, None, None, :] * distances[None, None, :, None]  # [heads, 1, points, 2]
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
            memory: [B, T, C], the T cells of all levels, finest level first and row by row.
            sizes: (H, W) of each level.

        Returns:
            [B, Q, C].
        """
        batch, count, _ = queries.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        # In the shapes below, h counts heads and p points.
        values = self.value_proj(memory).unflatten(-1, (self.heads, -1))  # [B, T, h, C / h]
        # Positions stay in float32 under autocast: half a cell at stride 8 is below bfloat16's resolution.
        offsets = self.sampling_offsets(queries).float().view(*shape, 2)  # [B, Q, h, L, p, 2]
        weights = self.attention_weights(queries).view(*shape[:3], -1).softmax(dim=-1)  # [B, Q, h, L * p]
        reference = reference_cxcywh[:, :, None, None, None]  # [B, Q, 1, 1, 1, 4]
        # 0.5 / points: the farthest initial offset, of length ``points``, ends on the border of the box.
        moved = offsets * (0.5 / self.points) * reference[..., 2:]  # [B, Q, h, L, p, 2]
        sampled = self._sample(values, reference[..., :2] + moved, sizes)  # [B * h, C / h, Q, L * p]
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, -1)  # [B * h, 1, Q, L * p]
        attended = (sampled * weights).sum(dim=-1).view(batch, -1, count).transpose(1, 2)  # [B, Q, C]
        projected: Tensor = self.output_proj(attended)  # [B, Q, C]
        return projected

    def _sample(self, values: Tensor, locations: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Sample bilinearly at normalised locations.

        Args:
            values: [B, T, h, C / h] of the T cells of all levels.
            locations: [B, Q, h, L, p, 2] as (x, y).
            sizes: (H, W) of each level.

        Returns:
            [B * h, C / h, Q, L * p] float32; 0 outside the map.
        """
        grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B * h, Q, L, p, 2]
        samples = []  # [B * h, C / h, Q, p] each
        levels = torch.split(values, [height * width for height, width in sizes], dim=1)
        for level, (value, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
            flat = value.permute(0, 2, 3, 1).flatten(0, 1).float()  # [B * h, C / h, H * W]
            feature_map = flat.view(*flat.shape[:2], height, width)  # [B * h, C / h, H, W]
            grid = grids[:, :, level]  # [B * h, Q, p, 2]
            samples.append(F.grid_sample(feature_map, grid, padding_mode="zeros", align_corners=False))
        return torch.cat(samples, dim=-1)
