"""One file of weights for the graphs of all depths: each content is stored once."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import onnx_ir as ir

# Tensors from this size begin at a page of memory, so that systems can map them; padding hundreds of vectors
# of norms to whole pages would add 2 % to the file of a large detector and a fifth to that of a small one.
_LARGE: Final = 64 * 2**10
_PAGE, _LINE = 4096, 64
# Smaller tensors stay in the graph: shapes and scalars, which engines read before they open other files.
_SMALLEST: Final = 256


class WeightsFile:
    """A file of tensors that is being written.

    Args:
        file: File opened for writing bytes.
        name: Its name, as graphs refer to it.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._places: dict[bytes, tuple[int, int]] = {}

    @property
    def stored(self) -> int:
        """Number of different tensors."""
        return len(self._places)

    def move_from(self, model: ir.Model) -> None:
        """Move the large constants of a graph into the file; equal ones of earlier graphs are used again."""
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _SMALLEST:
                continue
            offset, length = self.store(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                self._name, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )

    def store(self, content: bytes | memoryview) -> tuple[int, int]:
        """Return place and length of a content, which is added unless it is there.

        Args:
            content: Bytes of a tensor.
        """
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            step = _PAGE if len(content) >= _LARGE else _LINE
            end = self._file.tell()
            offset = -(-end // step) * step
            self._file.write(bytes(offset - end))
            self._file.write(content)
            self._places[key] = (offset, len(content))
        return self._places[key]


@contextmanager
def weights_file(path: Path) -> Iterator[WeightsFile]:
    """Provide a new file of weights, which is complete when the block ends."""
    with path.open("wb") as file:
        yield WeightsFile(file, path.name)
