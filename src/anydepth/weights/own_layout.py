"""Load weights that have the detector's own names."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from anydepth.utils.messages import join_few
from anydepth.weights.files import WeightsError, read_state_dict
from anydepth.weights.plan import Classes, Kinds, Layout, Plan, check_finite, check_shapes, plain_names
from anydepth.weights.report import LoadReport

_NEVER = re.compile(r"(?!)")
_KINDS = Kinds(class_heads=_NEVER, class_rows=_NEVER, derived=re.compile(r"num_batches_tracked$"))


def load_own_layout(
    detector: nn.Module, class_names: tuple[str, ...], source: str | Path | Mapping[str, object]
) -> LoadReport:
    """Load weights of another detector of the same kind, however its stages are split into paths.

    This is the default for a family without layouts of its own. Every tensor must have the detector's shape;
    weights that the file lacks keep their values and are named in the report.

    Args:
        detector: Detector to load into.
        class_names: Class names of the detector.
        source: See :func:`~anydepth.weights.files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, none or not all of its tensors fit, or they hold NaN or
            infinity; the detector is not changed.
    """
    state = read_state_dict(source)
    names = {name: key for key, name in plain_names(state.tensors).items()}
    tensors = {name: state.tensors[key] for name, key in names.items()}
    layout = Layout(type(detector).__name__, markers=(), rules=(), norm_name=lambda plain: plain)
    plan = Plan(detector.state_dict(), layout, tensors, _KINDS, Classes(class_names, state.class_names))
    check_shapes(plan, state.origin, "its sizes, its number of classes")
    if not plan.values:
        raise WeightsError(
            f"{state.origin}: got the keys {join_few(tensors, 3)}, expected those of "
            f"{type(detector).__name__} ({join_few(plan.own, 3)}); convert the keys, or override "
            "load_weights in the detector"
        )
    check_finite(plan.values, state.origin)
    plan.apply()
    return LoadReport.from_plan(plan, names, state.origin)
