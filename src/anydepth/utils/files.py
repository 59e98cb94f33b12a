"""Atomic writing: a file is either complete or absent."""

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Provide a temporary file beside ``path`` that replaces it when the block ends without an error.

    The temporary name keeps the suffix, by which image and video libraries choose their format. Missing
    folders are created. After an error nothing is left, and an earlier file at ``path`` is unchanged. Several
    processes may write the same file at once: the complete file of one of them remains.

    Args:
        path: File to write.
        durable: Whether to wait until the content is on the disk before the replacement, so that not even a
            power failure leaves an empty file.

    Yields:
        Name of the temporary file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "curve.json") as partial:
        ...     size = partial.write_text("{}")
        >>> (folder / "curve.json").read_text()
        '{}'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Return the hidden name beside ``path`` under which this process writes it."""
    stem = path.stem
    # File systems allow 255 bytes, which a long name would exceed with what is added here.
    if len(os.fsencode(path.name)) > 200:
        stem = f"{zlib.crc32(os.fsencode(path.name)):08x}"
    return path.with_name(f".{stem}.{os.getpid()}.partial{path.suffix}")


def write_text(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8, completely or not at all; see :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Provide an empty folder that is removed at the end, after removing what a killed process left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
