"""Packages of machine code that PyTorch's AOTInductor made, read without PyTorch.

A package is a ZIP archive with a shared library, which has no weights of its own. The export adds one member
that says where the constants lie in the bundle's file of weights, and for which processor and PyTorch the
library was compiled. A bundle may come from a stranger: the table is checked, and the library runs only for a
caller who trusts it.
"""

import json
import platform
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from anydepth.utils.messages import join_few, short_repr

TABLE: Final = "extra/anydepth.json"
"""Name of the member with the table, in the folder of the archive."""
TYPES: Final = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)
"""Types of constants, as PyTorch names them."""

_MAX_TABLE_BYTES: Final = 64 * 2**20
_MAX_AXES: Final = 16
_CPU_INFO: Final = Path("/proc/cpuinfo")
# Instructions that compilers use; other flags say what the operating system knows of the processor.
_INSTRUCTIONS: Final = re.compile(
    r"sse|ssse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|v?aes|v?pclmul|gfni|sha_ni|adx|asimd|sve|fp$|fphp|bf16|i8mm"
)


@dataclass(frozen=True)
class Constant:
    """A tensor that a package takes from the file of weights.

    Attributes:
        name: Name that the package knows it by.
        offset: Position of its first byte.
        length: Number of bytes.
        type: One of :data:`TYPES`.
        size: Lengths of its axes.
        stride: Elements from one position of each axis to the next.
    """

    name: str
    offset: int
    length: int
    type: str
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class PackageTable:
    """Requirements of a package.

    Attributes:
        torch: Version of PyTorch that compiled it, without its build.
        machine: Kind of processor, as ``platform.machine`` names it.
        instructions: Instructions of the processor that compiled it, which the code may use.
        constants: Its constants.
    """

    torch: str
    machine: str
    instructions: tuple[str, ...]
    constants: tuple[Constant, ...]

    def obstacle(self, torch_version: str) -> str | None:
        """Return why this machine cannot run the package, as the end of a sentence; None: it can.

        Args:
            torch_version: Version of PyTorch here.
        """
        here = torch_version.partition("+")[0]
        if here != self.torch:
            return f"it was compiled by PyTorch {self.torch}, and here is {here}"
        if platform.machine() != self.machine:
            return f"it was compiled for processors {self.machine}, and this one is {platform.machine()}"
        missing = sorted(set(self.instructions) - set(processor_instructions()))
        if missing:
            return f"it may use the instructions {join_few(missing, 5)}, which this processor does not have"
        return None


def processor_instructions() -> tuple[str, ...]:
    """Return the instructions of this processor that compilers use, sorted; empty if not known."""
    if not _CPU_INFO.is_file():
        return ()
    text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    words = found[1].split() if found else []
    return tuple(sorted({word for word in words if _INSTRUCTIONS.match(word)}))


def read_table(content: bytes) -> PackageTable:
    """Read the table of a package.

    Args:
        content: Bytes of the ``.pt2`` file.

    Raises:
        ValueError: It is no such package, or its table is damaged.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.partition("/")[2] == TABLE]
            if len(names) != 1 or archive.getinfo(names[0]).file_size > _MAX_TABLE_BYTES:
                raise ValueError(f"expected one member {TABLE} of at most {_MAX_TABLE_BYTES:,} bytes")
            values = json.loads(archive.read(names[0]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"not a complete ZIP archive ({error})") from error
    try:
        return PackageTable(
            torch=_text(values["torch"]),
            machine=_text(values["machine"]),
            instructions=tuple(map(_text, values["instructions"])),
            constants=tuple(map(_parse_constant, values["constants"])),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"its table is damaged ({short_repr(error)})") from error


def _parse_constant(values: Mapping[str, Any]) -> Constant:
    size, stride = tuple(map(_whole, values["size"])), tuple(map(_whole, values["stride"]))
    if values["type"] not in TYPES or len(size) != len(stride) or len(size) > _MAX_AXES:
        raise ValueError(f"got a constant {short_repr(dict(values))} of an unknown type or shape")
    return Constant(
        _text(values["name"]),
        _whole(values["offset"]),
        _whole(values["length"]),
        values["type"],
        size,
        stride,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"got {short_repr(value)}, expected a text")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(f"got {short_repr(value)}, expected a whole number from 0")
    return value
