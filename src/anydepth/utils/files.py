"""Writing results so that a file is either complete or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    The temporary name keeps the suffix, by which image and video libraries choose their format. Missing
    folders are created. After an error nothing is left, and a former file at ``path`` stays as it was.
    Several processes may write the same file at once: one of them wins, whole.

    Args:
        path: The file to write.
        durable: Wait until the content is on the disk before it takes its place, so that not even a power
            cut leaves an empty file.

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
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8, complete or not at all; see :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end, whatever happens; what a killed process left is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
