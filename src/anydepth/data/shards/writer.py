"""The writer of a split in shards: parallel and resumable."""

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
from anydepth.data.shards.plan import (
    PROGRESS,
    FinishedShard,
    PlannedShard,
    plan_shards,
    read_progress,
    write_progress,
)
from anydepth.data.shards.record import Record, pack_record, unpack_record
from anydepth.data.shards.store import FolderStore
from anydepth.utils.files import atomic_path, write_text

_START_METHOD = "spawn"
"""A progress bar runs in a thread, and forking a process with threads may copy a lock while it is held."""
_RESUME_HINT = "finished shards are kept: run the same command again to resume"


@dataclass(frozen=True)
class Progress:
    """Progress of the preparation.

    Attributes:
        images: Number of images in finished shards.
        total: Number of images of the split.
        kept: Number of finished shards that were kept from an earlier run.
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
    """Write a split in shards, and last its manifest, without which a folder is not read.

    Finished shards of an interrupted run are verified and kept if their images and annotations are unchanged.

    Args:
        index: Index of the split.
        folder: Output folder, which holds nothing else.
        shard_mb: Size of a shard in megabytes (10^6 bytes); a larger image gets its own shard.
        workers: Number of processes that write.
        overwrite: Whether to replace a complete split of other images or annotations.
        report: Callback after each shard.

    Raises:
        DataError: An image cannot be read, the disk is full, or the folder holds something else.
    """
    if not 0 < shard_mb <= MAX_SHARD_BYTES / 2e6:
        raise DataError(
            f"got shard_mb={shard_mb:g}, expected more than 0 and at most {MAX_SHARD_BYTES / 2e6:.0f}"
        )
    if workers < 1:
        raise DataError(f"got workers={workers}, expected a whole number from 1")
    try:
        with _lock_folder(folder):
            parts = plan_shards(index, shard_mb * 1e6)
            finished = read_progress(folder, parts)
            _check_folder(folder, len(finished) == len(parts), overwrite)
            (folder / MANIFEST).unlink(missing_ok=True)
            _remove_leftovers(folder, parts)
            needed = sum(part.size for part in parts if part.number not in finished)
            check_space(folder, needed, str(index.json_path))
            _write_planned(index, folder, parts, finished, workers, report)
            return _write_manifest(index, folder, finished)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); {_RESUME_HINT}") from error


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".prepare.lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{folder}: another process is preparing this folder; wait for it") from None


def _check_folder(folder: Path, same: bool, overwrite: bool) -> None:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names and not names & {MANIFEST, PROGRESS}:
        raise DataError(f"{folder}: holds other files ({min(names)}, ...); give a new or an empty folder")
    if MANIFEST in names and not same and not overwrite:
        raise DataError(
            f"{folder}: holds a complete split of other images or annotations, or with another shard size; "
            "give another folder, or --overwrite to replace it"
        )


def _remove_leftovers(folder: Path, parts: Sequence[PlannedShard]) -> None:
    """Remove the leftovers of a killed run or an earlier plan."""
    wanted = {part.name for part in parts}
    for path in folder.glob("shard-*.bin"):
        if path.name not in wanted:
            path.unlink()
    for path in folder.glob(".shard-*.bin.*"):
        shutil.rmtree(path)
    for path in folder.glob(".*.partial*"):
        path.unlink()


def _write_planned(
    index: CocoIndex,
    folder: Path,
    parts: Sequence[PlannedShard],
    finished: dict[int, FinishedShard],
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    """Write or verify each shard, and record it in ``finished`` and on disk."""
    expected = {number: done.shard for number, done in finished.items()}
    # Also marks the folder as one of shards, in case this run is interrupted before the first is finished.
    write_progress(folder, finished)
    images = kept = 0
    for part, shard, was_kept in _written_shards(index, folder, parts, expected, workers):
        finished[part.number] = FinishedShard(shard, part.source)
        write_progress(folder, finished)
        images += shard.rows
        kept += was_kept
        report(Progress(images, len(index), kept))


def _written_shards(
    index: CocoIndex,
    folder: Path,
    parts: Sequence[PlannedShard],
    expected: Mapping[int, Shard],
    workers: int,
) -> Iterator[tuple[PlannedShard, Shard, bool]]:
    """Iterate over the plan, the shard and whether it was kept, as shards are finished."""
    writer = _ShardWriter(index, folder)
    if workers == 1:
        for part in parts:
            yield part, *writer.write(part, expected.get(part.number))
        return
    context = multiprocessing.get_context(_START_METHOD)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (writer,))
    try:
        jobs = {pool.submit(_write_in_worker, part, expected.get(part.number)): part for part in parts}
        for job in as_completed(jobs):
            yield jobs[job], *job.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{folder}: a worker process was killed, perhaps because memory ran out; {_RESUME_HINT}, with "
            "fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _ShardWriter:
    """Writer of single shards of a split."""

    index: CocoIndex
    folder: Path

    def write(self, part: PlannedShard, expected: Shard | None) -> tuple[Shard, bool]:
        """Keep the expected shard if it is intact (True), or write it (False)."""
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
                f"{path}: cannot be written ({error.strerror or error}); free disk space; {_RESUME_HINT}"
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
                f"restore it; {_RESUME_HINT}"
            ) from error


_writer: _ShardWriter | None = None


def _start_worker(writer: _ShardWriter) -> None:
    global _writer
    _writer = writer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent: a killed parent leaves its pool waiting for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_in_worker(part: PlannedShard, expected: Shard | None) -> tuple[Shard, bool]:
    assert _writer is not None  # Set when the process started.
    return _writer.write(part, expected)


def _write_manifest(index: CocoIndex, folder: Path, finished: Mapping[int, FinishedShard]) -> Manifest:
    """Write the files common to all shards; the manifest last, after everything else is verified."""
    shards = tuple(finished[number].shard for number in sorted(finished))
    rows = sum(shard.rows for shard in shards)
    if rows != len(index):
        raise DataError(f"{folder}: {rows} of {len(index)} images were written; {_RESUME_HINT}")
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
