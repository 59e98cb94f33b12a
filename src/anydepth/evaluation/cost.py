"""Cost of a detector at each depth: parameters run, GFLOPs, latency, peak memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from anydepth.depth import DepthConfig
from anydepth.detector import Detector, compile_depth, evaluating
from anydepth.evaluation.device import autocast
from anydepth.layers.macs import count_forward


@dataclass(frozen=True)
class DepthCost:
    """Machine-independent cost of one forward pass over one image.

    Attributes:
        macs: Multiply-accumulates of convolutions, matrix products and attention; see
            :class:`anydepth.layers.macs.ForwardCount` for what is left out.
        parameters_run: Parameters that at least one operation of the pass reads.
    """

    macs: int
    parameters_run: int

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations: 2 x MACs."""
        return 2 * self.macs / 1e9


@dataclass(frozen=True)
class LatencyProtocol:
    """Conditions under which latency was measured; a latency is meaningless without them.

    One measurement is one forward pass (no reading, resizing or post-processing) of a batch of noise that is
    already on the device. Depths take turns, so that a disturbance of the machine affects all of them alike.
    On a GPU, time is measured with CUDA events and a synchronisation; on a CPU, it is wall time.

    Attributes:
        device: Device name as PyTorch reports it; on a CPU with the number of threads.
        precision: ``fp32``, ``bf16`` or ``fp16``; the latter two by autocast.
        batch_size: Images per forward pass.
        input_size: (height, width) in pixels.
        warmup: Untimed passes per depth.
        repetitions: Timed passes per depth.
        specialised: Whether each depth ran as a network of its own, see
            :meth:`anydepth.detector.Detector.specialise`.
        compiled: Whether it was compiled, too, see :func:`anydepth.detector.compile_depth`.
    """

    device: str
    precision: str
    batch_size: int
    input_size: tuple[int, int]
    warmup: int
    repetitions: int
    specialised: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        height, width = self.input_size
        return (
            f"{self.device}, {self.precision}, batch {self.batch_size}, {height}x{width} pixels, forward "
            f"pass only, {self.repetitions} repetitions after {self.warmup} warm-up passes, depths in turn"
            f"{', each specialised' if self.specialised else ''}"
            f"{' and compiled' if self.compiled else ''}"
        )


@dataclass(frozen=True)
class Latency:
    """Time and memory of the forward passes of one depth.

    Attributes:
        median_ms: Median time per batch in milliseconds.
        p90_ms: 90th percentile of the time per batch in milliseconds.
        peak_memory_mib: Peak memory of tensors during a pass, weights and input included, in MiB; None on a
            CPU, where PyTorch does not count it.
    """

    median_ms: float
    p90_ms: float
    peak_memory_mib: float | None


def count_depth(
    detector: Detector, depth: str | DepthConfig, input_size: tuple[int, int] | None = None
) -> DepthCost:
    """Count the cost of a depth on the meta device, without running it.

    Args:
        detector: Detector on any device; it is not changed.
        depth: Depth of its depth space.
        input_size: (height, width) in pixels; defaults to that of the detector.
    """
    height, width = input_size or detector.input_size
    images = torch.empty(1, 3, height, width, device="meta")
    count = count_forward(detector, images, depth=detector.resolve(depth))
    return DepthCost(count.macs, count.parameters)


def measure_latency(
    detector: Detector,
    depths: Sequence[DepthConfig],
    *,
    precision: str = "fp32",
    batch_size: int = 1,
    input_size: tuple[int, int] | None = None,
    warmup: int = 3,
    repetitions: int = 20,
    specialised: bool = False,
    compiled: bool = False,
) -> tuple[list[Latency], LatencyProtocol]:
    """Measure the latency of every depth on the device of the detector.

    Args:
        detector: Detector on the device to measure.
        depths: Depths of its depth space.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: Images per forward pass.
        input_size: (height, width) in pixels; defaults to that of the detector.
        warmup: Untimed passes per depth.
        repetitions: Timed passes per depth.
        specialised: Whether to measure the network that each depth is specialised to; memory holds all of
            them.
        compiled: Whether this network is compiled by ``torch.compile`` as well; compilation is not timed.

    Returns:
        One entry per depth, and the protocol of the measurement.

    Raises:
        ValueError: A count below 1 (``warmup``: below 0), or an unknown precision.
    """
    if batch_size < 1 or warmup < 0 or repetitions < 1:
        raise ValueError(
            f"latency: got batch_size={batch_size}, warmup={warmup}, repetitions={repetitions}, "
            "expected at least 1, 0 and 1"
        )
    device = next(detector.parameters()).device
    size = input_size or detector.input_size
    images = torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(detector) as network, autocast(device, precision):
        networks = networks_of(network, depths, specialised=specialised, compiled=compiled)
        runs = [partial(one, images, depth=depth) for one, depth in zip(networks, depths, strict=True)]
        for _ in range(max(warmup, int(compiled))):  # The first pass compiles.
            for run in runs:
                run()
        memory = [_peak_memory_mib(run, device) for run in runs]
        times = [[_time_ms(run, device) for run in runs] for _ in range(repetitions)]  # [repetitions, depths]
    medians, tails = np.percentile(np.array(times), (50, 90), axis=0)
    protocol = LatencyProtocol(
        _device_name(device),
        precision,
        batch_size,
        size,
        warmup,
        repetitions,
        specialised or compiled,
        compiled,
    )
    measured = zip(medians, tails, memory, strict=True)
    return [Latency(float(median), float(tail), peak) for median, tail, peak in measured], protocol


def networks_of(
    detector: Detector, depths: Sequence[DepthConfig], *, specialised: bool, compiled: bool = False
) -> list[Detector]:
    """Return what runs each depth: the detector itself, or a network of its own for each depth."""
    if compiled:
        return [compile_depth(detector, depth) for depth in depths]
    return [detector.specialise(depth) if specialised else detector for depth in depths]


def _time_ms(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    begin, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _peak_memory_mib(run: Callable[[], object], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
