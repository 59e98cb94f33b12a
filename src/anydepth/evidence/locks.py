"""Locks that a process holds for as long as it lives, also when the one that started it is gone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockedError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def inheritable_lock(path: Path) -> Iterator[tuple[int, ...]]:
    """Lock a file, and provide its descriptors for ``subprocess.Popen(pass_fds=...)``.

    A process that inherits them keeps the lock after the block has ended, until it ends itself. So a job that
    goes on after its runner was killed is not started a second time in the same folder. Systems without
    ``flock`` lock nothing and provide no descriptor.

    Raises:
        LockedError: Another process holds the lock.
    """
    if sys.platform == "win32":
        yield ()
        return
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(f"{path}: held by another process") from error
        yield (descriptor,)
    finally:
        os.close(descriptor)
