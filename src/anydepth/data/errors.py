"""Errors and warnings about data sets."""

import warnings


class DataError(ValueError):
    """A data set cannot be used as it is; the message names the file, the id and the remedy."""


class BadImageError(DataError):
    """A single image of a data set cannot be used, while others may be fine."""


class DataWarning(UserWarning):
    """Something in a data set was repaired."""


def warn(message: str) -> None:
    """Issue a :class:`DataWarning`."""
    warnings.warn(message, DataWarning, stacklevel=3)
