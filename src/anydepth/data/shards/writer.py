"""Writing a split in shards: in parallel, and so that an interrupted run can be gone on with."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from anydepth.data.coco.index import CocoIndex
from anydepth.data.coco.packed_file import save_packed
from anydepth.data.errors import DataError
from anydepth.data.fetch.download import check_space
from anydepth.data.shards.engine import write_chunk
from anydepth.data.shards.manifest import (
    ANNOTATIONS,
    INDEX,
    MANIFEST,
    MAX_SHARD_BYTES,
    Manifest,
    Shard,
    StoredFile,
    check_engine_index,
    read_manifest,
)
from anydepth.data.shards.plan import PROGRESS, Finished, Part, plan_parts, read_progress, write_progress
from anydepth.data.shards.record import Record, pack_record, unpack_record
from anydepth.data.shards.store import FolderStore
from anydepth.utils.files import atomic_path, write_text

_START_METHOD = "spawn"
"""Whoever shows a progress bar has threads, which a forked process would find in the middle of something."""
_AGAIN = "finished shards are kept: run the same command again to go on"


@dataclass(frozen=True)
class Progress:
    """How far preparing is.

    Attributes:
        images: In the shards that are finished.
        total: Of the split.
        kept: How many of the finished shards were there before.
    """

    images: int
    total: int
    kept: int


def write_shards(
    index: CocoIndex,
    folder: Path,
    *,
    shard_mb: float = 64.0,
    workers: int = 1,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Write a split in shards, and last of all its manifest, without which a folder is not read.

    What an interrupted run has finished is verified and kept, if images and annotations are the same still.

    Args:
        index: The split.
        folder: A folder of its own.
        shard_mb: Megabytes (10^6 bytes) that a shard holds; a larger image gets a shard to itself.
        workers: Processes that write.
        overwrite: Replace a complete split that was made of other images or annotations.
        report: Called after each shard.

    Raises:
        DataError: An image cannot be read, the disk is full, or the folder holds something else.
    """
    if not 0 < shard_mb <= MAX_SHARD_BYTES / 2e6:
        raise DataError(f"shard_mb={shard_mb:g}: give more than 0 and at most {MAX_SHARD_BYTES / 2e6:.0f}")
    if workers < 1:
        raise DataError(f"workers={workers}: give a whole number from 1")
    try:
        with _only_one(folder):
            parts = plan_parts(index, shard_mb * 1e6)
            finished = read_progress(folder, parts)
            _refuse_other_contents(folder, len(finished) == len(parts), overwrite)
            (folder / MANIFEST).unlink(missing_ok=True)
            _clean(folder, parts)
            needed = sum(part.size for part in parts if part.number not in finished)
            check_space(folder, needed, str(index.json_path))
            _write_parts(index, folder, parts, finished, workers, report)
            return _finish(index, folder, finished)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); {_AGAIN}") from error


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".prepare.lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{folder}: another process is preparing this folder; wait for it") from None


def _refuse_other_contents(folder: Path, same: bool, overwrite: bool) -> None:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names and not names & {MANIFEST, PROGRESS}:
        raise DataError(f"{folder}: holds other files ({min(names)}, ...); give a new or an empty folder")
    if MANIFEST in names and not same and not overwrite:
        raise DataError(
            f"{folder}: holds a complete split of other images or annotations, or in shards of another size; "
            "give another folder, or --overwrite to replace it"
        )


def _clean(folder: Path, parts: Sequence[Part]) -> None:
    """Remove what a killed run or a former plan has left."""
    wanted = {part.name for part in parts}
    for path in folder.glob("shard-*.bin"):
        if path.name not in wanted:
            path.unlink()
    for path in folder.glob(".shard-*.bin.*"):
        shutil.rmtree(path)
    for path in folder.glob(".*.partial*"):
        path.unlink()


