"""A split in shards as a source of samples: in a folder, or at an address with a local cache."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from anydepth.data.coco.categories import Categories
from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.orientation import read_in_json_frame
from anydepth.data.coco.packed_file import load_packed
from anydepth.data.coco.tables import select_training_boxes
from anydepth.data.errors import BadImageError, DataError
from anydepth.data.shards.engine import ChunkReader
from anydepth.data.shards.manifest import (
    ANNOTATIONS,
    INDEX,
    MANIFEST,
    Manifest,
    StoredFile,
    check_engine_index,
    read_manifest,
)
from anydepth.data.shards.record import Record, RecordError, unpack_record
from anydepth.data.shards.remote import Remote, describe_difference, open_remote
from anydepth.data.shards.store import CachedStore, FolderStore, ShardStore
from anydepth.data.source import AnnotatedImage
from anydepth.images import decode_image
from anydepth.utils.files import write_text

_MAX_READS = 3
"""Tries to read a record: another process may remove a shard from the cache between its fetching and its
reading, and three such removals in a row mean that something else is wrong."""


class ShardSource:
    """The images of a split in shards; see :class:`anydepth.data.source.SampleSource`.

    Args:
        manifest: Manifest of the split.
        store: Store of its shards.
    """

    def __init__(self, manifest: Manifest, store: ShardStore) -> None:
        rows = [shard.rows for shard in manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._num_classes = len(manifest.categories.ids)
        self._store = store
        self._reader: ChunkReader | None = None

    @property
    def shard_starts(self) -> NDArray[np.int64]:
        """First row of each shard and, last, the number of rows [S + 1]."""
        return self._starts

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def read(self, row: int) -> AnnotatedImage:
        """Return the image of a row.

        Raises:
            BadImageError: The image cannot be decoded; the message names the shard and the image id.
            DataError: Its shard is missing, damaged or cannot be fetched.
        """
        record, shard = self._record(row)
        try:
            image = read_in_json_frame(
                lambda upright: decode_image(record.image, record.file_name, upright=upright),
                record.size,
                name=record.file_name,
                entry=f"{self._store.address(shard)}: row {row}, image id {record.image_id}",
            )
        except BadImageError as error:
            raise BadImageError(f"{error}; then prepare the shards again") from error
        boxes, labels = select_training_boxes(record.boxes_xywh, record.labels, record.crowd)
        return AnnotatedImage(image, boxes, labels, record.image_id, record.outlines)

    def _record(self, row: int) -> tuple[Record, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"got row {row}, expected 0 to {len(self) - 1}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        for _ in range(_MAX_READS):
            self._store.prepare(shard)
            try:
                return self._read_record(row, shard), shard
            except RecordError as error:
                problem = error
            if not self._store.restore(shard):
                break
        raise DataError(
            f"{self._store.address(shard)}: this shard cannot be read: {problem}. Copy or prepare it again"
        ) from problem

    def _read_record(self, row: int, shard: int) -> Record:
        try:
            data = self._open_reader().read(row - int(self._starts[shard]), shard)
        except DataError:
            raise
        # With damaged offsets the engine raises exceptions of any kind.
        except Exception as error:
            raise RecordError(f"row {row}: {type(error).__name__}: {error}") from error
        record = unpack_record(data, row)
        if len(record.labels) and not 0 <= record.labels.min() <= record.labels.max() < self._num_classes:
            raise RecordError(f"the record of row {row} holds labels that are not classes")
        return record

    def _open_reader(self) -> ChunkReader:
        if self._reader is None:
            self._reader = ChunkReader(self._store.folder)
        return self._reader


@dataclass(frozen=True, eq=False)
class Stream:
    """A split in shards.

    Attributes:
        source: Images of the split, for loaders.
        index: Ids, sizes and annotations, for ground truth; the images are not in files of their own.
    """

    source: ShardSource
    index: CocoIndex

    @property
    def categories(self) -> Categories:
        """Map between labels and category ids."""
        return self.index.categories


def open_stream(
    location: str | Path,
    *,
    cache_dir: Path | None = None,
    cache_gb: float = 20.0,
    storage_options: Mapping[str, Any] | None = None,
    attempts: int = 5,
    backoff_s: float = 1.0,
) -> Stream:
    """Open a split that ``anydepth-data shards`` wrote.

    Args:
        location: Local folder of the split, or its address: ``s3://``, ``http://`` or ``https://``.
        cache_dir: Folder that caches shards from an address; None means the user's cache folder. Processes
            and data sets may share it.
        cache_gb: Size of the cache in gigabytes (10^9 bytes).
        storage_options: Options of S3; see :class:`anydepth.data.shards.remote.S3Remote`.
        attempts: Number of tries per fetched file.
        backoff_s: Seconds before the second try, doubled for each further one.

    Raises:
        DataError: The split is missing, incomplete or damaged, or cannot be fetched.
    """
    if "://" not in str(location):
        return _open_folder(Path(location))
    remote = open_remote(str(location), storage_options or {}, attempts=attempts, backoff_s=backoff_s)
    return _open_remote(remote, cache_dir or _default_cache(), int(cache_gb * 1e9))


def _open_folder(folder: Path) -> Stream:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; give the folder of one split that `anydepth-data shards` "
            "completed (run it again if it was interrupted)"
        )
    manifest = read_manifest(path, str(path))
    check_engine_index(folder, manifest)
    annotations = folder / ANNOTATIONS
    found = StoredFile.of(annotations) if annotations.is_file() else None
    if found != manifest.annotations:
        problem = "it is missing" if found is None else describe_difference(found, manifest.annotations)
        raise DataError(f"{annotations}: {problem}; copy or prepare the shards again")
    index = load_packed(annotations, str(folder), manifest.categories)
    return _stream(manifest, index, FolderStore(folder, manifest.shards))


def _open_remote(remote: Remote, cache: Path, budget: int) -> Stream:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        manifest = _fetch_manifest(remote, cache)
        folder = cache / manifest.key
        folder.mkdir(exist_ok=True)
        write_text(folder / INDEX, manifest.engine_json(), durable=True)
        annotations = folder / ANNOTATIONS
        with FileLock(folder / f".{ANNOTATIONS}.use"):
            if not annotations.is_file() or StoredFile.of(annotations) != manifest.annotations:
                annotations.unlink(missing_ok=True)
                remote.fetch(ANNOTATIONS, annotations, manifest.annotations)
    except OSError as error:
        raise DataError(f"{cache}: cannot be used as a cache ({error}); set data.cache_dir") from error
    store = CachedStore(cache=cache, folder=folder, budget=budget, remote=remote, shards=manifest.shards)
    index = load_packed(annotations, remote.address("").rstrip("/"), manifest.categories)
    return _stream(manifest, index, store)


def _fetch_manifest(remote: Remote, cache: Path) -> Manifest:
    """Fetch the manifest, without a cache: it identifies the current version of the data set."""
    with tempfile.TemporaryDirectory(prefix=".manifest.", dir=cache) as folder:
        path = Path(folder, MANIFEST)
        remote.fetch(MANIFEST, path, None)
        return read_manifest(path, remote.address(MANIFEST))


def _stream(manifest: Manifest, index: CocoIndex, store: ShardStore) -> Stream:
    if (len(index), len(index.labels)) != (manifest.images, manifest.boxes):
        raise DataError(
            f"{index.json_path}: {ANNOTATIONS} holds {len(index)} images and {len(index.labels)} boxes, "
            f"expected {manifest.images} and {manifest.boxes} from {MANIFEST}; prepare the shards again"
        )
    return Stream(ShardSource(manifest, store), index)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anydepth" / "shards"
