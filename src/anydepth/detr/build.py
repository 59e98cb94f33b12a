"""Builds a detector of the DETR family from the plain values of a ``conf/detector`` file."""

from collections.abc import Sequence

from anydepth.detector import plain_config
from anydepth.detr.backbones.base import BackboneSettings
from anydepth.detr.backbones.table import build_backbone
from anydepth.detr.decoder import RTDETRDecoder
from anydepth.detr.detector import DenoisingConfig, DetrDetector
from anydepth.detr.neck import HybridEncoder
from anydepth.pictures.fitting import Fit


def build_detr(
    *,
    num_classes: int,
    block: str,
    blocks: Sequence[int],
    widths: Sequence[int],
    stem: str,
    stochastic_depth: float,
    any_depth: bool,
    switchable_norms: bool,
    freeze_backbone_norms: bool,
    hidden_dim: int,
    neck_ffn_dim: int,
    neck_expansion: float,
    neck_blocks: int,
    heads: int,
    decoder_dim: int,
    decoder_ffn_dim: int,
    decoder_points: int,
    decoder_layers: int,
    minimal_decoder_layers: int,
    num_queries: int,
    denoising_queries: int,
    label_noise: float,
    box_noise: float,
    input_size: Sequence[int],
    fit: Fit,
    image_mean: Sequence[float] | None,
    image_std: Sequence[float] | None,
    class_names: Sequence[str] | None = None,
) -> DetrDetector:
    """AnyDepth-DETR, or with ``any_depth=False`` the fixed-depth RT-DETR, from scratch.

    Args:
        num_classes: K.
        block: Kind of backbone: ``basic`` or ``bottleneck`` (ResNets), ``swin``, or one of another package,
            see :mod:`anydepth.detr.backbones.table`.
        blocks: Residual blocks per stage.
        widths: Width per stage; of a Swin Transformer multiples of 32.
        stem: Stem of the backbone: for a ResNet ``deep`` (RT-DETR weights fit) or ``plain`` (AnyDepth and
            ADN weights fit), for a Swin Transformer ``patch``.
        stochastic_depth: Probability with which the last block of a Swin Transformer drops its residual
            branches in training; 0 for a ResNet.
        any_depth: Split stages into essential and refinement paths.
        switchable_norms: Two norm sets on essential paths; False shares one.
        freeze_backbone_norms: Backbone norms become buffers and the stem's convolutions are not trained;
            right only for pretrained backbones that hold both norm sets. As released, this freezes the whole
            stem of a Swin Transformer, while its layer norms, which have no statistics, stay trainable.
        hidden_dim: Channels of the neck.
        neck_ffn_dim: Feed-forward size of the neck's attention layer.
        neck_expansion: Expansion of the neck's CSP blocks.
        neck_blocks: RepVGG blocks per CSP block.
        heads: Attention heads in neck and decoder.
        decoder_dim: Channels of the decoder.
        decoder_ffn_dim: Feed-forward size of the decoder.
        decoder_points: Sampled points per head and level.
        decoder_layers: L.
        minimal_decoder_layers: Decoder layers of the minimal depth.
        num_queries: Q.
        denoising_queries: Denoising budget per image; 0 switches it off.
        label_noise: Share of labels at risk of being drawn again, halved.
        box_noise: Jitter of denoising boxes in half box sizes.
        input_size: (height, width) for evaluation and prediction.
        fit: How they fit images to it: ``stretch`` or ``letter_box``.
        image_mean: Per channel, or None.
        image_std: Per channel, or None.
        class_names: One per class; None numbers them.

    Raises:
        ValueError: A value that does not fit; the message says which and what is allowed.
    """
    config = plain_config(locals())
    if len(input_size) != 2:
        raise ValueError(f"got input_size={list(input_size)}, expected [height, width] in pixels")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"got {len(class_names)} class names, expected num_classes={num_classes}")
    settings = BackboneSettings(
        blocks=blocks,
        widths=widths,
        stem=stem,
        stochastic_depth=stochastic_depth,
        any_depth=any_depth,
        switchable_norms=switchable_norms,
        frozen=freeze_backbone_norms,
    )
    backbone = build_backbone(block, settings)
    neck = HybridEncoder(
        in_channels=backbone.out_channels,
        hidden_dim=hidden_dim,
        ffn_dim=neck_ffn_dim,
        heads=heads,
        expansion=neck_expansion,
        blocks=neck_blocks,
        any_depth=any_depth,
        switchable_norms=switchable_norms,
    )
    decoder = RTDETRDecoder(
        num_classes=num_classes,
        in_channels=neck.out_channels,
        dim=decoder_dim,
        num_layers=decoder_layers,
        num_queries=num_queries,
        heads=heads,
        points=decoder_points,
        ffn_dim=decoder_ffn_dim,
    )
    return DetrDetector(
        backbone=backbone,
        neck=neck,
        decoder=decoder,
        minimal_decoder_layers=minimal_decoder_layers,
        any_depth=any_depth,
        input_size=(input_size[0], input_size[1]),
        fit=fit,
        class_names=class_names or [str(index) for index in range(num_classes)],
        denoising=DenoisingConfig(denoising_queries, label_noise, box_noise),
        image_mean=image_mean,
        image_std=image_std,
        config=config,
    )
