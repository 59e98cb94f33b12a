"""Reading image files of every kind that data sets contain into one form."""

from pathlib import Path

from torch import Tensor


class ImageError(ValueError):
    """A file that is missing or is no readable image; the message names the file."""


def read_image(path: str | Path) -> Tensor:
    """The image [3, H, W] uint8 RGB; to be written."""
    raise ImageError(str(path))
