"""Packages of machine code that PyTorch's AOTInductor made; the only engine that needs PyTorch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anydepth.deploy.runtime.bundle import WEIGHTS
from anydepth.deploy.runtime.engines.base import OUTPUTS, EngineError, EngineOptions, Session, check_trust
from anydepth.deploy.runtime.package_file import Constant, read_table


class AotInductorSession(Session):
    """A package that is loaded; passes of several threads run one after another.

    Args:
        model: What PyTorch loaded.
        constants: Its weights, which it does not keep itself.
        threads: Threads of a pass; None: as many as PyTorch uses.
    """

    def __init__(self, model: Any, constants: dict[str, torch.Tensor], threads: int | None) -> None:
        self._model, self._constants, self._threads = model, constants, threads

    def run(
        self, images: NDArray[np.float32], number: int | None = None, threshold: float | None = None
    ) -> tuple[NDArray[Any], ...]:
        """Run the package on images [B, 3, H, W], see :meth:`Session.run`."""
        # PyTorch keeps the number for each thread of a program.
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            # Copied: the code takes images to be contiguous.
            outputs = self._model(torch.from_numpy(np.array(images, order="C")))
        except RuntimeError as error:
            raise EngineError(f"AOTInductor failed on {len(images)} images: {error}") from error
        return tuple(output.numpy() for output in outputs)


def open_session(
    graph: Path,
    options: EngineOptions,
    *,
    several_depths: bool = False,
    selects: bool = False,
    features: bool = False,
) -> AotInductorSession:
    """Load a package, see :func:`anydepth.deploy.runtime.engines.open_session`.

    Raises:
        EngineError: The caller does not trust the code, an unknown device, or a package that was compiled for
            another PyTorch or processor, or that cannot be loaded.
    """
    check_device(options.device)
    check_trust(graph, options)
    if several_depths or selects:
        raise EngineError(f"{graph}: got a package, which has one depth and the outputs {', '.join(OUTPUTS)}")
    try:
        table = read_table(graph.read_bytes())
    except (OSError, ValueError) as error:
        raise EngineError(f"{graph}: not a readable package ({error}); export the bundle again") from error
    obstacle = table.obstacle(str(torch.__version__))
    if obstacle:
        raise EngineError(
            f"{graph}: cannot run here, because {obstacle}; export the weights again here with "
            "format=torch, or with format=onnx for any machine"
        )
    try:
        with _without_warnings():
            model = torch._inductor.aoti_load_package(str(graph))
        constants = _read_constants(graph.with_name(WEIGHTS), table.constants)
        model.load_constants(constants, check_full_update=True, user_managed=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"{graph}: PyTorch cannot load the package: {error}") from error
    return AotInductorSession(model, constants, options.threads)


def check_device(device: str) -> None:
    """Check that a device can be used.

    Raises:
        EngineError: It is not the CPU, for which packages are compiled.
    """
    if device != "cpu":
        raise EngineError(f"got device={device!r}, expected cpu for aotinductor")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep PyTorch's loader from warnings within the block.

    Where there is no C++ compiler, which loading does not need, PyTorch 2.15.0 calls the package outdated and
    loads it all the same.
    """
    log = logging.getLogger("torch._inductor.package.package")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _read_constants(path: Path, constants: tuple[Constant, ...]) -> dict[str, torch.Tensor]:
    """Return tensors that lie in the file, which the system reads as they are used.

    Raises:
        ValueError: A tensor would reach beyond its bytes.
    """
    content = torch.from_numpy(np.memmap(path, np.uint8, mode="c"))
    return {one.name: _view(content, one) for one in constants}


def _view(content: torch.Tensor, one: Constant) -> torch.Tensor:
    kind = getattr(torch, one.type)
    last = sum((length - 1) * step for length, step in zip(one.size, one.stride, strict=True))
    if 0 in one.size or (last + 1) * kind.itemsize > one.length or one.length % kind.itemsize:
        raise ValueError(f"the constant {one.name[:100]!r} is larger than its {one.length:,} bytes")
    values = content[one.offset : one.offset + one.length].view(kind)
    return values.as_strided(one.size, one.stride)
