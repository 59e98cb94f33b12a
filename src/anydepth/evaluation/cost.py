"""What a detector costs at each depth: parameters run, GFLOPs, latency, peak memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from anydepth.depth import DepthConfig
from anydepth.detector import Detector, evaluating
from anydepth.evaluation.device import autocast
from anydepth.layers.macs import count_forward


@dataclass(frozen=True)
class DepthCost:
    """What one forward pass over one image costs, whatever the machine.

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
    """How latency is measured; without it a latency means nothing.

    One measurement is one forward pass (no reading, resizing or post-processing) of a batch of noise that
    lies on the device. Depths take turns, so that a disturbance of the machine hits all of them alike. On a
    GPU the time is taken with CUDA events, and the pass is synchronised; on a CPU it is wall time.

    Attributes:
        device: As PyTorch names it; on a CPU with the number of threads.
        precision: ``fp32``, ``bf16`` or ``fp16``; the latter two by autocast.
        batch_size: Images per forward pass.
        input_size: (height, width) in pixels.
        warmup: Passes per depth that are not counted.
        repetitions: Passes per depth that are.
    """

    device: str
    precision: str
    batch_size: int
    input_size: tuple[int, int]
    warmup: int
    repetitions: int

    def __str__(self) -> str:
        height, width = self.input_size
        return (
            f"{self.device}, {self.precision}, batch {self.batch_size}, {height}x{width} pixels, forward "
            f"pass only, {self.repetitions} repetitions after {self.warmup} warm-up passes, depths in turn"
        )


@dataclass(frozen=True)
class Latency:
    """Time and memory of the forward passes of one depth.

    Attributes:
        median_ms: Milliseconds per batch.
        p90_ms: The 90th percentile of the same.
        peak_memory_mib: Most memory that tensors held during a pass, weights and input included, in MiB; None
            on a CPU, where PyTorch does not count it.
    """

    median_ms: float
    p90_ms: float
    peak_memory_mib: float | None


def count_depth(
    detector: Detector, depth: str | DepthConfig, input_size: tuple[int, int] | None = None
) -> DepthCost:
    """Count what a depth costs, without running it.

    Args:
        detector: On any device; it stays as it is.
        depth: A depth of its space.
        input_size: (height, width) in pixels; left out: the detector's own.
    """
    height, width = input_size or detector.input_size
    images = torch.empty(1, 3, height, width, device="meta")
    count = count_forward(detector, images, depth=detector.depth_space.parse(depth))
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
) -> tuple[list[Latency], LatencyProtocol]:
    """Measure every depth on the device that holds the detector.

    Args:
        detector: Its device is the one that is measured.
        depths: Depths of its space.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: Images per forward pass.
        input_size: (height, width) in pixels; left out: the detector's own.
        warmup: Passes per depth that are not counted.
        repetitions: Passes per depth that are.

    Returns:
        One entry per depth, and how they were measured.

    Raises:
        ValueError: A count below 1 (``warmup``: below 0), or an unknown precision.
    """
    if batch_size < 1 or warmup < 0 or repetitions < 1:
        raise ValueError(
            f"latency: batch_size={batch_size}, warmup={warmup}, repetitions={repetitions}: "
            "allowed are at least 1, 0 and 1"
        )
    device = next(detector.parameters()).device
    size = input_size or detector.input_size
    images = torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(detector), autocast(device, precision):
        for _ in range(warmup):
            for depth in depths:
                detector(images, depth=depth)
        memory = [_peak_memory_mib(detector, images, depth) for depth in depths]
        times = [
            [_time_ms(partial(detector, images, depth=depth), device) for depth in depths]
            for _ in range(repetitions)
        ]
    medians, tails = np.percentile(np.array(times), (50, 90), axis=0)
    protocol = LatencyProtocol(_device_name(device), precision, batch_size, size, warmup, repetitions)
    found = zip(medians, tails, memory, strict=True)
    return [Latency(float(median), float(tail), peak) for median, tail, peak in found], protocol


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


def _peak_memory_mib(detector: Detector, images: Tensor, depth: DepthConfig) -> float | None:
    if images.device.type != "cuda":
        return None
    torch.cuda.synchronize(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    detector(images, depth=depth)
    torch.cuda.synchronize(images.device)
    return torch.cuda.max_memory_allocated(images.device) / 2**20


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
