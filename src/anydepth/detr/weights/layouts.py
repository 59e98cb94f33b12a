"""Names that other projects give to the weights of an RT-DETR: one table of rules per layout.

Rules translate our names into theirs, never the other way round, so that one table serves reading and
writing. They start from plain names, see :func:`~anydepth.weights.plan.plain_names`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from anydepth.detr.backbones.base import BackboneKind
from anydepth.detr.backbones.table import BACKBONES, all_backbones
from anydepth.weights.plan import Layout, Rule

# -- backbones -------------------------------------------------------------------------------------------

_BLOCK = r"^backbone\.stages\.(\d)\.(\d+)\.conv(\d)\.(conv|norm)"
_SHORTCUT = r"^backbone\.stages\.(\d)\.0\.shortcut\.project\.(conv|norm)"
_STEM = r"^backbone\.stem\.(\d)\.(conv|norm)"
_PARTS = {"conv": "convolution", "norm": "normalization"}

_PRESNET: tuple[Rule, ...] = (
    (_STEM, lambda m: f"backbone.conv1.conv1_{int(m[1]) + 1}.{m[2]}"),
    (_BLOCK, lambda m: f"backbone.res_layers.{m[1]}.blocks.{m[2]}.branch2{'abc'[int(m[3]) - 1]}.{m[4]}"),
    (
        _SHORTCUT,
        lambda m: f"backbone.res_layers.{m[1]}.blocks.0.short{'.conv' if m[1] != '0' else ''}.{m[2]}",
    ),
)

_HF = "model.backbone.model."
_HF_RESNET: tuple[Rule, ...] = (
    (_STEM, lambda m: f"{_HF}embedder.embedder.{m[1]}.{_PARTS[m[2]]}"),
    (_BLOCK, lambda m: f"{_HF}encoder.stages.{m[1]}.layers.{m[2]}.layer.{int(m[3]) - 1}.{_PARTS[m[4]]}"),
    (
        _SHORTCUT,
        lambda m: f"{_HF}encoder.stages.{m[1]}.layers.0.shortcut{'.1' if m[1] != '0' else ''}.{_PARTS[m[2]]}",
    ),
)


def _plain_resnet(pooled_shortcut: bool) -> tuple[Rule, ...]:
    """Return rules for torchvision's names; a pool in the shortcuts of stages 2 to 4 shifts their indices."""

    def shortcut(match: re.Match[str]) -> str:
        index = (match[2] == "norm") + (pooled_shortcut and match[1] != "0")
        return f"backbone.layer{int(match[1]) + 1}.0.downsample.{int(index)}"

    return (
        (r"^backbone\.stem\.0\.conv\b", "backbone.conv1"),
        (r"^backbone\.stem\.0\.norm\b", "backbone.bn1"),
        # torchvision has the 7x7 stem only: a deep stem has no counterpart.
        (r"^backbone\.stem\.[12]\..*", ""),
        (
            _BLOCK,
            lambda m: f"backbone.layer{int(m[1]) + 1}.{m[2]}.{'bn' if m[4] == 'norm' else 'conv'}{m[3]}",
        ),
        (_SHORTCUT, shortcut),
    )


def _swin(stem: str, first_stage: int) -> tuple[Rule, ...]:
    """Return rules for torchvision's names: stages and the patch merging between them share one numbering."""
    return (
        (r"^backbone\.stem\.projection\b", f"backbone.{stem}.0"),
        (r"^backbone\.stem\.norm\b", f"backbone.{stem}.2"),
        (r"^backbone\.stages\.(\d)\b", lambda m: f"backbone.features.{first_stage + 2 * int(m[1])}"),
        (r"^backbone\.merges\.(\d)\b", lambda m: f"backbone.features.{first_stage + 2 * int(m[1]) + 1}"),
    )


# -- neck and decoder ------------------------------------------------------------------------------------

