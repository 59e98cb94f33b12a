"""Which rows go into which shard, and which shards an interrupted run has finished already."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anydepth.data.coco.index import CocoIndex
from anydepth.data.errors import DataError
from anydepth.data.shards.manifest import Shard, StoredFile, shard_name
from anydepth.utils.files import write_text

PROGRESS = "prepared.json"
_ROW_BYTES = 300
"""Of a record beside image and annotations, generously."""
_ANNOTATION_BYTES = 53


@dataclass(frozen=True)
class Part:
    """A shard to be: rows ``first`` to ``end - 1``.

    Attributes:
        number: Its place among the shards.
        first: First row.
        end: One past the last row.
        size: About how many bytes it will hold.
        source: Changes with any image or annotation that goes into it.
    """

    number: int
    first: int
    end: int
    size: int
    source: str

    @property
    def name(self) -> str:
        """Its file name."""
        return shard_name(self.number)

    @property
    def rows(self) -> range:
        """The rows it holds."""
        return range(self.first, self.end)


@dataclass(frozen=True)
class Finished:
    """A shard that is written, and what it was written from."""

    shard: Shard
    source: str


def plan_parts(index: CocoIndex, shard_bytes: float) -> list[Part]:
    """Cut a split into shards of about equal size, in the order of its rows.

    Raises:
        DataError: An image is missing.
    """
    status = _file_status(index)
    sizes = status[:, 0] + _ROW_BYTES + _ANNOTATION_BYTES * np.diff(index.starts)
    bounds = _bounds(sizes, shard_bytes)
    return [
        Part(number, first, end, int(sizes[first:end].sum()), _source(index, status, first, end))
        for number, (first, end) in enumerate(pairwise(bounds))
    ]


def read_progress(folder: Path, parts: Sequence[Part]) -> dict[int, Finished]:
    """The parts that are finished as they are planned now; nothing where the record of them is damaged."""
    try:
        document = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        known = {
            name: Finished(Shard(StoredFile(name, int(size), str(digest)), int(rows)), str(source))
            for name, (size, digest, rows, source) in document.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {
        part.number: known[part.name]
        for part in parts
        if part.name in known and known[part.name].source == part.source
    }


def write_progress(folder: Path, finished: Mapping[int, Finished]) -> None:
    """Remember what is finished."""
    document = {
        done.shard.file.name: [done.shard.file.size, done.shard.file.sha256, done.shard.rows, done.source]
        for _, done in sorted(finished.items())
    }
    write_text(folder / PROGRESS, json.dumps(document, indent=0) + "\n", durable=True)


def _file_status(index: CocoIndex) -> NDArray[np.int64]:
    """[I, 2] size in bytes and time of the last change in ns of each image."""
    found = np.empty((len(index), 2), dtype=np.int64)
    for row in range(len(index)):
        try:
            status = index.path(row).stat()
        except OSError as error:
            raise DataError(
                f"{index.json_path}: image id {index.image_ids[row]}: {index.path(row)}: {error.strerror}; "
                "restore it or remove it from the json"
            ) from error
        found[row] = status.st_size, status.st_mtime_ns
    return found


def _bounds(sizes: NDArray[np.int64], shard_bytes: float) -> list[int]:
    """First row of each shard, and the number of rows."""
    bounds, filled = [0], 0
    for row, size in enumerate(sizes.tolist()):
        if filled and filled + size > shard_bytes:
            bounds.append(row)
            filled = 0
        filled += size
    return [*bounds, len(sizes)]


def _source(index: CocoIndex, status: NDArray[np.int64], first: int, end: int) -> str:
    digest = hashlib.sha256(json.dumps([index.file_name(row) for row in range(first, end)]).encode())
    rows, annotations = slice(first, end), slice(int(index.starts[first]), int(index.starts[end]))
    for array in (index.image_ids[rows], index.sizes[rows], np.diff(index.starts)[rows], status[rows]):
        digest.update(np.ascontiguousarray(array).tobytes())
    for column in (index.boxes_xywh, index.labels, index.crowd, index.areas, index.annotation_ids):
        digest.update(column[annotations].tobytes())
    for row in range(first, end):
        outlines = index.outlines_of(row)
        for points in (
            () if outlines is None else (outlines.object_starts, outlines.ring_starts, outlines.points)
        ):
            digest.update(points.tobytes())
    return digest.hexdigest()
