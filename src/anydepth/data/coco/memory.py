"""Memory that processes share, and memory that goes back to the system."""

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

_ALIGNMENT = 64

_Layout = dict[str, tuple[str, tuple[int, ...], int]]
"""Type, shape and offset in bytes of each array."""


class SharedArrays:
    """Named read-only arrays in one block of memory, of which worker processes keep no copy.

    Forked workers inherit the block; workers that start afresh ("spawn", "forkserver") are handed it when
    they are started. It is a file without a name, in memory where the system has such files: it does not
    count against /dev/shm, and nothing is left of it however the processes end. Pickled for another purpose
    (a file, a queue, a copy), and on Windows, the arrays go by value.

    Args:
        descriptor: The open file that is the block; this object closes it.
        layout: Where each array lies in it.

    Attributes:
        arrays: By name.
        nbytes: Size of all arrays together.
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
        descriptor = _nameless_file()
        layout: _Layout = {}
        with open(descriptor, "wb", closefd=False) as file:
            for name, array in arrays.items():
                layout[name] = (array.dtype.str, array.shape, file.tell())
                file.write(np.ascontiguousarray(array).data)
                # At least one byte follows, because a file without any cannot be mapped.
                file.write(bytes(_ALIGNMENT - file.tell() % _ALIGNMENT))
        return cls(descriptor, layout)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None or os.name == "nt":
            return SharedArrays.of, (self.arrays,)
        return _attach, (DupFd(self._descriptor), self._layout)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) would keep it."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("anydepth")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _attach(handle: Any, layout: _Layout) -> SharedArrays:
    return SharedArrays(handle.detach(), layout)