_RTDETR_HEAD: tuple[Rule, ...] = (
    (r"^neck\.aifi\.", "encoder.encoder.0.layers.0."),
    (r"^neck\.", "encoder."),
    (r"^decoder\.layers\.", "decoder.decoder.layers."),
)
_NUMBERED_PROJECTION: tuple[Rule, ...] = (
    (r"^encoder\.input_proj\.(\d)\.conv\b", r"encoder.input_proj.\1.0"),
    (r"^encoder\.input_proj\.(\d)\.norm\b", r"encoder.input_proj.\1.1"),
)
_NAMED_QUERY_SELECTION: tuple[Rule, ...] = (
    (r"^decoder\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^decoder\.enc_output\.1\.", "decoder.enc_output.norm."),
)
_HF_HEAD: tuple[Rule, ...] = (
    (r"^(neck|decoder)\.input_proj\.(\d)\.conv\b", r"model.\1_input_proj.\2.0"),
    (r"^(neck|decoder)\.input_proj\.(\d)\.norm\b", r"model.\1_input_proj.\2.1"),
    (r"^model\.neck_input", "model.encoder_input"),
    (r"^neck\.aifi\.norm1\.", "neck.aifi.self_attn_layer_norm."),
    (r"^neck\.aifi\.norm2\.", "neck.aifi.final_layer_norm."),
    (r"^neck\.aifi\.", "model.encoder.encoder.0.layers.0."),
    (r"^neck\.", "model.encoder."),
    (r"^decoder\.layers\.(\d+)\.norm1\.", r"model.decoder.layers.\1.self_attn_layer_norm."),
    (r"^decoder\.layers\.(\d+)\.cross_attn\.", r"model.decoder.layers.\1.encoder_attn."),
    (r"^decoder\.layers\.(\d+)\.norm2\.", r"model.decoder.layers.\1.encoder_attn_layer_norm."),
    (r"^decoder\.layers\.(\d+)\.norm3\.", r"model.decoder.layers.\1.final_layer_norm."),
    (r"^decoder\.(layers|query_pos_head)\.", r"model.decoder.\1."),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.", "model."),
    (r"\.linear([12])\.", r".fc\1."),
)
_HF_NEW_NAMES: tuple[Rule, ...] = (
    (r"\.out_proj\.", ".o_proj."),
    (r"\.fc([12])\.", r".mlp.fc\1."),
    (r"\.encoder\.encoder\.", ".encoder.aifi."),
)


# -- norm sets -------------------------------------------------------------------------------------------


def _one_set(plain: str) -> str | None:
    return None if ".skip." in plain else plain.replace(".full.", ".")


def _both_sets(plain: str) -> str:
    suffix = "_skip" if plain.startswith("backbone.") else "_skippable"
    return plain.replace(".skip.", f"{suffix}.").replace(".full.", ".")


