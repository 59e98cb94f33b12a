"""RT-DETR's decoder: query selection, then as many box-refining layers as the depth has.

Zhao et al., "DETRs beat YOLOs on real-time object detection", CVPR 2024. Nothing here is switchable: norms
and heads are shared by all depths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anydepth.detr.output import DenoisingQueries
from anydepth.layers.attention import MultiHeadAttention
from anydepth.layers.conv import ConvNorm
from anydepth.layers.deformable import DeformableAttention
from anydepth.layers.mlp import MLP
from anydepth.layers.norm import batch_norm
from anydepth.layers.precision import disable_autocast

# Initial score of every class: the prior of focal loss (RetinaNet, Lin et al., ICCV 2017).
CLASS_PRIOR = 0.01
# Side of an anchor on the finest level, as a share of the image; it doubles per level. RT-DETR's value.
ANCHOR_SIZE = 0.05
# Least distance of an anchor's coordinates from 0 and 1: keeps logits within log 99 = 4.6. RT-DETR's value.
ANCHOR_MARGIN = 0.01
# Keeps the logits of boxes that touch the border finite; the value of Deformable DETR and its successors.
_LOGIT_EPSILON = 1e-5


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network; post-norm, ReLU."""

    def __init__(self, *, dim: int, heads: int, levels: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim=dim, heads=heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim=dim, heads=heads, levels=levels, points=points)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference_cxcywh: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        blocked: Tensor | None,
    ) -> Tensor:
        """Update queries [B, Q, C] at reference boxes [B, Q, 4] from memory [B, T, C] -> [B, Q, C]."""
        queries = self.norm1(queries + self.self_attn(queries, position, blocked))
        queries = self.norm2(queries + self.cross_attn(queries + position, reference_cxcywh, memory, sizes))
        normalised: Tensor = self.norm3(queries + self.linear2(F.relu(self.linear1(queries))))
        return normalised


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of the layers that ran, and of the encoder's selected tokens.

    Attributes:
        logits: [layers, B, D + Q, K] class logits; in eval mode those of the last layer only.
        boxes_cxcywh: [layers, B, D + Q, 4], normalised; in eval mode those of the last layer only.
        encoder_logits: [B, Q, K] class logits of the selected tokens.
        encoder_boxes: [B, Q, 4] boxes of the selected tokens, normalised cxcywh.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    encoder_logits: Tensor
    encoder_boxes: Tensor


