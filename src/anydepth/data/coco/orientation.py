"""EXIF orientation: read a picture in the frame of its boxes."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from anydepth.data.errors import BadImageError, DataError
from anydepth.pictures.reading import ImageError, open_picture

_EXIF_ORIENTATION = 0x0112
_TRANSPOSED_ORIENTATIONS = {5, 6, 7, 8}  # Those that swap height and width (Exif 2.32, tag 274).


def read_in_json_frame(
    read: Callable[[bool], Tensor], size: tuple[int, int], *, name: str, entry: str
) -> Tensor:
    """Read a picture in the frame whose size the json gives.

    If the EXIF orientation rotates a picture by 90 degrees, the json may hold either frame. A square picture,
    or one rotated by 180 degrees, is read upright.

    Args:
        read: Function that reads the picture [3, H, W], upright (True) or as its pixels are stored (False).
        size: (height, width) in pixels according to the json.
        name: Name of the picture in messages.
        entry: Name of its json entry in messages.

    Returns:
        [3, H, W] uint8 RGB.

    Raises:
        BadImageError: The picture cannot be read, or neither frame has the size that the json gives.
    """
    try:
        image = read(True)
        if tuple(image.shape[-2:]) != size:
            image = read(False)
    except ImageError as error:
        raise BadImageError(
            f"{entry}: {error}. Whoever removes the file has to remove its entry in the json, too"
        ) from error
    if tuple(image.shape[-2:]) != size:
        raise BadImageError(
            f"{entry}: {name} is {tuple(image.shape[-2:])} pixels (height, width), expected {size} according "
            "to the json; its boxes belong to another picture: correct the json or restore the file"
        )
    return image


def read_picture_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read the (height, width) of a picture, upright and as stored, from its header.

    Raises:
        DataError: It is not a readable picture.
    """
    try:
        with open_picture(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED_ORIENTATIONS
    # Files are arbitrary bytes, on which decoders raise exceptions of any kind.
    except Exception as error:
        raise DataError(f"{path}: not a readable picture ({error}); restore or remove it") from error
    return ((width, height) if turned else (height, width)), (height, width)
