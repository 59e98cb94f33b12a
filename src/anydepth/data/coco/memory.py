"""Arrays in memory shared by processes, and the release of freed memory to the system."""

import ctypes
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64  # Bytes of a cache line, which also suits every vector instruction.

_Layout = dict[str, tuple[str, tuple[int, ...], int]]
"""Type, shape and offset in bytes of each array."""


class SharedArrays:
    """Named read-only arrays in one block of memory that worker processes share without a copy.

    Forked workers inherit the block; workers with the start methods "spawn" and "forkserver" receive its file
    descriptor. The block is an anonymous file, in memory if the system supports that: it does not count
    against /dev/shm, and it vanishes however the processes end. When pickled for another purpose (a file, a
    queue, a copy), and on Windows, the arrays are copied by value.

    Args:
        descriptor: Descriptor of the anonymous file; this object closes it.
        layout: Layout of the arrays in the file.

    Attributes:
        arrays: Arrays by name.
        nbytes: Size of all arrays together, in bytes.
    """

    def __init__(self, descriptor: int, layout: _Layout) -> None:
        self._descriptor = descriptor
        self._layout = layout
        weakref.finalize(self, os.close, descriptor)
        memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.ndarray(shape, dtype, buffer=memory, offset=offset)
            for name, (dtype, shape, offset) in layout.items()
        }
        self.nbytes = sum(array.nbytes for array in self.arrays.values())

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> "SharedArrays":
        """Copy arrays into a new block."""
        descriptor = _anonymous_file()
        layout: _Layout = {}
        with open(descriptor, "wb", closefd=False) as file:
            for name, array in arrays.items():
                layout[name] = (array.dtype.str, array.shape, file.tell())
                file.write(np.ascontiguousarray(array).data)
                # At least one byte of padding, because an empty file cannot be mapped.
                file.write(bytes(_ALIGNMENT - file.tell() % _ALIGNMENT))
        return cls(descriptor, layout)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None or os.name == "nt":
            return SharedArrays.of, (self.arrays,)
        return _attach, (DupFd(self._descriptor), self._layout)


def release_freed_memory() -> None:
    """Release freed memory to the system if the C library (glibc) would keep it."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("anydepth")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _attach(handle: Any, layout: _Layout) -> SharedArrays:
    return SharedArrays(handle.detach(), layout)
