"""Zip and tar archives: download, checks and unpacking; every result is either complete or absent."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from anydepth.data.errors import DataError
from anydepth.data.fetch.download import Progress, check_space, download
from anydepth.utils.files import scratch_folder

_CHUNK_BYTES = 1 << 20
_ENTRY_BYTES = 512
"""Bytes per entry beside its content, the size of a tar header: empty files fill a disk, too."""


class ArchiveError(DataError):
    """An archive cannot be unpacked; the message names it, the problem and the remedy."""


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        url: Address of the archive.
        size: Size of the archive in bytes.
        sha256: SHA-256 checksum, if known.
        unpacked_bytes: Approximate size of the unpacked contents; more than twice as much is refused.
        contents: Files and folders to keep, by their names inside the archive, each with its number of files.
            Empty means everything.
        md5: MD5 checksum, if that is the published one.
    """

    url: str
    size: int
    sha256: str | None
    unpacked_bytes: int
    contents: Mapping[str, int] = field(default_factory=dict)
    md5: str | None = None

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]

    def is_installed(self, folder: Path) -> bool:
        """Return whether all its contents are in a folder."""
        return bool(self.contents) and all((folder / path).exists() for path in self.contents)


def install(
    archive: Archive, folder: Path, *, keep_archive: bool = False, progress: Progress | None = None
) -> None:
    """Fetch an archive and move its contents into a folder, each of them completely or not at all.

    Work that an earlier call completed is not repeated.

    Args:
        archive: Archive to fetch; it names its contents.
        folder: Destination of the contents and, meanwhile, of the archive.
        keep_archive: Whether to keep the archive there.
        progress: Callback that reports the progress of the download.

    Raises:
        DataError: It cannot be fetched or unpacked, or does not hold the published number of files.
    """
    if archive.is_installed(folder):
        return
    packed = folder / archive.name
    fetch(archive, packed, progress=progress)
    with scratch_folder(folder / f".{archive.name}.unpacking") as scratch:
        unpack(packed, scratch, limit_bytes=2 * archive.unpacked_bytes, only=tuple(archive.contents))
        for path, expected in archive.contents.items():
            _check_count(archive, scratch / path, expected)
        for path in archive.contents:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / path).exists():
                (scratch / path).rename(folder / path)
    if not keep_archive:
        packed.unlink()


def fetch(archive: Archive, path: Path, *, progress: Progress | None = None) -> None:
    """Download an archive and verify its size and checksums.

    Raises:
        DownloadError: See :func:`anydepth.data.fetch.download.download`.
    """
    download(archive.url, path, size=archive.size, sha256=archive.sha256, md5=archive.md5, progress=progress)


def check_space_for(archives: Sequence[Archive], folder: Path, *, keep_archives: bool) -> None:
    """Check that a disk can hold archives in the end, and while one after the other is unpacked.

    Args:
        archives: Archives in the order of their installation.
        folder: Destination; it need not exist.
        keep_archives: Whether archives are kept after unpacking.

    Raises:
        DataError: There is too little space; the message names the needed and the free space.
    """
    needed = peak = 0
    for archive in archives:
        if archive.is_installed(folder):
            continue
        here = [folder / archive.name, folder / f"{archive.name}.part"]
        fetched = max(path.stat().st_size if path.exists() else 0 for path in here)
        peak = max(peak, needed + archive.size - fetched + archive.unpacked_bytes)
        needed += archive.unpacked_bytes - fetched + (archive.size if keep_archives else 0)
    if peak:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        check_space(existing, max(peak, needed), ", ".join(archive.name for archive in archives))


def unpack(packed: Path, folder: Path, *, limit_bytes: int, only: Sequence[str] = ()) -> None:
    """Unpack a zip or a tar, compressed or not, into a folder.

    Only regular files are written, with default permissions; links and devices are refused, so that nothing
    can end up outside the folder.

    Args:
        packed: Archive file.
        folder: Destination.
        limit_bytes: Maximum number of bytes to write, counting half a kilobyte more for each file.
        only: Files and folders inside the archive to unpack; empty means everything.

    Raises:
        ArchiveError: It is damaged, names a path outside the folder, holds a link, or exceeds the limit.
    """
    written = 0
    try:
        for name, source in _members(packed):
            inside = _check_inside(packed, name)
            if only and not any(
                inside == PurePosixPath(o) or PurePosixPath(o) in inside.parents for o in only
            ):
                continue
            written += _ENTRY_BYTES
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with source() as reader, target.open("wb") as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    written += len(chunk)
                    _check_size(packed, written, limit_bytes)
                    writer.write(chunk)
            _check_size(packed, written, limit_bytes)
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(
            f"{packed}: cannot be unpacked into {folder} ({error}); free disk space, or fetch the archive "
            "again if it is damaged"
        ) from error
    # Archives are arbitrary bytes, on which decoders raise exceptions of any kind.
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ArchiveError(f"{packed}: damaged ({reason}); remove it and fetch it again") from error


def _check_size(packed: Path, written: int, limit_bytes: int) -> None:
    if written > limit_bytes:
        raise ArchiveError(
            f"{packed}: unpacks to more than {limit_bytes:,} bytes; it is not the published archive"
        )


def _members(packed: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Iterate over name and opener of each file, in the order of the archive."""
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for entry in archive.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise ArchiveError(
                        f"{packed}: {entry.filename!r} is a link; it is not the published archive"
                    )
                if not entry.is_dir():
                    yield entry.filename, partial(archive.open, entry)
        return
    with tarfile.open(packed) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg():
                raise ArchiveError(
                    f"{packed}: {member.name!r} is a link or device; it is not the published archive"
                )
            yield member.name, partial(_open_member, tar, member)


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = tar.extractfile(member)
    assert opened is not None  # Only links and devices give None.
    return opened


def _check_inside(packed: Path, name: str) -> PurePosixPath:
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    if not name or "\0" in name or any(path.anchor or ".." in path.parts for path in spellings):
        raise ArchiveError(f"{packed}: {name!r} leaves the folder; it is not the published archive")
    return PurePosixPath(name)


def _check_count(archive: Archive, path: Path, expected: int) -> None:
    found = sum(entry.is_file() for entry in path.iterdir()) if path.is_dir() else int(path.is_file())
    if found != expected:
        raise ArchiveError(
            f"{archive.name}: got {found:,} files at {path.name}, expected {expected:,}; remove the archive "
            "and fetch it again"
        )
