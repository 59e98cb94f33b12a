"""Loads weights of other projects, and of other configurations of our own, into a detector.

Everything is checked before the first value is copied: a detector is filled, or left as it was.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anydepth.detr.weight_files import StateDict, WeightsError, read_state_dict
from anydepth.detr.weight_layouts import LAYOUTS, Layout
from anydepth.detr.weight_plan import (
    Plan,
    check_architecture,
    check_frozen_norms,
    check_shapes,
    plain_names,
)


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
    checkpoints of AnyDepth-DETR's authors, backbones alone (RT-DETR's, and ResNets and Swin Transformers of
    adaptive depth networks and torchvision), and our own of any depth. Averaged (EMA) weights are preferred
    where a file holds them. Skip norms that a file does not have start as copies of the full norms.

    Args:
        detector: What :func:`anydepth.detr.build.build_detr` built.
        source: See :func:`~anydepth.detr.weight_files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, is of an unknown layout, or does not fit the detector; the
            detector is left as it was.
    """
    state = read_state_dict(source)
    layout, names = _recognise(state)
    own = detector.state_dict()
    plan = Plan(own, layout, {name: state.tensors[key] for name, key in names.items()})
    check_architecture(plan, state.origin)
    check_shapes(plan, state.origin)
    check_frozen_norms(detector, plan, state.origin)
    with torch.no_grad():
        for key, value in plan.values.items():
            own[key].copy_(value)
    return _report(plan, names, state.origin)


def _report(plan: Plan, names: Mapping[str, str], origin: str) -> LoadReport:
    return LoadReport(
        layout=plan.layout.name,
        origin=origin,
        loaded=tuple(key for key in plan.values if key not in set(plan.copied)),
        copied_to_skip=tuple(plan.copied),
        reinitialised=tuple(plan.class_heads),
        missing=tuple(plan.missing),
        unused=tuple(names[name] for name in plan.unused),
        notes=tuple(_notes(plan)),
    )


def _notes(plan: Plan) -> list[str]:
    notes = [plan.layout.note] if plan.layout.note else []
    if not any(key.startswith(("neck.", "decoder.")) for key in plan.values):
        notes.append("the file holds a backbone only: neck and decoder are untrained")
    if plan.copied:
        notes.append(
            "skip norms have the statistics of the full path: train before using other depths than full"
        )
    return notes


def _recognise(state: StateDict) -> tuple[Layout, dict[str, str]]:
    """The layout of a state dict, and its keys by the full name that they have in that layout."""
    plain = {name: key for key, name in plain_names(state.tensors).items()}
    for layout in LAYOUTS:
        prefix = layout.prefix_in(plain)
        if prefix is not None:
            names = {prefix + name: key for name, key in plain.items()}
            return layout, _join_tied(layout, names, state.tensors)
    raise WeightsError(
        f"{state.origin}: unknown layout, its keys begin with {_first(list(state.tensors))}; known are "
        f"{', '.join(layout.name for layout in LAYOUTS)}"
    )


def _join_tied(layout: Layout, names: dict[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Drop what a file holds twice, and move what it holds only under the second name."""
    joined = dict(names)
    for name, key in names.items():
        if name.startswith(layout.tied):
            first = joined.setdefault(layout.tied_to + name, key)
            if torch.equal(tensors[first], tensors[key]):
                del joined[name]
    return joined


def _first(keys: Collection[str] | Sequence[str]) -> str:
    shown = list(keys)[:3]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "")
