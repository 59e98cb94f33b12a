"""Checks that a file fits a detector of the YOLO family; the errors say what to build instead."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from anydepth.utils.messages import join_few
from anydepth.weights.files import WeightsError
from anydepth.weights.plan import Kinds, Plan, plain_names
from anydepth.yolo.output import BINS

KINDS = Kinds(
    class_heads=re.compile(r"head\.class_branches\."),
    class_rows=re.compile(r"head\.class_branches\.\d\.4\."),
    # The distances of the bins are fixed, and checked separately.
    derived=re.compile(r"num_batches_tracked$|^head\.bins$"),
)
# Widths, units of the backbone and units of the neck, by which the named networks below are found.
_Size = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
FIXED_DEPTH: dict[_Size, str] = {
    ((16, 32, 64, 128, 256), (1, 1, 2, 2), (1, 1, 1, 1)): "yolov12_n",
    ((32, 64, 128, 256, 512), (1, 1, 2, 2), (1, 1, 1, 1)): "yolov12_s",
    ((64, 128, 256, 512, 512), (1, 1, 2, 2), (1, 1, 1, 1)): "yolov12_m",
    ((64, 128, 256, 512, 512), (2, 2, 4, 4), (2, 2, 2, 2)): "yolov12_l",
    ((96, 192, 384, 768, 768), (2, 2, 4, 4), (2, 2, 2, 2)): "yolov12_x",
}
ANY_DEPTH: dict[_Size, str] = {
    # AnyDepth-YOLO as published has other networks of the sizes n and s, and none of the size m.
    ((16, 32, 64, 128, 256), (1, 1, 2, 2), (1, 1, 1, 1)): "yolov12_any_n",
    ((32, 64, 128, 256, 512), (1, 1, 2, 2), (1, 1, 1, 1)): "yolov12_any_s",
    ((64, 128, 256, 512, 512), (1, 1, 2, 2), (1, 1, 1, 1)): "yolov12_any_m",
    ((16, 32, 64, 128, 256), (2, 2, 3, 3), (2, 2, 2, 2)): "yolo_n",
    ((32, 64, 128, 256, 256), (2, 2, 4, 4), (2, 2, 2, 2)): "yolo_s",
    ((64, 128, 256, 512, 512), (2, 2, 4, 4), (2, 2, 2, 2)): "yolo_l",
    ((96, 192, 384, 768, 768), (2, 2, 4, 4), (2, 2, 2, 2)): "yolo_x",
}
# A skip norm that every any-depth network has, and those that networks lack which split bottlenecks.
_ANY_SKIP = "backbone.downs.0.norm.skip.weight"
_SPLIT_BY_UNIT = {
    setting: f"neck.stages.{stage}.chain.0.bottlenecks.1.conv1.norm.skip.weight"
    for setting, stage in (("c3k2_split", 3), ("c3k_split", 0))
}


@dataclass(frozen=True)
class _Network:
    """Properties by which networks differ, under the names of the settings that build them."""

    widths: tuple[int, ...]
    backbone_units: tuple[int, ...]
    neck_units: tuple[int, ...]
    backbone_c3k2_unit: str
    mlp_ratio: float
    residual_scale: bool

    @classmethod
    def from_shapes(cls, shape_of: Callable[[str], Collection[int] | None]) -> "_Network":
        """Infer the sizes from the shapes of plain names; a name that does not exist has the shape None."""

        def width(conv: str) -> int:
            return next(iter(shape_of(f"backbone.{conv}.conv.weight") or ()), 0)

        def units(part: str) -> tuple[int, ...]:
            return tuple(_count_units(shape_of, f"{part}.stages.{stage}.chain") for stage in range(4))

        c3k = shape_of("backbone.stages.0.chain.0.conv3.conv.weight") is not None
        hidden = width("stages.2.chain.0.blocks.0.expand")
        outer = width("stages.2.chain.0.blocks.0.contract")
        stages = (f"stages.{stage}.fusion.fuse" for stage in (0, 1, 3))
        return cls(
            widths=tuple(width(conv) for conv in ("stem.0", "stem.1", *stages)),
            backbone_units=units("backbone"),
            neck_units=units("neck"),
            backbone_c3k2_unit="c3k" if c3k else "bottleneck",
            # Hidden channels are rounded down, so the ratio of narrow networks is only near the setting.
            mlp_ratio=round(hidden / outer, 2) if outer else 0.0,
            residual_scale=shape_of("backbone.stages.2.gamma") is not None,
        )

    @property
    def size(self) -> _Size:
        return self.widths, self.backbone_units, self.neck_units

    def differing_settings(self, other: "_Network") -> str:
        """Return the settings that differ from another network's, as overrides."""
        differing = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != getattr(other, field.name):
                shown = list(value) if isinstance(value, tuple) else value
                differing.append(f"{field.name}={str(shown).lower()}")
        return ", ".join(differing)


