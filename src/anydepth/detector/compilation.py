"""``torch.compile`` of the network of one depth."""

from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from anydepth.depth import DepthConfig
from anydepth.detector.contract import Detector
from anydepth.layers.mode import copy_for_eval

BACKEND: Final = "inductor"
"""Backend of ``torch.compile`` that makes machine code; others trace alone, for tests."""

DetectorT = TypeVar("DetectorT", bound=Detector)


class CompilationError(ValueError):
    """``torch.compile`` cannot compile a network; the message says why."""


def compile_depth(
    detector: DetectorT, depth: str | DepthConfig = "full", *, backend: str | None = None
) -> DetectorT:
    """Return the network of one depth, compiled by ``torch.compile``.

    Compilation happens at the first pass and takes up to some minutes: once for passes of one image, and once
    for passes of several, however many. Another input size is compiled again.

    Args:
        detector: A detector; it is not changed.
        depth: A depth of its space, or a budget, see :meth:`anydepth.detector.Detector.resolve`.
        backend: A backend of ``torch.compile``; None: :data:`BACKEND`.

    Returns:
        A detector of this depth alone, in eval mode on the same device, with results that are equal to
        rounding. It runs within ``torch.inference_mode``, as :meth:`anydepth.detector.Detector.predict` does.

    Raises:
        DepthError: As :meth:`anydepth.detector.Detector.specialise`. The first pass raises
            :class:`CompilationError` if there is no C++ compiler, or the network cannot be compiled.

    Example:
        >>> import anydepth
        >>> from anydepth.detector import compile_depth
        >>> detector = anydepth.build("yolo_tiny", num_classes=2)
        >>> fast = compile_depth(detector, "minimal", backend="eager")
        >>> fast.compiled, str(fast.specialised_for), detector.compiled
        (True, 'minimal', False)
    """
    config = detector.resolve(depth, specialised=True, compiled=True)
    # A copy: a detector that is specialised already stays as it is.
    network = copy_for_eval(detector.specialise(config))
    network._compiled_call_impl = _compiled_call(network, config, backend or BACKEND)
    return network


def _compiled_call(network: Detector, config: DepthConfig, backend: str) -> Callable[..., Any]:
    """Return what a call of the network runs."""

    def run(images: Tensor) -> object:
        # With the hooks of the network, and without what calls this function.
        return network._call_impl(images, depth=config)  # type: ignore[no-untyped-call]

    # Without Inductor's freezing of weights, which made no difference on a CPU (0.97 to 1.01).
    program = torch.compile(_with_own_code(run), backend=backend, fullgraph=True)

    def call(images: Tensor, depth: str | DepthConfig = "full", *_: object, **__: object) -> object:
        # What the arguments say that are left out is known (the stem), or for training alone.
        network.depth_space.parse(depth)
        if images.ndim == 4 and len(images) > 1:
            # Or each other number of images would be compiled again.
            torch._dynamo.maybe_mark_dynamic(images, 0)
        try:
            return program(images)
        except torch.OutOfMemoryError:  # A RuntimeError, too, which says nothing about compilers.
            raise
        except RuntimeError as error:
            run(images)  # Raises what is wrong with the images, if anything is.
            raise CompilationError(
                f"torch.compile cannot compile depth {config} ({_summary(error)}); it needs a C++ "
                "compiler such as g++ (`apt install g++`), or one that the variable CXX names; or do "
                "without: Detector.specialise, or engine=torch"
            ) from error

    return call


def _with_own_code(function: FunctionType | Callable[..., Any]) -> Callable[..., Any]:
    """Return an equal function with a code object of its own.

    PyTorch keeps what it compiled with the code object, and gives up after eight forms: depths that have one
    in common would end there, as would the ladder of a network.
    """
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def _summary(error: Exception) -> str:
    """Return the first two lines of an error: which part of PyTorch failed, and with what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
