"""Checks that refuse files which do not fit a detector of this family, whatever their shapes say."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from anydepth.detr.backbones.table import all_backbones
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


@dataclass(frozen=True)
class _Found:
    """The backbone that weights are of."""

    block: str
    stem: str
    blocks: tuple[int, ...]
    size: tuple[str, str] | None

    @classmethod
    def among(cls, has: Callable[[str], bool]) -> "_Found":
        """Return the backbone whose weights ``has`` knows by their plain names."""
        for block, kind in all_backbones():  # noqa: B007 (the last one stands for files without a backbone)
            if has(kind.marker):
                break
        blocks = kind.blocks_in(has)
        return cls(block, kind.stem_in(has), blocks, kind.sizes.get(blocks))

    @property
    def described(self) -> str:
        return f"{list(self.blocks)} {self.block} blocks" + (f" ({self.size[1]})" if self.size else "")


def backbone_settings(has: Callable[[str], bool]) -> dict[str, object]:
    """Return the settings of the backbone whose weights ``has`` knows by their plain names."""
    found = _Found.among(has)
    return {"block": found.block, "blocks": list(found.blocks), "stem": found.stem}


def check_architecture(plan: Plan, origin: str) -> None:
    """Refuse backbones of another stem or depth, also where every shape happens to fit."""
    theirs = _Found.among(lambda plain: plan.find(plain) is not None)
    plains = set(plain_names(plan.own).values())
    ours = _Found.among(plains.__contains__)
    if (theirs.block, theirs.blocks) != (ours.block, ours.blocks):
        size = theirs.size
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
            f"{len(frozen)} skip norms with the statistics of the full state: build the detector with "
            "freeze_backbone_norms=false"
        )
