"""Loading of weights that are named as the detector itself names them."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from anydepth.utils.messages import join_few
from anydepth.weights.files import WeightsError, read_state_dict
from anydepth.weights.plan import Classes, Kinds, Layout, Plan, check_shapes, plain_names
from anydepth.weights.report import LoadReport

_NOTHING = re.compile(r"(?!)")
_KINDS = Kinds(class_heads=_NOTHING, class_rows=_NOTHING, derived=re.compile(r"num_batches_tracked$"))


def load_own_layout(
    detector: nn.Module, class_names: tuple[str, ...], source: str | Path | Mapping[str, object]
) -> LoadReport:
    """Fill a detector with weights of another detector of its kind, whatever its split into paths.

    What a wing without layouts of its own loads with. Every tensor must have the detector's shape; weights
    that the file lacks keep their values, and are named in the report.

    Args:
        detector: The detector to fill.
        class_names: Names of its classes.
        source: See :func:`~anydepth.weights.files.read_state_dict`.

    Raises:
        WeightsError: The source cannot be read, or none or not all of its tensors fit; the detector is left
            as it was.
    """
    state = read_state_dict(source)
    names = {name: key for key, name in plain_names(state.tensors).items()}
    tensors = {name: state.tensors[key] for name, key in names.items()}
    layout = Layout(type(detector).__name__, markers=(), rules=(), norm_name=lambda plain: plain)
    plan = Plan(detector.state_dict(), layout, tensors, _KINDS, Classes(class_names, state.class_names))
    check_shapes(plan, state.origin, "its sizes, its number of classes")
    if not plan.values:
        raise WeightsError(
            f"{state.origin}: none of its keys ({join_few(tensors, 3)}) is one of {type(detector).__name__} "
            f"({join_few(plan.own, 3)}); convert the keys, or override load_weights in the detector"
        )
    plan.apply()
    return LoadReport.of(plan, names, state.origin)
