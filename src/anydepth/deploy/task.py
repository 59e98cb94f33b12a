"""The task of a prediction: a detector in PyTorch or that of a bundle, behind one interface."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from anydepth.budget import parse_budget
from anydepth.deploy.runtime.bundle import DESCRIPTION
from anydepth.deploy.runtime.detector import DeployedDetector, load
from anydepth.deploy.runtime.engines import ENGINES
from anydepth.depth import DepthConfig
from anydepth.detections import BaseDetections
from anydepth.detector import Detector, compile_depth
from anydepth.evaluation.device import autocast
from anydepth.utils.arguments import check_threads
from anydepth.weights.figures import COMPILED, SPECIALISED

# From so many images, a specialised detector pays: making it takes as long as one to four passes on a CPU,
# and it saves a fifth to a third of each.
_SPECIALISE_FROM = 8


AUTO: Final = "auto"
"""Engine or device that suits what is given: PyTorch for weights, ONNX Runtime on the CPU for a bundle."""


class Task(ABC):
    """A detector at one depth.

    Attributes:
        depth: The depth.
        class_names: One name per class.
        detector: What detects.
    """

    depth: DepthConfig
    class_names: tuple[str, ...]
    detector: Detector | DeployedDetector

    @abstractmethod
    def detect(
        self, images: Sequence[Tensor], threshold: float, batch_size: int
    ) -> Sequence[BaseDetections[Any]]:
        """Return the detections of images [3, H, W] uint8 RGB of any size."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Return what else the detections depend on, as plain values."""

    def prepare(self, images: int | None) -> "Task":
        """Return the task for so many images (None: a video), which may be faster for many."""
        return self


class TorchTask(Task):
    """A detector in PyTorch.

    Args:
        detector: Detector on its device.
        depth: Depth or budget. Latency and memory are bounded as those of the specialised network.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        compiled: Whether :meth:`prepare` compiles the network of the depth, however few the images are.

    Raises:
        DepthError: A depth that does not exist, or nothing is within the budget.
    """

    detector: Detector

    def __init__(
        self,
        detector: Detector,
        depth: str | DepthConfig,
        precision: str = "fp32",
        *,
        compiled: bool = False,
    ) -> None:
        self.detector = detector
        self.precision = precision
        self._compiled = compiled
        self._device = next(detector.parameters()).device
        budget = parse_budget(depth)
        self._must_specialise = budget is not None and budget.unit in ("ms", "mb")
        with autocast(self._device, precision):
            self.depth = detector.resolve(depth, specialised=True, compiled=compiled)
        self.class_names = detector.class_names

    def detect(
        self, images: Sequence[Tensor], threshold: float, batch_size: int
    ) -> Sequence[BaseDetections[Any]]:
        """Return the detections of images [3, H, W] uint8 RGB of any size."""
        with autocast(self._device, self.precision):
            return self.detector.predict(images, self.depth, threshold, batch_size)

    def identity(self) -> dict[str, object]:
        """Return the hash of the weights, and the precision."""
        assert self.detector.weights_file is not None, "anydepth.load sets it"
        return {"weights": _sha256(self.detector.weights_file.read_bytes()), "precision": self.precision}

    def prepare(self, images: int | None) -> Task:
        """Return the task with the network of its depth alone, for many images."""
        if self._compiled:
            return TorchTask(compile_depth(self.detector, self.depth), self.depth, self.precision)
        if images is None or images >= _SPECIALISE_FROM or self._must_specialise:
            return TorchTask(self.detector.specialise(self.depth), self.depth, self.precision)
        return self


class BundleTask(Task):
    """The detector of a bundle in an engine.

    Args:
        detector: The detector.
        depth: Depth of the bundle, or budget.
        options: What else the detections depend on, as plain values.

    Raises:
        DepthError: The depth was not exported, or nothing is within the budget.
    """

    detector: DeployedDetector

    def __init__(self, detector: DeployedDetector, depth: str | DepthConfig, **options: object) -> None:
        self.detector = detector
        self.depth = detector.resolve(depth).config
        self.class_names = detector.class_names
        self._options = options

    def detect(
        self, images: Sequence[Tensor], threshold: float, batch_size: int
    ) -> Sequence[BaseDetections[Any]]:
        """Return the detections of images [3, H, W] uint8 RGB of any size."""
        pictures = [image.permute(1, 2, 0).numpy() for image in images]
        return self.detector.predict(pictures, self.depth, threshold, batch_size)

    def identity(self) -> dict[str, object]:
        """Return the hash of what the bundle describes, the engine and its options."""
        return {"weights": _bundle_hash(self.detector.bundle.folder), "engine": self.detector.engine} | (
            self._options
        )


def open_bundle(
    path: Path, *, engine: str, device: str, precision: str, threads: int | None, trust_code: bool = False
) -> DeployedDetector:
    """Load the detector of a bundle for a command that also takes weights.

    Args:
        path: Folder of the bundle.
        engine: An engine of bundles, or ``auto`` for the one of the bundle's format.
        device: ``auto`` for the CPU, or a device of the engine.
        precision: ``fp32``, or ``auto`` for what the engine chooses.
        threads: Threads of one pass on a CPU; None: as many as the engine chooses.
        trust_code: Whether machine code in the bundle may run.

    Raises:
        ValueError: Anything of these that cannot be used.
    """
    if engine in (SPECIALISED, COMPILED):
        raise ValueError(f"engine={engine}: {path} is a bundle; allowed are {', '.join(ENGINES)}")
    return load(
        path,
        engine=engine,
        device="cpu" if device == AUTO else device,
        precision=precision,
        threads=threads,
        trust_code=trust_code,
    )


def check_weights_engine(path: Path, engine: str) -> None:
    """Check the engine of a command that got a file of weights.

    Raises:
        ValueError: It runs bundles alone, or is unknown.
    """
    if engine not in (AUTO, SPECIALISED, COMPILED):
        raise ValueError(
            f"engine={engine}: {path} is a file of weights, which run in PyTorch; give engine=auto, "
            "engine=compile, or a "
            "bundle that anydepth-export made of them"
        )


@contextmanager
def limited_threads(number: int | None) -> Iterator[None]:
    """Within the block, PyTorch runs operations on a CPU in so many threads; None: in as many as before.

    Raises:
        ValueError: A number below 1, or one that is too large.
    """
    former = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(check_threads(number))
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _bundle_hash(folder: Path) -> str:
    """Return a hash of a bundle that stays if it is measured or evaluated."""
    description = json.loads((folder / DESCRIPTION).read_bytes())
    for entry in description["depths"]:
        entry |= {"measurements": [], "figures": {}}
    return _sha256(json.dumps(description, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
