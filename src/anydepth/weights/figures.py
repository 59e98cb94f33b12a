"""AP and measurements of the depths of a file of weights, from two files beside it.

``depth_curve.json`` is that of the training run or of an evaluation; ``NAME.measurements.json`` beside
``NAME.safetensors`` is written by ``anydepth-benchmark``. Both count only for the network that they describe.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from anydepth.budget import Budget, DepthFigures
from anydepth.depth import DepthConfig, DepthError, DepthSpace
from anydepth.measurement import Conditions, Measurement, add_measurement, machine_name, newest
from anydepth.utils.command_line import setting
from anydepth.utils.files import write_text
from anydepth.utils.messages import join_few, short_repr
from anydepth.weights.files import WeightsError

CURVE: Final = "depth_curve.json"
SPECIALISED: Final = "torch"
"""Engine of measurements in PyTorch of the network that a depth is specialised to."""
EAGER: Final = "eager"
"""Engine of measurements in PyTorch of the detector of all depths."""
COMPILED: Final = "compile"
"""Engine of measurements in PyTorch of the network of a depth that ``torch.compile`` compiled."""

_FORMAT: Final = "anydepth_measurements"
_FORMAT_VERSION: Final = 1
_SUFFIX: Final = ".measurements.json"


@dataclass(frozen=True)
class Network:
    """The network to which AP and cost of a depth belong.

    Attributes:
        name: Name of the detector.
        config: Plain values that it is built from.
        input_size: (height, width) in pixels.
    """

    name: str
    config: Mapping[str, object]
    input_size: tuple[int, int]

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as JSON reads them back."""
        values: dict[str, object] = json.loads(
            json.dumps({"config": dict(self.config), "input_size": self.input_size}, default=str)
        )
        return values


def conditions_here(
    engine: str, device: torch.device, precision: str, *, threads: int | None = None, batch: int = 1
) -> Conditions:
    """Return the conditions of a measurement in PyTorch on this machine.

    Args:
        engine: :data:`SPECIALISED`, :data:`EAGER` or :data:`COMPILED`.
        device: Device of the detector.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        threads: Threads of one pass on a CPU; None: as many as PyTorch uses now.
        batch: Images of a pass.
    """
    machine, is_gpu = machine_name(), device.type == "cuda"
    if is_gpu:
        machine, threads = f"{machine}, {torch.cuda.get_device_name(device)}", None
    elif threads is None:
        threads = torch.get_num_threads()
    return Conditions(engine, str(torch.__version__), device.type, machine, threads, precision, batch)


def engine_of(*, specialised: bool, compiled: bool) -> str:
    """Return the engine of measurements of a form of a network.

    Example:
        >>> engine_of(specialised=True, compiled=False)
        'torch'
    """
    if compiled:
        return COMPILED
    return SPECIALISED if specialised else EAGER


def autocast_precision(device: torch.device) -> str:
    """Return the precision in which a network would run now: ``fp32`` outside ``torch.autocast``."""
    if not torch.is_autocast_enabled(device.type):
        return "fp32"
    return "bf16" if torch.get_autocast_dtype(device.type) == torch.bfloat16 else "fp16"


def measurements_path(weights: Path) -> Path:
    """Return the file of the measurements of a file of weights."""
    return weights.with_name(weights.stem + _SUFFIX)


def known_figures(
    space: DepthSpace,
    network: Network,
    weights: Path | None,
    here: Conditions,
    count_gflops: Callable[[DepthConfig], float],
) -> list[DepthFigures]:
    """Return what is known of the depths among which a budget chooses.

    These are the depths of the depth curve, because their AP is known. Without a curve, they are those of the
    ladder: it loses one part at each step, so that more operations mean more of the network. Any two of the
    other configurations run different parts, and without AP nothing says which one is better. Depths that
    were measured are added.

    Args:
        space: Depth space of the detector.
        network: The detector.
        weights: File of the weights; None: nothing is known but operations.
        here: Conditions under which measurements count.
        count_gflops: Function that counts the GFLOPs of a depth that the curve lacks.

    Raises:
        WeightsError: A file beside the weights is damaged, or of another detector.
    """
    curve = {} if weights is None else _by_config(space, read_curve(weights, network), weights)
    found = {} if weights is None else _by_config(space, read_measurements(weights, network), weights)
    now = {config: one for config, measured in found.items() if (one := newest(measured, here))}
    configs = dict.fromkeys([*(curve or space.ladder()), *now])
    rows = []
    for config in configs:
        ap, gflops = curve.get(config, (None, None))
        measured = now.get(config)
        rows.append(
            DepthFigures(
                str(config),
                count_gflops(config) if gflops is None else gflops,
                ap,
                measured.median_ms if measured else None,
                measured.memory_mb if measured else None,
            )
        )
    return rows


