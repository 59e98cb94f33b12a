"""Builds a detector of the YOLO family from the plain values of a ``conf/detector`` file."""

from collections.abc import Sequence
from typing import get_args

from anydepth.detector import plain_config
from anydepth.pictures.fitting import Fit
from anydepth.selection import NmsConfig
from anydepth.yolo.backbone import YoloBackbone
from anydepth.yolo.detector import YoloDetector
from anydepth.yolo.head import YoloHead
from anydepth.yolo.neck import YoloNeck
from anydepth.yolo.stages import C3k2Split, C3k2Unit, C3kSplit


def build_yolo(
    *,
    num_classes: int,
    widths: Sequence[int],
    backbone_units: Sequence[int],
    neck_units: Sequence[int],
    backbone_c3k2_unit: C3k2Unit,
    c3k2_split: C3k2Split,
    c3k_split: C3kSplit,
    mlp_ratio: float,
    residual_scale: bool,
    any_depth: bool,
    switchable_norms: bool,
    input_size: Sequence[int],
    fit: Fit,
    nms_score: float,
    nms_iou: float,
    nms_candidates: int,
    nms_detections: int,
    class_names: Sequence[str] | None = None,
) -> YoloDetector:
    """AnyDepth-YOLO, or with ``any_depth=False`` the fixed-depth YOLOv12, from scratch.

    Args:
        num_classes: K.
        widths: Channels of the nominal widths 64, 128, 256, 512 and 1024.
        backbone_units: Units of backbone stages 1 to 4.
        neck_units: Units of neck stages 1 to 4.
        backbone_c3k2_unit: Units of backbone stages 1 and 2: ``bottleneck`` or ``c3k``.
        c3k2_split: What C3k2 stages skip: the second ``bottleneck`` inside each unit, or the second ``unit``.
        c3k_split: What the first three stages of the neck skip: the second ``bottleneck`` inside each unit,
            or the last half of the units (``unit``).
        mlp_ratio: Hidden over outer channels in the attention blocks.
        residual_scale: Attention stages add their input, with a learnt scale on the rest.
        any_depth: Split stages into essential and refinement paths.
        switchable_norms: Two norm sets on essential paths; False shares one.
        input_size: (height, width) for evaluation and prediction.
        fit: How they fit images to it: ``stretch`` or ``letter_box``.
        nms_score: See :class:`~anydepth.selection.NmsConfig` for the four of suppression.
        nms_iou: Largest overlap of two detections of a class.
        nms_candidates: Most (cell, class) pairs per image before suppression.
        nms_detections: Most detections per image.
        class_names: One per class; None numbers them.

    Raises:
        ValueError: A value that does not fit; the message says which and what is allowed.
    """
    config = plain_config(locals())
    _check_lengths(widths, backbone_units, neck_units, input_size)
    if c3k2_split not in get_args(C3k2Split):
        raise ValueError(f"c3k2_split={c3k2_split!r}: allowed are 'bottleneck' and 'unit'")
    if c3k_split not in get_args(C3kSplit):
        raise ValueError(f"c3k_split={c3k_split!r}: allowed are 'bottleneck' and 'unit'")
    if backbone_c3k2_unit not in get_args(C3k2Unit):
        raise ValueError(f"backbone_c3k2_unit={backbone_c3k2_unit!r}: allowed are 'bottleneck' and 'c3k'")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"got {len(class_names)} class names, expected num_classes={num_classes}")
    backbone = YoloBackbone(
        widths=widths,
        units=backbone_units,
        c3k2_unit=backbone_c3k2_unit,
        c3k2_split=c3k2_split,
        mlp_ratio=mlp_ratio,
        residual=residual_scale,
        any_depth=any_depth,
        switchable_norms=switchable_norms,
    )
    neck = YoloNeck(
        in_channels=backbone.out_channels,
        widths=widths[2:],
        units=neck_units,
        c3k_split=c3k_split,
        c3k2_split=c3k2_split,
        any_depth=any_depth,
        switchable_norms=switchable_norms,
    )
    return YoloDetector(
        backbone=backbone,
        neck=neck,
        head=YoloHead(in_channels=neck.out_channels, num_classes=num_classes),
        any_depth=any_depth,
        input_size=(input_size[0], input_size[1]),
        fit=fit,
        class_names=class_names or [str(index) for index in range(num_classes)],
        nms=NmsConfig(nms_score, nms_iou, nms_candidates, nms_detections),
        config=config,
    )


def _check_lengths(
    widths: Sequence[int], backbone_units: Sequence[int], neck_units: Sequence[int], input_size: Sequence[int]
) -> None:
    if len(input_size) != 2:
        raise ValueError(f"got input_size={list(input_size)}, expected [height, width] in pixels")
    if len(widths) != 5 or any(width % 8 for width in widths) or any(width % 64 for width in widths[3:]):
        raise ValueError(
            f"widths={list(widths)}: give five multiples of 8, the last two of 64 (heads of 32 channels)"
        )
    for name, units in (("backbone_units", backbone_units), ("neck_units", neck_units)):
        if len(units) != 4 or min(units) < 1:
            raise ValueError(f"{name}={list(units)}: give four numbers of 1 and above")
