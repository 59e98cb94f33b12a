"""Multi-head attention and the transformer layer of RT-DETR's hybrid encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.layers.norm import SwitchableNorm


class MultiHeadAttention(nn.Module):
    """Self-attention whose queries and keys carry a position and whose values do not (DETR).

    Uses ``scaled_dot_product_attention``; parameters are laid out as in ``torch.nn.MultiheadAttention``,
    which is not used because its fused inference kernel hides from operation counters and cannot project
    queries and keys together.

    Args:
        dim: Number of channels; a multiple of ``heads``.
        heads: Number of heads.

    Raises:
        ValueError: ``dim`` is not a multiple of ``heads``.
    """

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Attend between tokens.

        Args:
            tokens: [B, T, C].
            position: [B or 1, T, C], added to the tokens for queries and keys.
            blocked: [T, T] bool, true where a row must not attend to a column; None for no mask.

        Returns:
            [B, T, C].
        """
        dim = tokens.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        queries, keys = F.linear(tokens + position, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        values = F.linear(tokens, weight[2 * dim :], bias[2 * dim :])
        attended = F.scaled_dot_product_attention(
            self._split(queries),
            self._split(keys),
            self._split(values),
            attn_mask=None if blocked is None else ~blocked,
        )
        projected: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _split(self, tokens: Tensor) -> Tensor:
        """[B, T, C] -> [B, heads, T, C / heads]."""
        return tokens.view(*tokens.shape[:-1], self.heads, -1).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer with GELU (AIFI of RT-DETR, section 4.2).

    Args:
        dim: Number of channels.
        heads: Number of attention heads.
        ffn_dim: Hidden size of the feed-forward network.
        attention_norm: Norm after the attention.
        ffn_norm: Norm after the feed-forward network.
    """

    def __init__(
        self, *, dim: int, heads: int, ffn_dim: int, attention_norm: SwitchableNorm, ffn_norm: SwitchableNorm
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim=dim, heads=heads)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = attention_norm
        self.norm2 = ffn_norm

    def forward(self, tokens: Tensor, position: Tensor, refine: bool) -> Tensor:
        """[B, T, C] with position [1, T, C] -> [B, T, C]; ``refine`` selects the norm sets."""
        tokens = self.norm1(tokens + self.self_attn(tokens, position), refine)
        hidden = self.linear2(F.gelu(self.linear1(tokens)))
        normalised: Tensor = self.norm2(tokens + hidden, refine)
        return normalised


def sine_position_embedding(
    height: int, width: int, dim: int, *, temperature: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Return the fixed 2-D sine-cosine position of each cell, in row-major order.

    The first half of the channels encodes the row, the second half the column; each half is sines, then
    cosines. This is RT-DETR's embedding on square maps, and the one that keeps the meaning of released
    weights on other maps.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        dim: Number of channels; a multiple of 4, as rows and columns have sines and cosines each.
        temperature: Base of the wavelengths, that of the Transformer (Vaswani et al., NeurIPS 2017).
        device: Device of the result.

    Returns:
        [1, height * width, dim] float32.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim}: the position embedding needs a multiple of 4")
    # float64: at 10000^-1 the angles of far cells lose digits in float32.
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    rows = torch.arange(height, dtype=torch.float64, device=device)[:, None] * omega  # [H, C / 4]
    columns = torch.arange(width, dtype=torch.float64, device=device)[:, None] * omega  # [W, C / 4]
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)  # [H, W, C / 2]
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=2).reshape(1, height * width, dim).float()