def remedy_for(budget: Budget, network: Network, weights: Path | None, here: Conditions) -> str:
    """Return what to do if the figure that a budget bounds is not known, for a message."""
    if weights is None:
        return "figures are looked for beside the file of the weights: load the detector with anydepth.load"
    if budget.is_lower:
        height, width = network.input_size
        return (
            f"evaluate with `anydepth-evaluate {setting('weights', weights)} depths=ladder` and copy its "
            f"{CURVE} to {weights.parent}; one of another detector, or of another input size than {height}x"
            f"{width}, does not count"
        )
    options = {"engine": here.engine, "device": here.device, "precision": here.precision}
    usual = {"engine": SPECIALISED, "device": "cpu", "precision": "fp32"}
    given = [f" {key}={value}" for key, value in options.items() if value != usual[key]]
    threads = "" if here.threads is None else f" threads={here.threads}"
    measured = {one.conditions for several in read_measurements(weights, network).values() for one in several}
    former = f"; what was measured was under {join_few(sorted(map(str, measured)), 3)}" if measured else ""
    return f"measure it with `anydepth-benchmark {weights}{threads}{''.join(given)}`{former}"


def read_curve(weights: Path, network: Network) -> dict[str, tuple[float | None, float]]:
    """Return AP in [0, 1] and GFLOPs by depth, from the depth curve beside weights.

    Empty if there is none, or one of another detector or input size. AP is None where the images held no
    object.

    Raises:
        WeightsError: The file is damaged.
    """
    path = weights.parent / CURVE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
        if values["detector"] != network.name or tuple(values["input_size"]) != network.input_size:
            return {}
        return {
            str(row["depth"]): (_ap(row["figures"]["AP"]), _finite(row["gflops"])) for row in values["rows"]
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not a depth curve as written by anydepth ({short_repr(error)}); remove it, or evaluate "
            "again"
        ) from error


def read_measurements(weights: Path, network: Network) -> dict[str, tuple[Measurement, ...]]:
    """Return the measurements beside weights by depth; empty if there are none, or those of another network.

    Raises:
        WeightsError: The file is damaged, or of another version.
    """
    path = measurements_path(weights)
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
        if (values["format"], values["format_version"]) != (_FORMAT, _FORMAT_VERSION):
            raise ValueError(f"format {short_repr(values['format'])} {short_repr(values['format_version'])}")
        if values["network"] != network.to_dict():
            return {}
        return {
            str(depth): tuple(map(Measurement.from_dict, measured))
            for depth, measured in values["depths"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not measurements as written by anydepth-benchmark ({short_repr(error)}); remove it and "
            "measure again"
        ) from error


def record_measurements(weights: Path, network: Network, found: Mapping[str, Measurement]) -> Path:
    """Write measurements beside weights; former ones of this network under other conditions are kept.

    Returns:
        The file, which is complete or as it was.

    Raises:
        WeightsError: The file that is there is damaged.
        OSError: It cannot be written.
    """
    depths = {depth: list(measured) for depth, measured in read_measurements(weights, network).items()}
    for depth, measured in found.items():
        depths[depth] = add_measurement(depths.get(depth, []), measured)
    document = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "network": network.to_dict(),
        "depths": {depth: [one.to_dict() for one in measured] for depth, measured in depths.items()},
    }
    path = measurements_path(weights)
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
    return path


def _by_config(space: DepthSpace, values: Mapping[str, Any], weights: Path) -> dict[DepthConfig, Any]:
    """Return values by configuration; those that a specialised detector does not have are left out."""
    is_specialised = len(space.ladder()) == 1 and bool(space.stages)
    found = {}
    for depth, value in values.items():
        try:
            found[space.parse(depth)] = value
        except DepthError as error:
            if not is_specialised:
                raise WeightsError(
                    f"the figures beside {weights} are of another detector ({error}); remove {CURVE} and "
                    f"{measurements_path(weights).name}, and evaluate and measure again"
                ) from error
    return found


def _ap(value: object) -> float | None:
    ap = _finite(value)
    return ap if ap >= 0 else None  # -1: COCO's evaluation found no object


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"got {short_repr(value)}, expected a number")
    return float(value)
