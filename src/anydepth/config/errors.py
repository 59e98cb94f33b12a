"""Readable errors: one message without a traceback, unless the program itself is at fault."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

# What the machine lacks, whoever's code asks for it: space, a quota, a disk that may be written, open files.
_REMEDIES = {
    "ENOSPC": "the disk is full: free space, or give another output",
    "EDQUOT": "the quota of this user is used up: free space, or give another output",
    "EROFS": "the disk may not be written: give another output",
    "EFBIG": "the file system allows no files of this size: give another output",
    "ENAMETOOLONG": "the name of a file is too long: give another output",
    "EMFILE": "too many files are open: raise the limit with `ulimit -n`",
}
# Windows has some of these numbers alone.
_MACHINE_LIMITS = {getattr(errno, name): text for name, text in _REMEDIES.items() if hasattr(errno, name)}

PACKAGE_DIR = Path(__file__).resolve().parents[1]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn user errors into one readable message on stderr and exit code 1; also usable as a decorator.

    A user error is: an error class of this package, a built-in error raised by this package's own checks, a
    file that is missing or not accessible, a disk or memory that is full, and a wrong configuration. A worker
    process that the system killed ends with such a message too. Anything else is a defect and keeps its
    traceback, as does everything while the environment variable ANYDEPTH_TRACEBACK is 1.
    """
    try:
        yield
    except Exception as error:
        message = explain(error)
        if os.environ.get("ANYDEPTH_TRACEBACK") == "1" or message is None:
            raise
        sys.stdout.flush()
        sys.stderr.write(f"\nError: {message}\n")
        sys.stderr.write("(ANYDEPTH_TRACEBACK=1 shows where it was raised.)\n")
        raise SystemExit(1) from error


def explain(error: Exception) -> str | None:
    """Return the message that :func:`readable_errors` prints, or None for a defect of the program."""
    return _message(error) if _is_user_error(error) or _is_lost_worker(error) else None


def _is_user_error(error: Exception) -> bool:
    # Lightning's class is matched by its name because this layer does not import Lightning.
    if type(error).__name__ == "MisconfigurationException":
        return True
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _MACHINE_LIMITS):
        return True
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return True
    if type(error).__module__.partition(".")[0] == "anydepth":
        return True
    return isinstance(error, ValueError) and _raised_by_this_package(error)


def _is_lost_worker(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _raised_by_this_package(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE_DIR)


def _message(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if _is_lost_worker(error):
        return (
            f"a data loader worker died: {text} Most often memory ran out: lower data.num_workers, "
            "data.batch_size or data.partner_pool. Training resumes from ckpt_path=RUN/checkpoints/last.ckpt"
        )
    if "Original Traceback (most recent call last)" in text:
        # A data loader worker sends its traceback as part of the message.
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, MemoryError):
        text = f"memory ran out ({text})"
    elif isinstance(error, OSError) and error.errno in _MACHINE_LIMITS:
        text = f"{_MACHINE_LIMITS[error.errno]} ({text})"
    elif isinstance(error, FileNotFoundError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return "\n".join([text, *getattr(error, "__notes__", [])])
