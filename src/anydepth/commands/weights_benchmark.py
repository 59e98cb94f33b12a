"""Latency, throughput and memory of the depths of a file of weights in PyTorch on this machine.

Each depth runs as a network of its own (engine ``torch``, see :meth:`anydepth.detector.Detector.specialise`;
engine ``compile``: compiled as well, see :func:`anydepth.detector.compile_depth`), or all run in the detector
itself (engine ``eager``). The protocol is that of bundles.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from anydepth import zoo
from anydepth.budget import DepthFigures
from anydepth.deploy.runtime.benchmark import Protocol, measure_memory, noise, summarize, time_in_turns
from anydepth.deploy.runtime.engines.base import EngineError
from anydepth.deploy.runtime.memory import peak_memory_mb
from anydepth.depth import DepthConfig
from anydepth.detector import Detector, compile_depth, evaluating
from anydepth.evaluation.cost import count_depth, networks_of
from anydepth.evaluation.device import autocast, resolve_device
from anydepth.measurement import Measurement
from anydepth.utils.arguments import check_threads
from anydepth.weights.figures import (
    COMPILED,
    EAGER,
    SPECIALISED,
    conditions_here,
    read_curve,
    record_measurements,
)

ENGINES: Final = (SPECIALISED, EAGER, COMPILED)
_PASSES: Final = 3


def measure_weights(
    detector: Detector,
    depths: Sequence[str | DepthConfig],
    engine: str,
    precision: str,
    protocol: Protocol,
    on_failure: Callable[[str], object] = warnings.warn,
) -> dict[str, Measurement]:
    """Measure depths of a detector that was loaded from a file.

    Args:
        detector: Detector on the device to measure.
        depths: Depths of its depth space, or ``ladder`` or ``all``.
        engine: ``torch``, ``eager`` or ``compile``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        protocol: How to measure. Memory is the peak of a process that loads the file, and then specialises
            the depth if the engine is ``torch``, or compiles it; on a GPU, that of the tensors there.
        on_failure: Function that gets a sentence if the memory of a depth cannot be measured.

    Returns:
        The measurements by the text of the depth.

    Raises:
        DepthError: A depth that does not exist.
        EngineError: Another engine.
        ValueError: An unknown precision.
    """
    if engine not in ENGINES:
        raise EngineError(
            f"got engine={engine!r} for weights, expected {', '.join(ENGINES)}; other engines run bundles, "
            "which anydepth-export makes of weights"
        )
    device = next(detector.parameters()).device
    configs = detector.depth_space.parse_list(depths)
    names = [str(config) for config in configs]
    with evaluating(detector) as network, autocast(device, precision):
        networks = networks_of(
            network, configs, specialised=engine == SPECIALISED, compiled=engine == COMPILED
        )
        images = torch.from_numpy(noise(protocol.batch, detector.input_size)).to(device)
        runs = [partial(_run, one, images, depth) for one, depth in zip(networks, configs, strict=True)]
        times = time_in_turns(dict(zip(names, runs, strict=True)), protocol)
    conditions = conditions_here(engine, device, precision, batch=protocol.batch)
    request = {
        "weights": str(detector.weights_file),
        "device": str(device),
        **{name: getattr(conditions, name) for name in ("engine", "precision", "threads", "batch")},
    }
    memory = measure_memory(
        "anydepth.commands.weights_benchmark", request, names if protocol.memory else (), on_failure
    )
    return {name: summarize(times[name], conditions, memory.get(name)) for name in names}


def load_to_measure(weights: Path, device: str, threads: int | None) -> Detector:
    """Load a detector on the device of a benchmark; PyTorch has so many threads afterwards.

    Raises:
        ValueError: A file, a device or a number of threads that cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    return zoo.load(weights).to(resolve_device(device))


def figures_of(detector: Detector, found: Mapping[str, Measurement]) -> list[DepthFigures]:
    """Return what is known of the depths that were measured, with the AP in the depth curve."""
    assert detector.weights_file is not None, "load_to_measure reads it"
    curve = read_curve(detector.weights_file, detector.measured_network)
    space = detector.depth_space
    known = {space.parse(depth): ap for depth, (ap, _) in curve.items()}
    return [
        DepthFigures(
            depth,
            count_depth(detector, depth).gflops,
            known.get(space.parse(depth)),
            measured.median_ms,
            measured.memory_mb,
        )
        for depth, measured in found.items()
    ]


def record(detector: Detector, found: Mapping[str, Measurement]) -> Path:
    """Write measurements beside the weights, and return the file.

    Raises:
        WeightsError: The file that is there is damaged.
        OSError: It cannot be written.
    """
    assert detector.weights_file is not None, "load_to_measure reads it"
    return record_measurements(detector.weights_file, detector.measured_network, found)


def _run(network: Detector, images: Tensor, depth: DepthConfig) -> None:
    """Run what the graphs of a bundle hold: the network, up to boxes and scores."""
    output = network(images, depth=depth)
    if network.selection is not None:
        network.candidates(output)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def main() -> None:
    """Print what one depth adds to the peak memory of a process that has imported PyTorch, as JSON."""
    request = json.loads(sys.argv[1])
    before = peak_memory_mb()
    detector = load_to_measure(Path(request["weights"]), request["device"], request["threads"])
    device = next(detector.parameters()).device
    depth = detector.depth_space.parse(request["depth"])
    if request["engine"] == SPECIALISED:
        detector = detector.specialise(depth)
    elif request["engine"] == COMPILED:
        detector = compile_depth(detector, depth)
    images = torch.from_numpy(noise(request["batch"], detector.input_size)).to(device)
    with evaluating(detector) as network, autocast(device, request["precision"]):
        for _ in range(_PASSES):
            _run(network, images, depth)
    after = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory_mb()
    before = 0.0 if device.type == "cuda" else before
    print(json.dumps(None if before is None or after is None else round(after - before, 1)))


if __name__ == "__main__":
    main()
