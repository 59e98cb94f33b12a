"""Refuses files that do not fit a detector of this wing, whatever their shapes say."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from anydepth.weights.files import WeightsError
from anydepth.weights.plan import Kinds, Plan, plain_names

_CLASS_HEADS = re.compile(r"decoder\.(denoising_class_embed|enc_score_head|dec_score_head)\.")
KINDS = Kinds(
    class_heads=_CLASS_HEADS,
    class_rows=_CLASS_HEADS,
    derived=re.compile(
        r"num_batches_tracked$|relative_position_index$|^decoder\.(anchors|valid_mask)$|n(um)?_points_scale$"
    ),
)
# Backbones that named detectors have: how these end, and what people call the backbone.
_SIZES: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {
    ("basic", (2, 2, 2, 2)): ("r18", "ResNet-18"),
    ("basic", (3, 4, 6, 3)): ("r34", "ResNet-34"),
    ("bottleneck", (3, 4, 6, 3)): ("r50", "ResNet-50"),
    ("bottleneck", (3, 4, 23, 3)): ("r101", "ResNet-101"),
    ("swin", (2, 2, 6, 2)): ("swin_t", "Swin-T"),
}
# A weight that every block of a kind has.
_BLOCK_WEIGHTS = ("conv1.conv.weight", "attn.qkv.weight")


@dataclass(frozen=True)
class _Backbone:
    """What tells backbones apart."""

    stem: str
    block: str
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, has: Callable[[str], bool]) -> "_Backbone":
        blocks = []
        for stage in range(4):
            count = 0
            while any(has(f"backbone.stages.{stage}.{count}.{weight}") for weight in _BLOCK_WEIGHTS):
                count += 1
            blocks.append(count)
        block, stem = "basic", "plain"
        if has("backbone.stages.0.0.attn.qkv.weight"):
            block, stem = "swin", "patch"
        elif has("backbone.stages.0.0.conv3.conv.weight"):
            block = "bottleneck"
        if has("backbone.stem.2.conv.weight"):
            stem = "deep"
        return cls(stem=stem, block=block, blocks=tuple(blocks))

    @property
    def described(self) -> str:
        size = _SIZES.get((self.block, self.blocks))
        return f"{list(self.blocks)} {self.block} blocks" + (f" ({size[1]})" if size else "")


def check_architecture(plan: Plan, origin: str) -> None:
    """Refuse backbones of another stem or depth, also where every shape happens to fit."""
    theirs = _Backbone.of(lambda plain: plan.find(plain) is not None)
    plains = set(plain_names(plan.own).values())
    ours = _Backbone.of(plains.__contains__)
    if (theirs.block, theirs.blocks) != (ours.block, ours.blocks):
        size = _SIZES.get((theirs.block, theirs.blocks))
        remedy = f"detr_{size[0]} or rtdetr_{size[0]}" if size else "a detector with those blocks"
        raise WeightsError(
            f"{origin}: its backbone has {theirs.described}, the detector's {ours.described}: build {remedy}"
        )
    if theirs.stem != ours.stem:
        raise WeightsError(
            f"{origin}: its backbone has a {theirs.stem} stem, the detector's is {ours.stem}: build it "
            f"with stem={theirs.stem}"
        )


def check_frozen_norms(detector: nn.Module, plan: Plan, origin: str) -> None:
    """Frozen norms cannot adapt: a skip set that is a copy of the full one would stay wrong for ever."""
    trainable = {name for name, _ in detector.named_parameters()}
    frozen = [
        key
        for key in plan.copied
        if key.startswith("backbone.") and key.endswith(".weight") and key not in trainable
    ]
    if frozen:
        raise WeightsError(
            f"{origin}: its backbone has one set of norms, and freeze_backbone_norms=true would freeze "
            f"{len(frozen)} skip norms with the statistics of the full path: build the detector with "
            "freeze_backbone_norms=false"
        )
