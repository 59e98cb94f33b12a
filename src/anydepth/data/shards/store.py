"""Stores of shards, which ensure that a shard is local and complete before it is read."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from anydepth.data.errors import DataError, warn
from anydepth.data.fetch.download import DownloadError
from anydepth.data.shards.manifest import Shard, StoredFile, shard_name
from anydepth.data.shards.remote import Remote

_TOUCH_S = 10.0
"""Interval of writing the time of last use: well below ``_BUSY_S``, but not once per image."""
_BUSY_S = 60.0
"""A shard used within this time is probably needed again: removing it means that the cache is too small."""
_ABANDONED_S = 3600.0
"""A part without writes for this long belongs to a killed process: a live one would have given up much
earlier, as its connection times out after a minute."""


class ShardStore(Protocol):
    """Interface of the shards of one split; it is sent to worker processes."""

    @property
    def folder(self) -> Path:
        """Local folder of the shards, with the engine's index."""
        ...

    def address(self, number: int) -> str:
        """Return the address of a shard, for messages."""
        ...

    def prepare(self, number: int) -> None:
        """Ensure that a shard can be read.

        Raises:
            DataError: It is missing, has another size, or cannot be fetched.
        """
        ...

    def restore(self, number: int) -> bool:
        """Replace a shard with an altered record; return False if that is impossible."""
        ...


class FolderStore:
    """Shards in a local folder, where they stay.

    Args:
        folder: Folder of the shards.
        shards: Expected shards.
    """

    def __init__(self, folder: Path, shards: tuple[Shard, ...]) -> None:
        self.folder = folder
        self.shards = shards
        self._checked: set[int] = set()

    def address(self, number: int) -> str:
        """See :meth:`ShardStore.address`."""
        return str(self.folder / shard_name(number))

    def prepare(self, number: int) -> None:
        """See :meth:`ShardStore.prepare`; checks once, because every query is slow on a network drive."""
        if number not in self._checked:
            self._check_size(number)
            self._checked.add(number)

    def restore(self, number: int) -> bool:
        """See :meth:`ShardStore.restore`.

        Raises:
            DataError: The shard has another size now, which explains more than a damaged record.
        """
        self._check_size(number)
        return False

    def _check_size(self, number: int) -> None:
        path, expected = self.folder / shard_name(number), self.shards[number].file.size
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{path}: this shard cannot be read ({error.strerror}); copy or prepare it again"
            ) from error
        if size != expected:
            raise DataError(
                f"{path}: this shard holds {size:,} bytes, expected {expected:,} by the manifest; it was "
                "truncated or altered: copy or prepare it again"
            )


class CachedStore:
    """Shards fetched on demand into a cache that drops the least recently used ones.

    All processes of a machine share the cache: each shard is fetched by one of them while others wait. The
    cache may exceed its size by the shards that are being fetched.

    Args:
        cache: Cache folder shared by all data sets, whose size is limited.
        folder: Subfolder of this split.
        budget: Maximum size of the cache in bytes.
        remote: Remote storage of the shards.
        shards: Shards of this split.

    Raises:
        DataError: The cache cannot hold two shards.
    """

    def __init__(
        self, *, cache: Path, folder: Path, budget: int, remote: Remote, shards: tuple[Shard, ...]
    ) -> None:
        self.cache = cache
        self.folder = folder
        self.budget = budget
        self.remote = remote
        self.shards = shards
        self._touched: dict[int, float] = {}
        self._warned = False
        largest = max(shard.file.size for shard in self.shards)
        if 2 * largest > self.budget:
            raise DataError(
                f"data.cache_gb={self.budget / 1e9:g} cannot hold two shards of {largest / 1e9:.3g} GB; give "
                f"{2.01 * largest / 1e9:.3g} at least, or better several shards per worker process"
            )

    def address(self, number: int) -> str:
        """See :meth:`ShardStore.address`."""
        return self.remote.address(shard_name(number))

    def prepare(self, number: int) -> None:
        """See :meth:`ShardStore.prepare`."""
        shard = self.shards[number]
        path = self.folder / shard_name(number)
        if not _has_size(path, shard.file.size):
            self._fetch_under_lock(number, lambda: _has_size(path, shard.file.size))
        self._touch(number, path)

    def restore(self, number: int) -> bool:
        """See :meth:`ShardStore.restore`.

        Raises:
            DataError: It cannot be fetched again.
        """
        path, expected = self.folder / shard_name(number), self.shards[number].file
        # Another process may have replaced it meanwhile.
        self._fetch_under_lock(number, lambda: path.is_file() and StoredFile.of(path) == expected)
        return True

    def _fetch_under_lock(self, number: int, is_good: Callable[[], bool]) -> None:
        """Fetch a shard under its lock, unless another process has fetched it meanwhile."""
        path, expected = self.folder / shard_name(number), self.shards[number].file
        try:
            with FileLock(self.folder / f".{path.name}.use"):
                if is_good():
                    return
                path.unlink(missing_ok=True)
                self._make_room(expected.size)
                self.remote.fetch(expected.name, path, expected)
        except (OSError, DownloadError) as error:
            raise DataError(
                f"{self.address(number)}: cannot be cached: {error} (cache: {self.cache}, data.cache_gb="
                f"{self.budget / 1e9:g}; data.cache_dir chooses another disk)"
            ) from error

    def _touch(self, number: int, path: Path) -> None:
        now = time.monotonic()
        if now - self._touched.get(number, -_TOUCH_S) >= _TOUCH_S:
            self._touched[number] = now
            # Another process may have removed it just now; reading will fail and retry.
            with suppress(FileNotFoundError):
                os.utime(path)

    def _make_room(self, needed: int) -> None:
        with FileLock(self.cache / ".room.lock"):
            files = sorted(_cached_files(self.cache), key=lambda entry: entry[1])
            total = sum(size for _, _, size in files) + needed
            for path, used, size in files:
                if total <= self.budget:
                    return
                age = time.time() - used
                if path.suffix == ".part" and age < _ABANDONED_S:
                    continue
                if path.suffix != ".part" and age < _BUSY_S:
                    self._warn_too_small()
                path.unlink(missing_ok=True)
                total -= size

    def _warn_too_small(self) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self.cache}: shards are removed from the cache while they are in use, and each will be "
                f"fetched several times. Raise data.cache_gb={self.budget / 1e9:g}"
            )


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _cached_files(cache: Path) -> list[tuple[Path, float, int]]:
    """Return file, time of last use and size of every shard and partial shard, of all data sets."""
    found = []
    for path in cache.glob("*/shard-*.bin*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((path, status.st_mtime, status.st_size))
    return found
