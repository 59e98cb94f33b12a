"""Loads weights of other projects, and of other configurations of our own, into a detector.

Everything is checked before the first value is copied: a detector is filled, or left as it was.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anydepth.detr.weight_files import StateDict, WeightsError, read_state_dict
from anydepth.detr.weight_layouts import LAYOUTS, Layout, is_derived, plain_names, twin_of

_CLASS_HEADS = re.compile(r"decoder\.(denoising_class_embed|enc_score_head|dec_score_head)\.")
_SIZES = {
    ("basic", (2, 2, 2, 2)): "r18",
    ("basic", (3, 4, 6, 3)): "r34",
    ("bottleneck", (3, 4, 6, 3)): "r50",
    ("bottleneck", (3, 4, 23, 3)): "r101",
}


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights; prints as a few lines.

    Attributes:
        layout: Whose names the weights have.
        origin: File and entry they came from.
        loaded: Keys of the detector that hold the file's values.
        copied_to_skip: Keys of skip norms that hold the values of their full norms, as the file has no set of
            their own.
        reinitialised: Keys that depend on the number of classes, which is another in the file: kept as they
            were initialised.
        missing: Other keys of the detector that the file lacks: kept as they were initialised.
        unused: Keys of the file that the detector has no place for.
        notes: What to know before using the detector.
    """

    layout: str
    origin: str
    loaded: tuple[str, ...]
    copied_to_skip: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.origin}: weights of {self.layout}", f"  loaded: {len(self.loaded)} tensors"]
        for what, keys in (
            ("full norms copied to skip norms", self.copied_to_skip),
            ("class heads kept as initialised", self.reinitialised),
            ("not in the file, kept as initialised", self.missing),
            ("left over in the file", self.unused),
        ):
            if keys:
                lines.append(f"  {what}: {len(keys)} ({_first(keys)})")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def load_weights(detector: nn.Module, source: str | Path | Mapping[str, object]) -> LoadReport:
    """Fill a detector of this wing with weights of any known layout.

    Known are RT-DETR v1 and v2, ``transformers`` ``RTDetrForObjectDetection`` (old and new names), the
    checkpoints of AnyDepth-DETR's authors, backbones alone (RT-DETR's, adaptive depth networks',
    torchvision's), and our own of any depth. Averaged (EMA) weights are preferred where a file holds them.
    Skip norms that a file does not have start as copies of the full norms.

    Args:
        detector: What :func:`anydepth.detr.build.build_detr` built.
        source: See :func:`~anydepth.detr.weight_files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, is of an unknown layout, or does not fit the detector; the
            detector is left as it was.
    """
    state = read_state_dict(source)
    layout, tensors = _recognise(state)
    own = detector.state_dict()
    plan = _Plan(own, layout, tensors)
    _check_architecture(plan, state.origin)
    _check_shapes(plan, state.origin)
    _check_frozen_norms(detector, plan, state.origin)
    with torch.no_grad():
        for key, value in plan.values.items():
            own[key].copy_(value)
    return plan.report(state.origin)


class _Plan:
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

    def report(self, origin: str) -> LoadReport:
        """What the plan does, in words."""
        return LoadReport(
            layout=self.layout.name,
            origin=origin,
            loaded=tuple(key for key in self.values if key not in set(self.copied)),
            copied_to_skip=tuple(self.copied),
            reinitialised=tuple(self.class_heads),
            missing=tuple(self.missing),
            unused=tuple(self.unused),
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = [self.layout.note] if self.layout.note else []
        if not any(key.startswith(("neck.", "decoder.")) for key in self.values):
            notes.append("the file holds a backbone only: neck and decoder are untrained")
        if self.copied:
            notes.append(
                "skip norms have the statistics of the full path: train before using other depths than full"
            )
        return notes


# -- recognition -----------------------------------------------------------------------------------------


def _recognise(state: StateDict) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of a state dict, and its tensors under the full names of that layout."""
    names = plain_names(state.tensors)
    tensors = {names[key]: value for key, value in state.tensors.items()}
    for layout in LAYOUTS:
        prefix = layout.prefix_in(tensors)
        if prefix is not None:
            return layout, _join_tied(layout, {prefix + key: value for key, value in tensors.items()})
    raise WeightsError(
        f"{state.origin}: unknown layout, its keys begin with {_first(list(tensors))}; known are "
        f"{', '.join(layout.name for layout in LAYOUTS)}"
    )


def _join_tied(layout: Layout, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what a file holds twice, and move what it holds only under the second name."""
    joined = dict(tensors)
    for key, value in tensors.items():
        if key.startswith(layout.tied):
            first = joined.setdefault(layout.tied_to + key, value)
            if torch.equal(first, value):
                del joined[key]
    return joined


# -- checks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Backbone:
    """What tells backbones apart; None for a stem that is in no file."""

    stem: str
    block: str
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, has: Callable[[str], bool]) -> "_Backbone":
        blocks = []
        for stage in range(4):
            count = 0
            while has(f"backbone.stages.{stage}.{count}.conv1.conv.weight"):
                count += 1
            blocks.append(count)
        return cls(
            stem="deep" if has("backbone.stem.2.conv.weight") else "plain",
            block="bottleneck" if has("backbone.stages.0.0.conv3.conv.weight") else "basic",
            blocks=tuple(blocks),
        )

    @property
    def described(self) -> str:
        size = _SIZES.get((self.block, self.blocks))
        return f"{list(self.blocks)} {self.block} blocks" + (f" (ResNet-{size[1:]})" if size else "")


def _check_architecture(plan: _Plan, origin: str) -> None:
    """Refuse backbones of another stem or depth, also where every shape happens to fit."""
    theirs = _Backbone.of(lambda plain: plan.find(plain) is not None)
    plains = set(plain_names(plan.own).values())
    ours = _Backbone.of(plains.__contains__)
    if (theirs.block, theirs.blocks) != (ours.block, ours.blocks):
        size = _SIZES.get((theirs.block, theirs.blocks))
        remedy = f"detr_{size} or rtdetr_{size}" if size else "a detector with those blocks"
        raise WeightsError(
            f"{origin}: its backbone has {theirs.described}, the detector's {ours.described}: build {remedy}"
        )
    if theirs.stem != ours.stem:
        raise WeightsError(
            f"{origin}: its backbone has a {theirs.stem} stem, the detector's is {ours.stem}: build it "
            f"with stem={theirs.stem}"
        )


def _check_shapes(plan: _Plan, origin: str) -> None:
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


def _check_frozen_norms(detector: nn.Module, plan: _Plan, origin: str) -> None:
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


def _first(keys: Collection[str] | Sequence[str]) -> str:
    shown = list(keys)[:3]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "")
