"""A small data set in shards on disk, and helpers of its tests."""

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from coco_files import CocoFiles

from anydepth.data.coco.index import CocoIndex
from anydepth.data.source import FileSource, SampleSource


@dataclass(frozen=True)
class Shards:
    """Shards, and the files they were made from."""

    files: CocoFiles
    index: CocoIndex
    folder: Path

    def contents(self, prefix: str = "") -> dict[str, bytes]:
        """Return every file by its address on a server."""
        return {f"{prefix}/{path.name}": path.read_bytes() for path in self.folder.iterdir()}

    def shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.bin"


def assert_same_samples(found: SampleSource, index: CocoIndex) -> None:
    """Assert that every row equals the files bit by bit."""
    expected = FileSource(index)
    assert len(found) == len(expected)
    for row in range(len(expected)):
        one, other = found.read(row), expected.read(row)
        assert torch.equal(one.image, other.image)
        assert np.array_equal(one.boxes_xyxy, other.boxes_xyxy)
        assert one.boxes_xyxy.dtype == other.boxes_xyxy.dtype
        assert np.array_equal(one.labels, other.labels)
        assert one.image_id == other.image_id
        assert (one.outlines is None) == (other.outlines is None)
        if one.outlines is not None and other.outlines is not None:
            for name, array in vars(other.outlines).items():
                assert np.array_equal(getattr(one.outlines, name), array)


def flip(path: Path, place: int) -> None:
    """Alter one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writes beyond this size fail as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