def _own_markers(kinds: Iterable[BackboneKind]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the markers of whole detectors and of backbones alone, for every kind of backbone."""
    whole = [((kind.marker,), "") for kind in kinds]
    return (*whole, *(((marker.removeprefix("backbone."),), "backbone.") for (marker,), _ in whole))


# -- layouts ---------------------------------------------------------------------------------------------

OURS = Layout(
    name="anydepth",
    markers=_own_markers(BACKBONES.values()),
    rules=(),
    norm_name=lambda plain: plain,
)
ANYDEPTH = Layout(
    name="AnyDepth-DETR of its authors",
    markers=((("backbone.layer1.0.conv1.weight", "encoder.input_proj.0.norm_skippable.weight"), ""),),
    rules=(*_plain_resnet(pooled_shortcut=True), *_RTDETR_HEAD),
    norm_name=_both_sets,
)
ADAPTIVE_DEPTH_RESNET = Layout(
    name="adaptive depth network (ResNet backbone)",
    markers=((("layer1.0.conv1.weight", "layer2.0.downsample.2.weight"), "backbone."),),
    rules=_plain_resnet(pooled_shortcut=True),
    norm_name=_both_sets,
)
TORCHVISION_RESNET = Layout(
    name="torchvision ResNet (backbone)",
    markers=((("layer1.0.conv1.weight", "layer2.0.downsample.1.weight"), "backbone."),),
    rules=_plain_resnet(pooled_shortcut=False),
    norm_name=_both_sets,
    note="torchvision's ResNets expect normalised images (image_mean, image_std), and their shortcuts take "
    "every second pixel while ours average: train before use",
)
ANYDEPTH_SWIN = Layout(
    name="AnyDepth-DETR of its authors (Swin Transformer)",
    markers=((("backbone.pre.0.weight", "encoder.input_proj.0.norm_skippable.weight"), ""),),
    rules=(*_swin("pre", first_stage=0), *_RTDETR_HEAD),
    norm_name=_both_sets,
)
ADAPTIVE_DEPTH_SWIN = Layout(
    name="adaptive depth network (Swin Transformer backbone)",
    markers=((("pre.0.weight", "features.0.0.attn.relative_position_bias_table"), "backbone."),),
    rules=_swin("pre", first_stage=0),
    norm_name=_both_sets,
)
# The marker excludes Swin v2, another network, which has no table of relative positions.
TORCHVISION_SWIN = Layout(
    name="torchvision Swin Transformer (backbone)",
    markers=((("features.0.0.weight", "features.1.0.attn.relative_position_bias_table"), "backbone."),),
    rules=_swin("features.0", first_stage=1),
    norm_name=_both_sets,
    note="torchvision's Swin Transformers expect normalised images: build the detector with "
    "image_mean=[0.485, 0.456, 0.406] and image_std=[0.229, 0.224, 0.225]",
)
RTDETR_V2 = Layout(
    name="RT-DETR v2",
    markers=((("backbone.conv1.conv1_1.conv.weight", "encoder.input_proj.0.conv.weight"), ""),),
    rules=(*_PRESNET, *_RTDETR_HEAD, *_NAMED_QUERY_SELECTION),
    norm_name=_one_set,
)
RTDETR_V1 = Layout(
    name="RT-DETR v1",
    markers=((("backbone.conv1.conv1_1.conv.weight",), ""), (("conv1.conv1_1.conv.weight",), "backbone.")),
    rules=(*_PRESNET, *_RTDETR_HEAD, *_NUMBERED_PROJECTION),
    norm_name=_one_set,
)
# The names in files of the hub and of transformers; version 5 has other names in memory.
TRANSFORMERS = Layout(
    name="transformers RTDetrForObjectDetection",
    markers=(
        (("model.encoder.encoder.0.layers.0.fc1.weight",), ""),
        (("encoder.encoder.0.layers.0.fc1.weight",), "model."),
        (("embedder.embedder.0.convolution.weight",), _HF),
    ),
    rules=(*_HF_RESNET, *_HF_HEAD),
    norm_name=_one_set,
    fused_attention=False,
    tied=("class_embed.", "bbox_embed."),
    tied_to="model.decoder.",
)
TRANSFORMERS_5 = replace(
    TRANSFORMERS,
    name="transformers RTDetrForObjectDetection (names of version 5)",
    markers=(
        (("model.encoder.aifi.0.layers.0.mlp.fc1.weight",), ""),
        (("encoder.aifi.0.layers.0.mlp.fc1.weight",), "model."),
    ),
    rules=(*TRANSFORMERS.rules, *_HF_NEW_NAMES),
)

LAYOUTS = (
    OURS,
    ANYDEPTH,
    ADAPTIVE_DEPTH_RESNET,
    TORCHVISION_RESNET,
    ANYDEPTH_SWIN,
    ADAPTIVE_DEPTH_SWIN,
    TORCHVISION_SWIN,
    RTDETR_V2,
    RTDETR_V1,
    TRANSFORMERS_5,
    TRANSFORMERS,
)


def known_layouts() -> tuple[Layout, ...]:
    """Return all layouts, the most specific first; ours includes the backbones of installed packages."""
    ours = replace(OURS, markers=_own_markers(kind for _, kind in all_backbones()))
    return tuple(ours if layout is OURS else layout for layout in LAYOUTS)
