"""Load weights of published YOLOv12 and AnyDepth-YOLO networks, and of our own, into a detector.

Everything is checked before the first value is copied: a detector is loaded completely or not changed.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from anydepth.detector import Detector
from anydepth.weights.files import StateDict, read_state_dict
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
from anydepth.yolo.weights.checks import (
    KINDS,
    check_architecture,
    check_skip_state,
    check_variant,
    flatten_bins,
    network_settings,
)
from anydepth.yolo.weights.layouts import LAYOUTS, remove_layer_prefix


def load_weights(detector: Detector, source: str | Path | Mapping[str, object]) -> LoadReport:
    """Load weights of any known layout into a detector of the YOLO family.

    Known are YOLOv12 "turbo" checkpoints, whose Python classes need not be installed, the checkpoints of
    AnyDepth-YOLO's authors, and our own of any depth. Averaged (EMA) weights are preferred if a file holds
    them. Weights that only skipping stages use and that a file lacks start from those of the full state:
    norms as copies, fusion kernels as the part of the full kernel that sees the same channels.

    Args:
        detector: Detector from :func:`anydepth.yolo.build.build_yolo`.
        source: See :func:`~anydepth.weights.files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, is of an unknown layout, or does not fit the detector; the
            detector is not changed.
    """
    state = read_state_dict(source)
    layout, names = _detect_names(state)
    tensors = {name: state.tensors[key] for name, key in names.items()}
    for key in layout.foreign_keys("head.bins"):
        if key in tensors:
            tensors[key] = flatten_bins(tensors[key], state.origin)
    classes = Classes(detector.class_names, state.class_names)
    plan = Plan(detector.state_dict(), layout, tensors, KINDS, classes)
    check_architecture(plan, state.origin)
    check_shapes(plan, state.origin, "widths, backbone_units, neck_units")
    check_skip_state(plan, state.origin)
    check_finite(plan.values, state.origin)
    plan.apply()
    return LoadReport.from_plan(plan, names, state.origin)


def read_sizes(state: StateDict) -> Mapping[str, object]:
    """Return the settings of the network that weights are of, by which presets are found.

    Raises:
        WeightsError: An unknown layout, or a variant of the network that no detector has.
    """
    layout, names = _detect_names(state)

    def shape_of(plain: str) -> torch.Size | None:
        (key,) = layout.foreign_keys(plain) or ("",)
        return state.tensors[names[key]].shape if key in names else None

    return network_settings(shape_of)


def _detect_names(state: StateDict) -> tuple[Layout, dict[str, str]]:
    """Return the layout of a state dict, and its keys by their names in that layout."""
    plain = plain_names(remove_layer_prefix(key) for key in state.tensors)
    names = {plain[remove_layer_prefix(key)]: key for key in state.tensors}
    check_variant(names, state.origin)
    layout, _ = detect_layout(state, names, LAYOUTS)
    return layout, names