class RTDETRDecoder(nn.Module):
    """Selects the best encoder tokens as queries and refines them layer by layer.

    Args:
        num_classes: Number of classes, K.
        in_channels: Channels of the neck's maps, finest first.
        dim: Channels inside the decoder.
        num_layers: Number of layers.
        num_queries: Number of queries, Q.
        heads: Number of attention heads.
        points: Points per head and level of the cross-attention.
        ffn_dim: Hidden size of the feed-forward networks.

    Raises:
        ValueError: No layer, no query or no class.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: Sequence[int],
        dim: int = 256,
        num_layers: int = 6,
        num_queries: int = 300,
        heads: int = 8,
        points: int = 4,
        ffn_dim: int = 1024,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_queries < 1 or num_classes < 1:
            raise ValueError(
                f"num_layers={num_layers}, num_queries={num_queries}, num_classes={num_classes}: "
                "allowed are 1 or more"
            )
        self.num_queries = num_queries
        self.dim = dim
        self.input_proj = nn.ModuleList(
            ConvNorm(in_channels=channels, out_channels=dim, kernel_size=1, norm=batch_norm(dim))
            for channels in in_channels
        )
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, heads=heads, levels=len(in_channels), points=points, ffn_dim=ffn_dim)
            for _ in range(num_layers)
        )
        self.query_pos_head = MLP(in_dim=4, hidden_dim=2 * dim, out_dim=dim, num_layers=2)
        projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(projection.weight)
        self.enc_output = nn.Sequential(projection, nn.LayerNorm(dim))
        self.enc_bbox_head = _box_head(dim)
        self.dec_bbox_head = nn.ModuleList(_box_head(dim) for _ in range(num_layers))
        for parameter in self.query_pos_head.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
        self.reset_classes(num_classes)

    def reset_classes(self, num_classes: int) -> None:
        """Replace every part whose shape depends on the number of classes by a freshly initialised one."""
        self.num_classes = num_classes
        self.denoising_class_embed = nn.Embedding(num_classes + 1, self.dim, padding_idx=num_classes)
        self.enc_score_head = _score_head(self.dim, num_classes)
        self.dec_score_head = nn.ModuleList(_score_head(self.dim, num_classes) for _ in self.layers)

    def forward(
        self, maps: Sequence[Tensor], num_layers: int, denoising: DenoisingQueries | None = None
    ) -> DecoderOutput:
        """Decode the neck's maps.

        Args:
            maps: [B, C, H, W] each, finest first.
            num_layers: Number of layers that run, from 1 to all.
            denoising: Noised ground truth that precedes the queries, in training.

        Raises:
            ValueError: The maps have fewer cells than there are queries.
        """
        sizes = [(features.shape[-2], features.shape[-1]) for features in maps]
        memory = torch.cat(  # [B, T, C] of the T cells of all levels
            [
                proj(features).flatten(2).transpose(1, 2)
                for proj, features in zip(self.input_proj, maps, strict=True)
            ],
            dim=1,
        )
        content, reference_logits, encoder_logits = self._select_queries(memory, sizes)
        encoder_boxes = reference_logits.sigmoid()  # [B, Q, 4]
        blocked = None
        if denoising is not None:
            embedded = self.denoising_class_embed(denoising.labels)  # [B, D, C]
            content = torch.cat([embedded.to(content.dtype), content], dim=1)  # [B, D + Q, C]
            reference_logits = torch.cat([denoising.boxes_logits, reference_logits], dim=1)  # [B, D + Q, 4]
            blocked = denoising.attention_mask
        elif self.training:
            # A batch without boxes still has to give every parameter a gradient, or other processes wait.
            content = content + 0 * self.denoising_class_embed.weight.sum()
        logits, boxes = self._refine(
            content, reference_logits.detach().sigmoid(), memory, sizes, blocked, num_layers
        )
        return DecoderOutput(logits, boxes, encoder_logits, encoder_boxes)

    def _select_queries(
        self, memory: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select the Q tokens with the best class score from memory [B, T, C].

        Returns:
            Content [B, Q, C] without gradients, box logits [B, Q, 4] and class logits [B, Q, K].
        """
        if memory.shape[1] < self.num_queries:
            raise ValueError(
                f"the feature maps {list(sizes)} have {memory.shape[1]} cells for {self.num_queries} "
                "queries; use larger images or a smaller num_queries"
            )
        anchors, valid = make_anchors(sizes, memory.device)  # [1, T, 4], [1, T, 1]
        tokens = self.enc_output(memory * valid.to(memory.dtype))  # [B, T, C]
        with disable_autocast(memory.device):
            tokens = tokens.float()
            scores = self.enc_score_head(tokens)  # [B, T, K]
            box_logits = self.enc_bbox_head(tokens) + anchors  # [B, T, 4]
        best = scores.amax(dim=-1).topk(self.num_queries, dim=1).indices[..., None]  # [B, Q, 1]
        content, selected_boxes, selected_scores = (  # [B, Q, C], [B, Q, 4], [B, Q, K]
            values.gather(1, best.expand(-1, -1, values.shape[-1])) for values in (tokens, box_logits, scores)
        )
        return content.detach(), selected_boxes, selected_scores

    def _refine(
        self,
        queries: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        blocked: Tensor | None,
        num_layers: int,
    ) -> tuple[Tensor, Tensor]:
        """Refine the boxes layer by layer; D is 0 without denoising queries.

        Args:
            queries: [B, D + Q, C].
            reference: [B, D + Q, 4] boxes to start from, normalised cxcywh.
            memory: [B, T, C].
            sizes: (H, W) of each level.
            blocked: [D + Q, D + Q] bool, the attention mask of the denoising queries.
            num_layers: Number of layers that run.

        Returns:
            Class logits [layers, B, D + Q, K] and boxes [layers, B, D + Q, 4] of all layers that ran, in eval
            mode of the last one only.
        """
        all_logits, all_boxes = [], []
        attached = reference  # [B, D + Q, 4] with the gradient of the previous layer
        for index in range(num_layers):
            position = self.query_pos_head(reference)  # [B, D + Q, C]
            queries = self.layers[index](queries, position, reference, memory, sizes, blocked)
            with disable_autocast(queries.device):
                hidden = queries.float()  # [B, D + Q, C]
                delta = self.dec_bbox_head[index](hidden)  # [B, D + Q, 4]
                boxes = (delta + inverse_sigmoid(reference)).sigmoid()  # [B, D + Q, 4]
                if self.training or index == num_layers - 1:
                    all_logits.append(self.dec_score_head[index](hidden))  # [B, D + Q, K]
                    # "Look forward twice" (DINO): a layer's loss also trains the box that the layer before it
                    # predicted, and no earlier one.
                    twice = (delta + inverse_sigmoid(attached)).sigmoid() if self.training else boxes
                    all_boxes.append(twice)  # [B, D + Q, 4]
            attached, reference = boxes, boxes.detach()
        return torch.stack(all_logits), torch.stack(all_boxes)


def inverse_sigmoid(probabilities: Tensor, epsilon: float = _LOGIT_EPSILON) -> Tensor:
    """Return the logits of probabilities, finite also at 0 and 1."""
    clamped = probabilities.clamp(min=0, max=1)
    return torch.log(clamped.clamp(min=epsilon) / (1 - clamped).clamp(min=epsilon))


def make_anchors(sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return one anchor box per cell of every level.

    Args:
        sizes: (H, W) of each level, finest first.
        device: Device of the result.

    Returns:
        Box logits [1, T, 4] float32 (infinite where invalid) and validity [1, T, 1] bool: anchors too near
        to the border have logits that are too large.
    """
    levels = []
    for level, (height, width) in enumerate(sizes):
        rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centre_y, centre_x = torch.meshgrid(rows, columns, indexing="ij")  # [H, W] each
        side = torch.full_like(centre_x, ANCHOR_SIZE * 2**level)  # [H, W]
        levels.append(torch.stack([centre_x, centre_y, side, side], dim=-1).flatten(0, 1))  # [H * W, 4]
    anchors = torch.cat(levels)[None]  # [1, T, 4]
    valid = ((anchors > ANCHOR_MARGIN) & (anchors < 1 - ANCHOR_MARGIN)).all(dim=-1, keepdim=True)
    return torch.log(anchors / (1 - anchors)).masked_fill(~valid, torch.inf), valid


def _box_head(dim: int) -> MLP:
    """Build a box head that initially predicts no change of the reference box."""
    head = MLP(in_dim=dim, hidden_dim=dim, out_dim=4, num_layers=3)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def _score_head(dim: int, num_classes: int) -> nn.Linear:
    """Build a score head that initially predicts every class with the prior probability."""
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
    return head
