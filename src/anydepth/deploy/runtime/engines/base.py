"""The interface of inference engines, and their options."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anydepth.utils.arguments import check_threads
from anydepth.utils.messages import join_few

OUTPUTS: Final = ("boxes", "scores")
"""Names of the outputs of a graph that ends at the candidates."""
SELECTED_OUTPUTS: Final = ("boxes", "scores", "labels", "counts")
"""Names of the outputs of a graph that selects detections."""
FEATURES: Final[Mapping[str, str]] = MappingProxyType(
    {"backbone": "backbone_features", "neck": "neck_features"}
)
"""Names of the last outputs of a graph that returns pooled feature maps, by the part that they are of."""
THRESHOLD: Final = "threshold"
"""Name of the last input of a graph that selects detections: the lowest score, a number without axes."""
DEPTH: Final = "depth"
"""Name of the second input of a graph of several depths: a number without axes."""


class EngineError(ValueError):
    """An engine is missing, or cannot do what was asked; the message says what to change."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs graphs.

    Attributes:
        device: ``cpu``, or a device that the engine knows, such as ``cuda``.
        threads: Threads of one pass on a CPU; None: as many as the engine chooses.
        precision: ``fp32``; or ``auto``, with which OpenVINO computes in bfloat16 or half precision where the
            processor has it.
        trust_code: Whether machine code in a bundle may run, see :func:`check_trust`.

    Raises:
        EngineError: A number of threads that is none or too large, or an unknown precision.
    """

    device: str = "cpu"
    threads: int | None = None
    precision: str = "fp32"
    trust_code: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None:
            try:
                check_threads(self.threads)
            except ValueError as error:
                raise EngineError(str(error)) from None
        if self.precision not in ("fp32", "auto"):
            raise EngineError(f"got precision={self.precision!r}, expected fp32 or auto")


class Session(ABC):
    """A graph that is open in an engine; several threads may run it at once."""

    @abstractmethod
    def run(
        self, images: NDArray[np.float32], number: int | None = None, threshold: float | None = None
    ) -> tuple[NDArray[Any], ...]:
        """Run the graph.

        Args:
            images: [B, 3, H, W].
            number: Number of the depth in a graph of several depths, else None.
            threshold: Lowest score of a graph that selects detections, else None.

        Returns:
            Its outputs :data:`OUTPUTS`, or :data:`SELECTED_OUTPUTS` of a graph that selects detections; then
            :data:`FEATURES`, if it returns feature maps.

        Raises:
            EngineError: The engine cannot run it, as when memory is short.
        """


def output_names(*, selects: bool, features: bool = False) -> tuple[str, ...]:
    """Return the names of the outputs of a graph.

    Args:
        selects: Whether it selects detections, or ends at the candidates.
        features: Whether it returns feature maps, too.
    """
    return (*(SELECTED_OUTPUTS if selects else OUTPUTS), *(FEATURES.values() if features else ()))


def check_trust(place: Path, options: EngineOptions) -> None:
    """Check that the caller trusts the code of a bundle of ``format=torch``.

    Args:
        place: The bundle or its package.
        options: Options of the caller.

    Raises:
        EngineError: The caller did not say so.
    """
    if options.trust_code is not True:
        raise EngineError(
            f"{place}: holds machine code (format=torch), which can do on this machine whatever you can; if "
            "you made the bundle, or trust who made it, say so with trust_code=true (trust_code=True in "
            "Python); bundles of format=onnx or openvino hold no code"
        )


def check_inputs(names: Sequence[str], graph: Path, *, several_depths: bool, selects: bool = False) -> None:
    """Check the inputs of a graph.

    Raises:
        EngineError: They are others than the images, then :data:`DEPTH` in a graph of several depths, and
            :data:`THRESHOLD` in one that selects detections.
    """
    expected = [*([DEPTH] if several_depths else []), *([THRESHOLD] if selects else [])]
    if list(names[1:]) != expected or not names:
        kind = "several depths" if several_depths else "one depth"
        raise EngineError(
            f"{graph}: got the inputs {join_few(names)} of a graph of {kind}, expected "
            f"{' and '.join(['images', *expected])}; export the bundle again"
        )


def check_outputs(
    names: Sequence[str], graph: Path, *, selects: bool = False, features: bool = False
) -> None:
    """Check the names of the outputs of a graph.

    Raises:
        EngineError: They are others than :func:`output_names`.
    """
    expected = output_names(selects=selects, features=features)
    if set(names) != set(expected):
        raise EngineError(
            f"{graph}: got the outputs {join_few(names)}, expected {' and '.join(expected)}; export the "
            "bundle again"
        )
