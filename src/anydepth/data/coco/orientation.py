"""EXIF orientation: read a picture in the frame of its boxes."""

from collections.abc import Callable

from torch import Tensor

from anydepth.data.errors import BadImageError
from anydepth.images import ImageError


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
        raise BadImageError(f"{entry}: {error}, together with its entry in the json") from error
    if tuple(image.shape[-2:]) != size:
        raise BadImageError(
            f"{entry}: {name} is {tuple(image.shape[-2:])} pixels (height, width), expected {size} according "
            "to the json; its boxes belong to another picture: correct the json or restore the file"
        )
    return image
