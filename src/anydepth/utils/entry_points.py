"""Entry points of installed packages, without reading the description of every package at each question."""

import sys
from functools import lru_cache
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path


def entry_points_of(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group, in Python's order.

    They are looked for again once a folder of ``sys.path`` has changed, as when a package is installed into a
    process that runs, or ``sys.path`` itself has.

    Args:
        group: Name of the group, e.g. ``anydepth.presets``.
    """
    return _found(group, tuple(_state_of(folder) for folder in sys.path))


@lru_cache(maxsize=64)
def _found(group: str, folders: tuple[tuple[str, int, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))


def _state_of(folder: str) -> tuple[str, int, int]:
    """Return what changes when a package is installed into a folder, or removed from it."""
    try:
        found = Path(folder).stat()
    except OSError:  # Python skips folders that are not there, too.
        return folder, 0, 0
    return folder, found.st_ino, found.st_mtime_ns
