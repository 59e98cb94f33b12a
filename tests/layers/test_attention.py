"""Attention against torch's own layers and against explicit sums."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.layers.attention import EncoderLayer, MultiHeadAttention, sine_position_embedding
from anydepth.layers.conv import ConvNorm
from anydepth.layers.deformable import DeformableAttention
from anydepth.layers.mlp import MLP
from anydepth.layers.norm import batch_norm, layer_norm
from anydepth.layers.precision import disable_autocast

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR)


@pytest.fixture(params=[False, True], ids=["open", "masked"])
def blocked(request: pytest.FixtureRequest) -> Tensor | None:
    return torch.triu(torch.ones(7, 7, dtype=torch.bool), diagonal=1) if request.param else None


def test_self_attention_equals_torch_with_positions_on_queries_and_keys(blocked: Tensor | None) -> None:
    ours = MultiHeadAttention(dim=12, heads=3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    tokens, position = rand(2, 7, 12), rand(1, 7, 12)
    wanted, _ = theirs(tokens + position, tokens + position, tokens, attn_mask=blocked, need_weights=False)
    torch.testing.assert_close(ours(tokens, position, blocked), wanted)


def test_encoder_layer_equals_torch_without_positions() -> None:
    # Post-norm with GELU; torch's layer adds no position, so it is zero here.
    layer = EncoderLayer(dim=12, heads=3, ffn_dim=20, attention_norm=layer_norm(12), ffn_norm=layer_norm(12))
    theirs = nn.TransformerEncoderLayer(12, 3, 20, dropout=0, activation="gelu", batch_first=True)
    theirs.load_state_dict({key.replace(".full.", "."): value for key, value in layer.state_dict().items()})
    tokens = rand(2, 7, 12)
    torch.testing.assert_close(layer(tokens, torch.zeros(1, 7, 12), True), theirs(tokens))


def test_encoder_layer_switches_both_norms_together() -> None:
    norms = [layer_norm(12, switchable=True) for _ in range(2)]
    layer = EncoderLayer(dim=12, heads=3, ffn_dim=20, attention_norm=norms[0], ffn_norm=norms[1])
    nn.init.constant_(norms[1].skip.bias, 5.0)
    tokens, position = rand(1, 4, 12), rand(1, 4, 12)
    torch.testing.assert_close(layer(tokens, position, False), layer(tokens, position, True) + 5)
    nn.init.constant_(norms[0].skip.bias, 1.0)
    difference = layer(tokens, position, False) - layer(tokens, position, True) - 5
    assert difference.abs().max() > 0.01


def test_position_embedding_encodes_the_row_first_and_the_column_second() -> None:
    embedding = sine_position_embedding(3, 5, 8)
    assert embedding.shape == (1, 15, 8)
    cells = embedding.view(3, 5, 8)
    # omega = 10000^(-k / 2) for k = 0, 1: sines, then cosines.
    for row in range(3):
        for column in range(5):
            angles = torch.tensor([row, row / 100, column, column / 100])
            wanted = torch.cat([angles[:2].sin(), angles[:2].cos(), angles[2:].sin(), angles[2:].cos()])
            torch.testing.assert_close(cells[row, column], wanted)
    with pytest.raises(ValueError, match=r"dim=6.*multiple of 4"):
        sine_position_embedding(3, 5, 6)


def sampled(feature_map: Tensor, x: float, y: float) -> Tensor:
    """Sample [C] bilinearly from [C, H, W] at normalised x, y; zero outside; centres at (i + 0.5) / size."""
    channels, height, width = feature_map.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(channels)
    for r in (int(row // 1), int(row // 1) + 1):
        for c in (int(column // 1), int(column // 1) + 1):
            if 0 <= r < height and 0 <= c < width:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * feature_map[:, r, c]
    return total


def test_deformable_attention_equals_the_explicit_sum() -> None:
    dim, heads, points, sizes = 8, 2, 3, [(4, 6), (2, 3)]
    layer = DeformableAttention(dim=dim, heads=heads, levels=2, points=points)
    nn.init.normal_(layer.sampling_offsets.weight, generator=GENERATOR)
    nn.init.normal_(layer.attention_weights.weight, generator=GENERATOR)
    queries, memory = rand(1, 2, dim), rand(1, 4 * 6 + 2 * 3, dim)
    reference = torch.tensor([[[0.5, 0.4, 0.3, 0.6], [0.05, 0.9, 0.4, 0.3]]])
    values = layer.value_proj(memory)[0]
    levels = [values[:24].T.reshape(dim, 4, 6), values[24:].T.reshape(dim, 2, 3)]
    offsets = layer.sampling_offsets(queries)[0].view(2, heads, 2, points, 2)
    weights = (
        layer.attention_weights(queries)[0].view(2, heads, 2 * points).softmax(-1).view(2, heads, 2, points)
    )
    gathered = torch.zeros(2, dim)
    for query in range(2):
        centre_x, centre_y, width, height = reference[0, query].tolist()
        for head in range(heads):
            channels = slice(head * 4, head * 4 + 4)
            for level in range(2):
                for point in range(points):
                    dx, dy = offsets[query, head, level, point].tolist()
                    # Specification 1.4: offset / points * size * 0.5.
                    x = centre_x + dx / points * width * 0.5
                    y = centre_y + dy / points * height * 0.5
                    sample = sampled(levels[level][channels].detach(), x, y)
                    gathered[query, channels] += weights[query, head, level, point].detach() * sample
    wanted = layer.output_proj(gathered)
    torch.testing.assert_close(layer(queries, reference, memory, sizes)[0], wanted, atol=1e-5, rtol=1e-4)


def test_sampling_starts_in_a_star_of_directions() -> None:
    layer = DeformableAttention(dim=8, heads=4, levels=2, points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    # Heads look right, down, left and up; points lie 1, 2 and 3 steps away, on every level.
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    wanted = directions[:, None, None] * torch.tensor([1.0, 2, 3])[None, None, :, None]
    torch.testing.assert_close(offsets, wanted.expand(4, 2, 3, 2), atol=1e-6, rtol=0)
    assert not layer.sampling_offsets.weight.any()
    assert not layer.attention_weights.weight.any()


@pytest.mark.parametrize(
    "make", [MultiHeadAttention, lambda **k: DeformableAttention(**k, levels=1, points=1)]
)
def test_channels_must_be_a_multiple_of_the_heads(make: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="dim=10 is not a multiple of heads=4"):
        make(dim=10, heads=4)


def test_positions_of_samples_stay_in_float32_under_autocast() -> None:
    layer = DeformableAttention(dim=8, heads=2, levels=1, points=2)
    memory = torch.arange(64.0).view(1, 64, 1).expand(-1, -1, 8).contiguous()
    nn.init.eye_(layer.value_proj.weight)
    nn.init.eye_(layer.output_proj.weight)
    nn.init.zeros_(layer.sampling_offsets.bias)
    # In bfloat16 this x would be 0.71875, three quarters of a cell away at a width of 64.
    reference = torch.tensor([[[0.7168, 0.5, 0.1, 0.1]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(rand(1, 1, 8), reference, memory, [(1, 64)])
    # 0.7168 * 64 - 0.5; bfloat16 values of that size are 0.25 apart.
    assert found.float().mean().item() == pytest.approx(45.375, abs=0.2)


def test_mlp_has_relu_between_its_layers_only() -> None:
    mlp = MLP(in_dim=4, hidden_dim=6, out_dim=3, num_layers=3)
    tokens = rand(2, 5, 4) - 0.5
    hidden = mlp.layers[1](mlp.layers[0](tokens).relu()).relu()
    torch.testing.assert_close(mlp(tokens), mlp.layers[2](hidden))
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(6, 4), (6, 6), (3, 6)]
    with pytest.raises(ValueError, match="num_layers=0"):
        MLP(in_dim=4, hidden_dim=6, out_dim=3, num_layers=0)


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_convolution_preserves_the_map_except_for_its_stride(kernel_size: int, stride: int) -> None:
    conv = ConvNorm(
        in_channels=3,
        out_channels=4,
        kernel_size=kernel_size,
        stride=stride,
        norm=batch_norm(4, switchable=True),
        activation=nn.ReLU(),
    )
    images = rand(2, 3, 9, 12)
    found = conv(images, False)
    assert found.shape == (2, 4, -(-9 // stride), 12 // stride)
    assert conv.conv.bias is None
    plain = F.conv2d(images, conv.conv.weight, stride=stride, padding=kernel_size // 2)
    mean, variance = (
        plain.mean(dim=(0, 2, 3), keepdim=True),
        plain.var(dim=(0, 2, 3), keepdim=True, correction=0),
    )
    torch.testing.assert_close(
        found, ((plain - mean) / (variance + 1e-5).sqrt()).relu(), atol=1e-5, rtol=1e-4
    )
    assert conv.norm.full.num_batches_tracked == 0


def test_float32_blocks_hold_inside_autocast() -> None:
    linear, tokens = nn.Linear(4, 4), rand(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(tokens).dtype == torch.bfloat16
        with disable_autocast(tokens.device):
            assert linear(tokens).dtype == torch.float32
        with disable_autocast(torch.device("meta")):
            pass
