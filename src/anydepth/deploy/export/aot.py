"""Packages of machine code by AOTInductor, whose weights lie in the file that all depths share."""

import json
import platform
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from anydepth.deploy.export.graph import INPUT, CandidatesOnly, ExportError, standardise_norms
from anydepth.deploy.export.weights_file import WeightsFile
from anydepth.deploy.runtime.package_file import TABLE, processor_instructions
from anydepth.depth import DepthConfig
from anydepth.detector import Detector

_SETTINGS: Final = {
    # The weights of all depths are one file beside the packages.
    "aot_inductor.package_constants_in_so": False,
    # Threads are chosen at each pass, and not for good by the machine that compiles.
    "cpp.dynamic_threads": True,
}


def check_compiler() -> None:
    """Check that this machine can compile packages, before anything is exported.

    Raises:
        ExportError: It has no C++ compiler, or is of a kind whose instructions are not known.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ExportError(
            "format=torch needs a C++ compiler, and there is none: install g++ (`apt install g++`), or name "
            f"one in the variable CXX ({error})"
        ) from error
    if not processor_instructions():
        raise ExportError(
            "format=torch compiles for the processor of this machine, whose instructions are known on Linux "
            "alone; export with format=onnx"
        )


def write_package(
    detector: Detector,
    depth: DepthConfig,
    path: Path,
    weights: WeightsFile,
    *,
    batch: int | None = None,
    grid: int | None = None,
) -> None:
    """Compile the network of one depth, up to the boxes and scores among which detections are selected.

    Args:
        detector: A detector in eval mode on the CPU, whose ``input_size`` the package takes.
        depth: A depth of its space.
        path: ``.pt2`` file to write.
        weights: File of weights beside it; equal tensors of earlier depths are used again.
        batch: Images of a pass; None: any number.
        grid: Side of the grid that feature maps are pooled to; None: they are not returned.

    Raises:
        ExportError: PyTorch cannot compile the network, or only for a fixed number of images.
    """
    specialised = detector.specialise(depth, share_weights=True)
    standardise_norms(specialised)
    network = CandidatesOnly(specialised, depth, grid).eval()
    # Two images: with one, torch would take the batch axis for a constant.
    images = torch.zeros(batch or 2, 3, *detector.input_size)
    axes = None if batch else {INPUT: {0: torch.export.Dim("batch")}}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.pt2"
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(network, (images,), dynamic_shapes=axes)
                _check_batch(program, batch)
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=_SETTINGS
                )
                names = torch._inductor.aoti_load_package(str(package)).get_constant_fqns()
        except ExportError:
            raise
        except Exception as error:  # torch.export and compilers raise errors of many kinds
            raise ExportError(f"depth {depth}: AOTInductor cannot compile the network: {error}") from error
        tensors = {**program.state_dict, **program.constants}
        table = {
            "torch": str(torch.__version__).partition("+")[0],
            "machine": platform.machine(),
            "instructions": list(processor_instructions()),
            "constants": [_store(name, tensors[name], weights) for name in sorted(names)],
        }
        _finish(package, path, table)


def _check_batch(program: torch.export.ExportedProgram, batch: int | None) -> None:
    """Refuse a fixed number of images where any was asked for: torch may fix it without a word."""
    (images,) = [node for node in program.graph.nodes if node.op == "placeholder" and node.name == INPUT]
    first = images.meta["val"].shape[0]
    if isinstance(first, int) != (batch is not None):
        raise ExportError(
            f"{INPUT} came out with {first} images, expected {batch or 'any number'}; give batch=1 to export "
            "for a fixed number of images"
        )


def _store(name: str, tensor: Tensor, weights: WeightsFile) -> dict[str, Any]:
    """Store a tensor in its own layout, and return its entry of the table."""
    dense = tensor.detach()
    size, stride = tuple(dense.shape), dense.stride()
    # Its elements in the order in which they lie in memory.
    order = sorted(range(dense.ndim), key=lambda axis: (-stride[axis], axis))
    flat = dense.permute(order)
    if not flat.is_contiguous():
        raise ExportError(f"the constant {name} has gaps in memory: strides {stride} of {size}")
    offset, length = weights.store(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "name": name,
        "offset": offset,
        "length": length,
        "type": str(dense.dtype).removeprefix("torch."),
        "size": list(size),
        "stride": list(stride),
    }


def _finish(package: Path, path: Path, table: dict[str, Any]) -> None:
    """Write the package without its source code, which names folders of this machine, and with the table."""
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(path, "w") as target:
        members = source.infolist()
        for member in members:
            if not member.filename.endswith(".cpp"):
                with source.open(member) as content, target.open(member.filename, "w") as copy:
                    shutil.copyfileobj(content, copy)
        root = members[0].filename.partition("/")[0]
        target.writestr(f"{root}/{TABLE}", json.dumps(table))