def _count_units(shape_of: Callable[[str], Collection[int] | None], chain: str) -> int:
    count = 0
    while any(
        shape_of(f"{chain}.{count}.{weight}.conv.weight") is not None
        for weight in ("conv1", "blocks.0.attention.project")
    ):
        count += 1
    return count


def network_settings(shape_of: Callable[[str], Collection[int] | None]) -> dict[str, object]:
    """Return widths and units of the network whose shapes ``shape_of`` knows by plain names."""
    found = _Network.from_shapes(shape_of)
    return {
        "widths": list(found.widths),
        "backbone_units": list(found.backbone_units),
        "neck_units": list(found.neck_units),
    }


def check_variant(names: Collection[str], origin: str) -> None:
    """Check that a published checkpoint is of the turbo network and has separate norms.

    Args:
        names: Keys from the position of the layer on.
        origin: Origin of the file, for the message.

    Raises:
        WeightsError: The file is of YOLOv12 v1.0, or its norms are folded into convolutions.
    """
    if "0.conv.weight" not in names:
        return
    if any(".attn.qkv." in name for name in names):
        raise WeightsError(
            f"{origin}: got the v1.0 layout of YOLOv12 (joint attn.qkv, 7x7 position kernels), expected the "
            "turbo network; use a turbo checkpoint, whose attention has attn.qk and attn.v"
        )
    if "0.conv.bias" in names:
        raise WeightsError(
            f"{origin}: its norms are folded into the convolutions, so there are none to load; use the "
            "checkpoint as training wrote it"
        )


def flatten_bins(bins: Tensor, origin: str) -> Tensor:
    """Return the distances of the bins as the head keeps them, [16].

    Args:
        bins: Distances in the file, [1, 16, 1, 1] in published checkpoints.
        origin: Origin of the file, for the message.

    Raises:
        WeightsError: They are not 0 to 15.
    """
    # Counted first: a damaged file may claim more numbers than memory holds.
    flat = bins.flatten().float() if bins.numel() == BINS else None
    if flat is None or flat.tolist() != list(range(BINS)):
        raise WeightsError(
            f"{origin}: got {bins.numel()} distance bins (dfl.conv.weight), expected {BINS} at 0 to "
            f"{BINS - 1} strides; use weights of a head with reg_max={BINS}"
        )
    return flat


def check_architecture(plan: Plan, origin: str) -> None:
    """Check that the file's network has the detector's sizes, also if shapes happen to fit.

    Raises:
        WeightsError: The networks differ; the message names the differences and what to build.
    """

    def in_file(plain: str) -> torch.Size | None:
        value = plan.find(plain)
        return None if value is None else value.shape

    shapes: Mapping[str, torch.Size] = {
        plain: plan.own[key].shape for key, plain in plain_names(plan.own).items()
    }
    theirs, ours = _Network.from_shapes(in_file), _Network.from_shapes(shapes.get)
    if theirs == ours:
        return
    wanted = theirs.differing_settings(ours)
    any_depth = plan.find(_ANY_SKIP) is not None
    tables = (ANY_DEPTH,) if any_depth else (FIXED_DEPTH, ANY_DEPTH)
    known = [table[theirs.size] for table in tables if theirs.size in table]
    remedy = " or ".join(known) if known and theirs.size != ours.size else f"a detector with {wanted}"
    raise WeightsError(
        f"{origin}: its network has {wanted}, the detector's has {ours.differing_settings(theirs)}: build "
        f"{remedy}"
    )


def check_skip_state(plan: Plan, origin: str) -> None:
    """Check that a file has all skip norms or none: copies of full norms cannot complete a trained set.

    Raises:
        WeightsError: The file's stages are split differently, or it is incomplete.
    """
    copied = [key for key in plan.copied if ".norm.skip." in key]
    if plan.find(_ANY_SKIP) is None or not copied:
        return
    own = plain_names(plan.own).values()
    for setting, mark in _SPLIT_BY_UNIT.items():
        theirs = "bottleneck" if plan.find(mark) is None else "unit"
        ours = "unit" if mark in own else "bottleneck"
        if theirs != ours:
            raise WeightsError(
                f"{origin}: its stages skip by {setting}={theirs}, the detector's by {setting}={ours}, so "
                f"that other norms have two sets: build it with {setting}={theirs}"
            )
    raise WeightsError(
        f"{origin}: it has some norms of skipping stages but lacks {len(copied)} ({join_few(copied, 3)}), so "
        "it is incomplete; copy it again, or build the detector whose stages it has"
    )
