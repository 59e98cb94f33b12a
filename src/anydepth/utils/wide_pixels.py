"""Pictures of 16 and 32 bits per channel, scaled to the 8 bits that detectors are trained on.

Files do not say how many of the bits are used. Cameras and microscopes often store 12, which come out black
when all 16 are scaled. Pillow (13.0) loads the upper byte of 16-bit colours alone, takes planes of 16 bits
for planes of 8, and does not turn 16-bit pictures over whose lowest value is white; these are mended or
refused here.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS_VARIABLE = "ANYDEPTH_IMAGE_BITS"
"""The environment variable of the number of bits that the values of such pictures use."""

_OBSERVED_BITS: ContextVar[set[int] | None] = ContextVar("observed_bits", default=None)
_MAX_UINT16 = 65535
# TIFF 6.0: fields, and values that Pillow reads as something else where a sample has 16 bits.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION = 258, 262, 284
_MIN_IS_WHITE, _PLANAR = 0, 2


class PixelRangeError(ValueError):
    """The values of a picture have no known range, or the environment variable is no number of bits."""


def is_negative(picture: Image.Image) -> bool:
    """Return whether the lowest value of a grey TIFF is white, which Pillow heeds only if it has 8 bits."""
    return _tags(picture).get(_PHOTOMETRIC) == _MIN_IS_WHITE


def read_grey(picture: Image.Image, *, negative: bool = False) -> NDArray[np.uint8]:
    """Scale a loaded grey picture of 16 or 32 bits to 8; Pillow's own conversion clips it at 255.

    Args:
        picture: Picture of mode ``I`` or ``I;16...``, [H, W].
        negative: Whether its lowest value is white, see :func:`is_negative`.

    Returns:
        [H, W, 3].

    Raises:
        PixelRangeError: A value is negative or above 65,535.
    """
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > _MAX_UINT16:
        raise PixelRangeError(
            f"32-bit pixels of {values.min()}..{values.max()} have no fixed range; "
            "convert the picture to 8 or 16 bits"
        )
    bits = _bits_used(int(values.max()), narrowest=8 if picture.mode == "I" else 12)
    scaled = _scale_to_eight_bits(values, bits)
    if negative:
        scaled = 255 - scaled
    return np.repeat(scaled[:, :, None], 3, axis=2)


def has_wide_colours(picture: Image.Image) -> bool:
    """Return whether a picture, not loaded yet, has 16-bit colours: Pillow loads their upper bytes alone.

    Raises:
        PixelRangeError: They lie in planes, which Pillow reads as if they had 8 bits.
    """
    if picture.mode not in ("RGB", "RGBA"):
        return False
    tags = _tags(picture)
    if tags.get(_PLANAR_CONFIGURATION) == _PLANAR and max(np.atleast_1d(tags.get(_BITS_PER_SAMPLE, 8))) > 8:
        raise PixelRangeError(
            "a TIFF of more than 8 bits whose colours lie in planes one after another cannot be read; save "
            "it with interleaved colours (PlanarConfiguration 1) or 8 bits"
        )
    return any(";16" in str(tile.args) for tile in _tiles(picture))


def bits_of_colours(picture: Image.Image) -> int:
    """Return the number of bits that 16-bit colours use, from the upper bytes that Pillow has loaded."""
    largest = int(np.asarray(picture.convert("RGB")).max())
    return _bits_used(largest * 256 + 255 if largest else 0)


def restore_lower_bytes(picture: Image.Image, unloaded: Image.Image, bits: int) -> Image.Image:
    """Scale a picture of 16-bit colours that use fewer bits, with the lower bytes that Pillow leaves out.

    Args:
        picture: Picture with the upper bytes.
        unloaded: The same picture, opened again but not loaded.
        bits: Number of bits that the values use.

    Returns:
        An RGB picture with the metadata of its orientation.
    """
    upper = np.asarray(picture.convert("RGB")).astype(np.uint16)
    lower = _load_lower_bytes(unloaded)
    scaled = Image.fromarray(_scale_to_eight_bits(upper * 256 + (upper if lower is None else lower), bits))
    scaled.getexif().update(picture.getexif())
    return scaled


def _load_lower_bytes(picture: Image.Image) -> NDArray[np.uint8] | None:
    """Load what would be the upper bytes in the other byte order; None where Pillow has no such order."""
    swapped = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
    tiles = _tiles(picture)
    for index, tile in enumerate(tiles):
        raw_mode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
        raw_mode = raw_mode[:-4] + swapped.get(raw_mode[-4:], ";?")
        tiles[index] = tile._replace(args=(raw_mode, *rest) if rest else raw_mode)
    try:
        picture.load()
    except ValueError:
        return None
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _tags(picture: Image.Image) -> Mapping[int, Any]:
    """Return the fields of a TIFF; other pictures have none."""
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})
    return tags


def _tiles(picture: Image.Image) -> list[Any]:
    """Return Pillow's own list of what is to be decoded; only pictures of files have one."""
    tiles: list[Any] = getattr(picture, "tile", [])
    return tiles


@contextmanager
def observe_bits() -> Iterator[set[int]]:
    """Collect the numbers of bits that pictures read within the block, in this thread, were taken to use.

    Pictures of 8 bits per channel and black ones do not count.
    """
    bits: set[int] = set()
    token = _OBSERVED_BITS.set(bits)
    try:
        yield bits
    finally:
        _OBSERVED_BITS.reset(token)


def _bits_used(largest: int, narrowest: int = 12) -> int:
    bits = _find_bits(largest, narrowest)
    observed = _OBSERVED_BITS.get()
    if observed is not None and largest:
        observed.add(bits)
    return bits


def _find_bits(largest: int, narrowest: int) -> int:
    given = os.environ.get(BITS_VARIABLE)
    if given:
        if given not in (allowed := [str(bits) for bits in range(8, 17)]):
            raise PixelRangeError(f"got {BITS_VARIABLE}={given[:40]!r}, expected one of {', '.join(allowed)}")
        return int(given)
    bits = next(bits for bits in (8, 12, 16) if bits >= narrowest and largest < 2**bits)
    if largest and bits < 16:
        _warn_of_few_bits(bits)
    elif 0 < largest < 2**14:
        _warn_of_dark_values()
    return bits


@cache
def _warn_of_dark_values() -> None:
    """Warn once per process."""
    warnings.warn(
        f"pictures of 16 bits whose values are all below {2**14:,} come out dark: if they have 13 or 14 "
        f"bits, set the environment variable {BITS_VARIABLE} to that number",
        stacklevel=2,
    )


@cache
def _warn_of_few_bits(bits: int) -> None:
    """Warn once per process and number of bits."""
    warnings.warn(
        f"pictures of 16 or 32 bits whose values are all below {2**bits:,} are taken for pictures of {bits} "
        "bits, as they would be black otherwise. If they have fewer, or others of the set have larger "
        f"values, set the environment variable {BITS_VARIABLE} (8 to 16) so that all are read alike",
        stacklevel=2,
    )


def _scale_to_eight_bits(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    # A lookup table, because float64 quotients would take eight bytes per pixel.
    levels = np.rint(np.arange(_MAX_UINT16 + 1) / ((2**bits - 1) / 255)).clip(max=255).astype(np.uint8)
    scaled: NDArray[np.uint8] = levels[values]
    return scaled
