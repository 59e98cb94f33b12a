"""Load weights of other projects, and of other configurations of our own, into a detector.

Everything is checked before the first value is copied: a detector is loaded completely or not changed.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anydepth.detector import Detector
from anydepth.detr.weights.checks import (
    KINDS,
    backbone_settings,
    check_architecture,
    check_frozen_norms,
)
from anydepth.detr.weights.layouts import known_layouts
from anydepth.detr.weights.sampling import check_sampling
from anydepth.weights.files import StateDict, locate, read_state_dict
from anydepth.weights.plan import (
    Classes,
    Layout,
    Plan,
    check_finite,
    check_shapes,
    detect_layout,
    plain_names,
)
from anydepth.weights.report import LoadReport


def load_weights(detector: Detector, source: str | Path | Mapping[str, object]) -> LoadReport:
    """Load weights of any known layout into a detector of the DETR family.

    Known are RT-DETR v1 and v2, ``transformers`` ``RTDetrForObjectDetection`` (old and new names), the
    checkpoints of AnyDepth-DETR's authors, backbones alone (RT-DETR's, and ResNets and Swin Transformers of
    adaptive depth networks and torchvision), and our own of any depth. Averaged (EMA) weights are preferred
    if a file holds them. Skip norms that a file lacks start as copies of the full norms.

    Args:
        detector: Detector from :func:`anydepth.detr.build.build_detr`.
        source: See :func:`~anydepth.weights.files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, is of an unknown layout, or does not fit the detector, or is
            of a network that computes something else with such weights; the detector is not changed.
    """
    if isinstance(source, str | Path):
        source = locate(source)
    state = read_state_dict(source)
    layout, names = _detect_names(state)
    tensors = {name: state.tensors[key] for name, key in names.items()}
    classes = Classes(detector.class_names, state.class_names)
    plan = Plan(detector.state_dict(), layout, tensors, KINDS, classes)
    check_architecture(plan, state.origin)
    check_shapes(plan, state.origin, "widths, hidden_dim, decoder_dim, neck_expansion")
    check_frozen_norms(detector, plan, state.origin)
    check_finite(plan.values, state.origin)
    notes = [*check_sampling(detector, source, state.tensors, state.origin)]
    plan.apply()
    if not any(key.startswith(("neck.", "decoder.")) for key in plan.values):
        notes.append("the file holds a backbone only: neck and decoder are untrained")
    return LoadReport.from_plan(plan, names, state.origin, notes)


def read_sizes(state: StateDict) -> Mapping[str, object]:
    """Return the settings of the backbone that weights are of, by which presets are found.

    Raises:
        WeightsError: An unknown layout.
    """
    layout, names = _detect_names(state)
    return backbone_settings(lambda plain: all(key in names for key in layout.foreign_keys(plain) or ("",)))


def _detect_names(state: StateDict) -> tuple[Layout, dict[str, str]]:
    """Return the layout of a state dict, and its keys by their full names in that layout."""
    plain = {name: key for key, name in plain_names(state.tensors).items()}
    layout, prefix = detect_layout(state, plain, known_layouts())
    names = {prefix + name: key for name, key in plain.items()}
    return layout, _join_tied(layout, names, state.tensors)


def _join_tied(layout: Layout, names: dict[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Drop tensors that a file holds twice, and rename those that it holds only under the tied name."""
    joined = dict(names)
    for name, key in names.items():
        if name.startswith(layout.tied):
            first = joined.setdefault(layout.tied_to + name, key)
            if torch.equal(tensors[first], tensors[key]):
                del joined[name]
    return joined
