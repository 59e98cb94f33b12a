"""Zip and tar archives: fetched, checked and unpacked, each file and folder complete or not there."""

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
# What an entry counts beside its content: a million empty files fill a disk, too.
_ENTRY_BYTES = 512


class ArchiveError(DataError):
    """An archive that cannot be unpacked; the message names it, what is wrong and the remedy."""


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        url: Where it is.
        size: Its bytes.
        sha256: Its checksum, where it is known.
        unpacked_bytes: About what is unpacked of it; twice as much is refused.
        contents: What is kept of it: files, or folders with the number of files in them, by their path inside
            the archive. Nothing: everything.
        md5: Its checksum, where this is the published one.
    """

    url: str
    size: int
    sha256: str | None
    unpacked_bytes: int
    contents: Mapping[str, int] = field(default_factory=dict)
    md5: str | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[-1]

    def is_installed(self, folder: Path) -> bool:
        """Whether all its contents are in a folder."""
        return bool(self.contents) and all((folder / path).exists() for path in self.contents)


def install(
    archive: Archive, folder: Path, *, keep_archive: bool = False, progress: Progress | None = None
) -> None:
    """Fetch an archive and put its contents into a folder, each of them whole or not at all.

    What was done by an earlier call is not done again.

    Args:
        archive: What to fetch; it names its contents.
        folder: Where the contents go, and meanwhile the archive.
        keep_archive: Leave the archive there.
        progress: Told how far the download is.

    Raises:
        DataError: It cannot be fetched or unpacked, or holds another number of files than published.
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
    """Download an archive with all checks.

    Raises:
        DownloadError: See :func:`anydepth.data.fetch.download.download`.
    """
    download(archive.url, path, size=archive.size, sha256=archive.sha256, md5=archive.md5, progress=progress)


def check_space_for(archives: Sequence[Archive], folder: Path, *, keep_archives: bool) -> None:
    """Refuse to start what the disk cannot hold in the end, or while one archive after the other is unpacked.

    Args:
        archives: In the order in which they will be installed.
        folder: Where; it need not exist.
        keep_archives: They stay after they have been unpacked.

    Raises:
        DataError: Says what is needed and what is free, and where.
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

    Files alone are written, with the rights of ordinary new files; links and devices are refused, so that
    nothing can end up outside the folder.

    Args:
        packed: The archive.
        folder: Where to.
        limit_bytes: The most that may be written, with half a kilobyte for each file.
        only: Files and folders inside the archive; nothing means everything.

    Raises:
        ArchiveError: It is damaged, names a path outside the folder, holds a link, or unpacks to too much.
    """
    written = 0
    try:
        for name, source in _members(packed):
            inside = _inside(packed, name)
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
            f"{packed}: cannot be unpacked into {folder} ({error}); make room, or "
            "fetch the archive again if it is damaged"
        ) from error
    # Archives are arbitrary bytes; which exception a decoder raises on them is its own affair.
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ArchiveError(f"{packed}: damaged ({reason}); remove it and fetch it again") from error


def _check_size(packed: Path, written: int, limit_bytes: int) -> None:
    if written > limit_bytes:
        raise ArchiveError(f"{packed}: unpacks to more than {limit_bytes:,} bytes; not the published archive")


def _members(packed: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Name and opener of each file, in the order of the archive."""
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for entry in archive.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise ArchiveError(f"{packed}: {entry.filename!r} is a link; not the published archive")
                if not entry.is_dir():
                    yield entry.filename, partial(archive.open, entry)
        return
    with tarfile.open(packed) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg():
                raise ArchiveError(
                    f"{packed}: {member.name!r} is a link or device; not the published archive"
                )
            yield member.name, partial(_opened, tar, member)


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = tar.extractfile(member)
    assert opened is not None  # So it is for regular files.
    return opened


def _inside(packed: Path, name: str) -> PurePosixPath:
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    if not name or "\0" in name or any(path.anchor or ".." in path.parts for path in spellings):
        raise ArchiveError(f"{packed}: {name!r} leaves the folder; not the published archive")
    return PurePosixPath(name)


def _check_count(archive: Archive, path: Path, expected: int) -> None:
    found = sum(entry.is_file() for entry in path.iterdir()) if path.is_dir() else int(path.is_file())
    if found != expected:
        raise ArchiveError(
            f"{archive.name}: holds {found:,} files at {path.name}, published were {expected:,}; remove "
            "it and fetch it again"
        )
