"""Decides which value each weight of a detector gets from a file, and refuses files that do not fit."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anydepth.detr.weight_files import WeightsError
from anydepth.detr.weight_layouts import Layout

_SPLIT = re.compile(r"(?P<stage>.+)\.(?P<path>essential|refinement)\.(?P<index>\d+)\.(?P<rest>.+)")
# What detectors store besides weights, and what only counts training steps.
_DERIVED = re.compile(
    r"num_batches_tracked$|relative_position_index$|^decoder\.(anchors|valid_mask)$|n(um)?_points_scale$"
)
_CLASS_HEADS = re.compile(r"decoder\.(denoising_class_embed|enc_score_head|dec_score_head)\.")
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


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Our keys to plain names, in which the split of a stage into paths is undone.

    ``backbone.stages.0.refinement.0.conv2.norm.full.weight`` is plainly
    ``backbone.stages.0.2.conv2.norm.full.weight`` where two blocks are essential. Other keys stay
    as they are.

    Args:
        keys: All keys of a state dict: they tell how many blocks are essential.
    """
    matches = {key: _SPLIT.fullmatch(key) for key in keys}
    essential: dict[str, int] = {}
    for match in matches.values():
        if match and match["path"] == "essential":
            essential[match["stage"]] = max(essential.get(match["stage"], 0), int(match["index"]) + 1)
    names = {}
    for key, match in matches.items():
        if match is None:
            names[key] = key
            continue
        offset = essential.get(match["stage"], 0) if match["path"] == "refinement" else 0
        names[key] = f"{match['stage']}.{int(match['index']) + offset}.{match['rest']}"
    return names


def is_derived(foreign: str) -> bool:
    """Whether a foreign key holds nothing that was learnt: step counters, and tables computed from sizes."""
    return _DERIVED.search(foreign) is not None


def twin_of(plain: str) -> str | None:
    """The name of the full norm that a skip norm belongs to; None for every other name."""
    return plain.replace(".skip.", ".full.") if ".skip." in plain else None


class Plan:
    """Which value each key of the detector gets; nothing is copied yet.

    Attributes:
        values: By key of the detector, what is to be copied.
        copied: Keys of ``values`` that are skip norms taking the full norm's value.
        class_heads: Keys whose shape differs in the number of classes only.
        misfits: Other keys whose shape differs, with the shape in the file.
        missing: Keys that the file has no value for.
        unused: Keys of the file that no key of the detector asked for.
    """

    def __init__(self, own: Mapping[str, Tensor], layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        self.own, self.layout, self.tensors = own, layout, tensors
        self.values: dict[str, Tensor] = {}
        self.copied: list[str] = []
        self.class_heads: list[str] = []
        self.misfits: dict[str, tuple[int, ...]] = {}
        self.missing: list[str] = []
        used: set[str] = set()
        for key, plain in plain_names(own).items():
            twin = twin_of(plain)
            source = plain if self.find(plain) is not None or twin is None else twin
            value = self.find(source)
            used.update(layout.foreign_keys(source))
            if value is None:
                if not is_derived(key):
                    self.missing.append(key)
            elif value.shape == own[key].shape:
                self.values[key] = value
                if source != plain:
                    self.copied.append(key)
            elif _CLASS_HEADS.match(key) and value.shape[1:] == own[key].shape[1:]:
                self.class_heads.append(key)
            else:
                self.misfits[key] = tuple(value.shape)
        self.unused = [key for key in tensors if key not in used and not is_derived(key)]

    def find(self, plain: str) -> Tensor | None:
        """The file's value for a plain name, None if it has none."""
        keys = self.layout.foreign_keys(plain)
        if not keys or any(key not in self.tensors for key in keys):
            return None
        parts = [self.tensors[key] for key in keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


# -- checks ----------------------------------------------------------------------------------------------


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


def check_shapes(plan: Plan, origin: str) -> None:
    """Refuse files of other sizes; only the number of classes may differ."""
    if not plan.misfits:
        return
    shown = "; ".join(
        f"{key} is {list(shape)} in the file and {list(plan.own[key].shape)} in the detector"
        for key, shape in list(plan.misfits.items())[:3]
    )
    raise WeightsError(
        f"{origin}: {len(plan.misfits)} tensors are of another shape: {shown}. Nothing was loaded; build the "
        "detector with the sizes of the file (widths, hidden_dim, decoder_dim, neck_expansion, ...)"
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