def _write_parts(
    index: CocoIndex,
    folder: Path,
    parts: Sequence[Part],
    finished: dict[int, Finished],
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    """Write or verify each part, and remember it in ``finished`` and on disk."""
    expected = {number: done.shard for number, done in finished.items()}
    # Also says whose shards these are, should this run be interrupted before the first is finished.
    write_progress(folder, finished)
    images = kept = 0
    for part, shard, was_kept in _shards(index, folder, parts, expected, workers):
        finished[part.number] = Finished(shard, part.source)
        write_progress(folder, finished)
        images += shard.rows
        kept += was_kept
        report(Progress(images, len(index), kept))


def _shards(
    index: CocoIndex,
    folder: Path,
    parts: Sequence[Part],
    expected: Mapping[int, Shard],
    workers: int,
) -> Iterator[tuple[Part, Shard, bool]]:
    """Each part with its shard, and whether that was there before, as they are finished."""
    maker = _Maker(index, folder)
    if workers == 1:
        for part in parts:
            yield part, *maker.make(part, expected.get(part.number))
        return
    context = multiprocessing.get_context(_START_METHOD)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (maker,))
    try:
        jobs = {pool.submit(_make, part, expected.get(part.number)): part for part in parts}
        for job in as_completed(jobs):
            yield jobs[job], *job.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{folder}: a process that writes was killed, perhaps for want of memory; {_AGAIN}, with fewer "
            "--workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Maker:
    """Writes single shards of a split."""

    index: CocoIndex
    folder: Path

    def make(self, part: Part, expected: Shard | None) -> tuple[Shard, bool]:
        """Keep the shard that is expected (True), or write it."""
        path = self.folder / part.name
        if expected is not None and path.is_file() and StoredFile.of(path) == expected.file:
            return expected, True
        records = (pack_record(self._record(row)) for row in part.rows)
        try:
            write_chunk(
                records,
                len(part.rows),
                path,
                check=lambda number, data: unpack_record(data, part.first + number),
            )
            return Shard(StoredFile.of(path), len(part.rows)), False
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror or error}); make room on the disk; {_AGAIN}"
            ) from error

    def _record(self, row: int) -> Record:
        index, part = self.index, self.index.annotations_of(row)
        height, width = index.sizes[row].tolist()
        return Record(
            row=row,
            image_id=int(index.image_ids[row]),
            file_name=index.file_name(row),
            size=(height, width),
            image=self._image(row),
            boxes_xywh=index.boxes_xywh[part],
            labels=index.labels[part].astype(np.int32),
            crowd=index.crowd[part],
            areas=index.areas[part],
            annotation_ids=index.annotation_ids[part],
            outlines=index.outlines_of(row),
        )

    def _image(self, row: int) -> bytes:
        path = self.index.path(row)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.index.json_path}: image id {self.index.image_ids[row]}: {path}: {error.strerror}; "
                f"restore it; {_AGAIN}"
            ) from error


_maker: _Maker | None = None


def _start_worker(maker: _Maker) -> None:
    global _maker
    _maker = maker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its pool, whose processes would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(part: Part, expected: Shard | None) -> tuple[Shard, bool]:
    assert _maker is not None  # Set when the process started.
    return _maker.make(part, expected)


def _finish(index: CocoIndex, folder: Path, finished: Mapping[int, Finished]) -> Manifest:
    """Write what belongs to all shards; the manifest only after everything else is there and counted."""
    shards = tuple(finished[number].shard for number in sorted(finished))
    rows = sum(shard.rows for shard in shards)
    if rows != len(index):
        raise DataError(f"{folder}: {rows} of {len(index)} images were written; {_AGAIN}")
    store = FolderStore(folder, shards)
    for number in range(len(shards)):
        store.prepare(number)
    with atomic_path(folder / ANNOTATIONS) as partial:
        save_packed(index, partial)
        annotations = StoredFile.of(partial, ANNOTATIONS)
    manifest = Manifest(index.categories, len(index), len(index.labels), annotations, shards)
    write_text(folder / INDEX, manifest.engine_json(), durable=True)
    check_engine_index(folder, manifest)
    write_text(folder / MANIFEST, manifest.to_json(), durable=True)
    return read_manifest(folder / MANIFEST, str(folder / MANIFEST))
