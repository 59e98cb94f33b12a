"""The plan of the shards of a split, and the progress of an interrupted run."""

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
_RECORD_BYTES = 300
"""Generous estimate of a record without image and annotations: about 80 bytes, and the file name."""
_ANNOTATION_BYTES = 53
"""Box 32, area 8, id 8, label 4 and crowd flag 1; see ``record._layout``. Outlines are not estimated."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard to write, with rows ``first`` to ``end - 1``.

    Attributes:
        number: Position among the shards.
        first: First row.
        end: One past the last row.
        size: Estimated size in bytes.
        source: Digest of its images and annotations, which changes with any of them.
    """

    number: int
    first: int
    end: int
    size: int
    source: str

    @property
    def name(self) -> str:
        """File name of the shard."""
        return shard_name(self.number)

    @property
    def rows(self) -> range:
        """Rows of the shard."""
        return range(self.first, self.end)


@dataclass(frozen=True)
class FinishedShard:
    """A written shard, and the digest of its images and annotations."""

    shard: Shard
    source: str


def plan_shards(index: CocoIndex, shard_bytes: float) -> list[PlannedShard]:
    """Split a data set into shards of about equal size, in the order of its rows.

    Raises:
        DataError: An image is missing.
    """
    status = _file_status(index)
    sizes = status[:, 0] + _RECORD_BYTES + _ANNOTATION_BYTES * np.diff(index.starts)
    bounds = _bounds(sizes, shard_bytes)
    return [
        PlannedShard(
            number, first, end, int(sizes[first:end].sum()), _source_digest(index, status, first, end)
        )
        for number, (first, end) in enumerate(pairwise(bounds))
    ]


def read_progress(folder: Path, parts: Sequence[PlannedShard]) -> dict[int, FinishedShard]:
    """Read which planned shards are finished, by number; none if the progress file is damaged."""
    try:
        document = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        known = {
            name: FinishedShard(Shard(StoredFile(name, int(size), str(digest)), int(rows)), str(source))
            for name, (size, digest, rows, source) in document.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {
        part.number: known[part.name]
        for part in parts
        if part.name in known and known[part.name].source == part.source
    }


def write_progress(folder: Path, finished: Mapping[int, FinishedShard]) -> None:
    """Write which shards are finished."""
    document = {
        done.shard.file.name: [done.shard.file.size, done.shard.file.sha256, done.shard.rows, done.source]
        for _, done in sorted(finished.items())
    }
    write_text(folder / PROGRESS, json.dumps(document, indent=0) + "\n", durable=True)


def _file_status(index: CocoIndex) -> NDArray[np.int64]:
    """Return size in bytes and modification time in ns of each image file [I, 2]."""
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
    """Return the first row of each shard and, last, the number of rows."""
    bounds, filled = [0], 0
    for row, size in enumerate(sizes.tolist()):
        if filled and filled + size > shard_bytes:
            bounds.append(row)
            filled = 0
        filled += size
    return [*bounds, len(sizes)]


def _source_digest(index: CocoIndex, status: NDArray[np.int64], first: int, end: int) -> str:
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
