"""Packages that only some commands need."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingPackageError(ValueError):
    """A package that a command needs is not installed; the message says how to install it."""


@contextmanager
def needing_packages(purpose: str, remedy: str) -> Iterator[None]:
    """Within the block, a module that does not exist is an error that says what to install.

    Args:
        purpose: What needs it, e.g. ``exporting``.
        remedy: What to install.

    Raises:
        MissingPackageError: Names the module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{purpose} needs the package {error.name}, which is not installed; install {remedy}"
        ) from error
