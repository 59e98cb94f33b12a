"""Writing checkpoints so that a crash, a full disk or a lost machine damages none."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from anydepth.utils.command_line import setting
from anydepth.utils.files import atomic_path

# Errors of file systems that cannot sync a folder.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written; the message names the file, the reason and the remedy."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes every checkpoint to a temporary file, which replaces the former one once it is on the disk.

    Whenever the process is killed or the machine lost, the former checkpoint or the new one is there,
    complete. The tensors are written one after the other, without the copy of all of them in memory that
    Lightning's own writer makes. Lightning calls this in the first process only.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, replacing an existing one.

        Args:
            checkpoint: Dictionary for ``torch.save``.
            path: File on a local or mounted disk; missing folders are created.
            storage_options: Not supported.

        Raises:
            TypeError: ``storage_options`` are given.
            CheckpointWriteError: The file cannot be written, e.g. because the disk is full. An existing
                checkpoint is untouched, and no partial file is left.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are local files")
        path = Path(path)
        with _explain_errors(path) as file:
            _remove_partial_files(path)
            with atomic_path(path) as partial, partial.open("wb") as file.opened:
                # torch accepts any object with `write`, and writes one tensor after the other to it.
                torch.save(checkpoint, file)  # type: ignore[arg-type]
                file.opened.flush()
                os.fsync(file.opened.fileno())
            _sync_folder(path.parent)


class _File:
    """A file that keeps its write error: torch reports only that something went wrong."""

    def __init__(self) -> None:
        self.opened: BinaryIO
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self.opened.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Do nothing when torch flushes; the caller flushes where it can report an error."""


@contextmanager
def _explain_errors(path: Path) -> Iterator[_File]:
    file = _File()
    try:
        yield file
    except (OSError, RuntimeError) as error:
        found = file.error or error
        if not isinstance(found, OSError):
            raise
        raise CheckpointWriteError(_message(path, found)) from error


def _message(path: Path, error: OSError) -> str:
    before = "The one before it is complete" if _exists(path) else "There was none before it"
    remedy = f"Make {path.parent} a folder on a working disk that this user may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free space for two of them: the old one is kept until the new one is complete"
    if error.errno == errno.EFBIG:
        remedy = "Allow larger files (ulimit -f)"
    return (
        f"{path}: this checkpoint could not be written ({error.strerror or error}). {before}. {remedy}; then "
        f"resume with the same command, {setting('hydra.run.dir', path.parent.parent)} and ckpt_path=auto"
    )


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        return False


def _remove_partial_files(path: Path) -> None:
    """Remove partial files of killed processes; safe because only one process writes to a folder."""
    for partial in path.parent.glob(f".*.partial{path.suffix}"):
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that the new name of a file survives a loss of power."""
    opened = None
    try:
        opened = os.open(folder, os.O_RDONLY)
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        if opened is not None:
            os.close(opened)
