"""Which way up a picture is read: in the frame that its boxes lie in."""

from collections.abc import Callable

from torch import Tensor

from anydepth.data.errors import BadImageError
from anydepth.images import ImageError


def image_in_frame(read: Callable[[bool], Tensor], size: tuple[int, int], *, name: str, entry: str) -> Tensor:
    """A picture in the frame whose size the json gives.

    Where the EXIF orientation turns a picture on its side, the json may hold either frame. A square picture,
    or one turned upside down, is taken upright.

    Args:
        read: Reads the picture [3, H, W], upright or (False) as its pixels are stored.
        size: (height, width) in pixels that the json gives.
        name: What messages call the picture.
        entry: What messages call its entry in the json.

    Raises:
        BadImageError: The picture cannot be read, or its size fits the json in neither frame.
    """
    try:
        image = read(True)
        if tuple(image.shape[-2:]) != size:
            image = read(False)
    except ImageError as error:
        raise BadImageError(f"{entry}: {error}, together with its entry in the json") from error
    if tuple(image.shape[-2:]) != size:
        raise BadImageError(
            f"{entry}: {name} is {tuple(image.shape[-2:])} pixels (height, width), but the json says "
            f"{size}; its boxes belong to another picture: correct the json or restore the file"
        )
    return image
