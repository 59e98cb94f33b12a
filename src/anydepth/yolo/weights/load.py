"""Loads weights of published YOLOv12 and AnyDepth-YOLO networks, and of our own, into a detector.

Everything is checked before the first value is copied: a detector is filled, or left as it was.
"""

from collections.abc import Mapping
from pathlib import Path

from anydepth.detector import Detector
from anydepth.weights.files import read_state_dict
from anydepth.weights.plan import Classes, Plan, check_shapes, plain_names, recognise
from anydepth.weights.report import LoadReport
from anydepth.yolo.weights.checks import KINDS, check_architecture, check_skip_state, check_variant, flat_bins
from anydepth.yolo.weights.layouts import LAYOUTS, without_layer_prefix


def load_weights(detector: Detector, source: str | Path | Mapping[str, object]) -> LoadReport:
    """Fill a detector of this wing with weights of any known layout.

    Known are YOLOv12 "turbo" checkpoints, which need none of the classes that they were saved with, the
    checkpoints of AnyDepth-YOLO's authors, and our own of any depth. Averaged (EMA) weights are preferred
    where a file holds them. What only skipping stages use and a file does not have starts from the full
    path: norms as copies, fusion kernels as the part of the full kernel that meets the same channels.

    Args:
        detector: What :func:`anydepth.yolo.build.build_yolo` built.
        source: See :func:`~anydepth.weights.files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, is of an unknown layout, or does not fit the detector; the
            detector is left as it was.
    """
    state = read_state_dict(source)
    plain = plain_names(without_layer_prefix(key) for key in state.tensors)
    names = {plain[without_layer_prefix(key)]: key for key in state.tensors}
    check_variant(names, state.origin)
    layout, _ = recognise(state, names, LAYOUTS)
    tensors = {name: state.tensors[key] for name, key in names.items()}
    for key in layout.foreign_keys("head.bins"):
        if key in tensors:
            tensors[key] = flat_bins(tensors[key], state.origin)
    classes = Classes(detector.class_names, state.class_names)
    plan = Plan(detector.state_dict(), layout, tensors, KINDS, classes)
    check_architecture(plan, state.origin)
    check_shapes(plan, state.origin, "widths, backbone_units, neck_units")
    check_skip_state(plan, state.origin)
    plan.apply()
    return LoadReport.of(plan, names, state.origin)
