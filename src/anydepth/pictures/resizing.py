"""Resizing pictures with numpy to exactly the values that PyTorch computes.

PyTorch resizes uint8 images on a CPU (with AVX2) in fixed point: first along the rows of pixels, then along
the columns, each pass rounded to whole grey levels. A pixel of a pass is a weighted mean of its neighbours,
with a triangle of weights that widens with the reduction, which is what antialiasing means. The weights are
rounded to as many binary places as the largest of them leaves room for in 16 bits.

Here, a pass is a product with a banded matrix, cut into blocks that leave out most of its zeros. All products
and sums are multiples of one power of two that the floating-point type holds exactly, so that neither the
order of summation nor the BLAS library affects the result.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.pictures.reading import Pixels

# Weights are 16-bit integers with a sign, and sums of 32 bits leave room for no more than 22 places.
_WEIGHT_LIMIT = 2**15
_MAX_PLACES = 22
# Levels are centred, from -128 to 127, so that sums with 17 binary places stay within the 24 bits that
# float32 holds exactly. Where rounded weights add up to more than one, only the sums of black pixels exceed
# them, which are far from the halves where rounding counts.
_MAX_PLACES_FLOAT32 = 17
# Output positions of a block, and pixels converted at a time (128 rows of 1920): measured, the fastest for
# 1080x1920 to 640x640. Larger blocks hold more zeros, smaller ones are too thin for BLAS.
_BLOCK = 16
_PART = 2**18
# Weights of longer sides take megabytes and are made again for each picture.
_CACHED_SIDE = 8192

Indices = NDArray[np.int64]
Floats = NDArray[Any]
"""Values of float32 or float64."""


@dataclass(frozen=True)
class _Axis:
    """Weights of all output positions along an axis.

    Attributes:
        blocks: Blocks of adjacent positions.
        offsets: [N] what is added before the fraction is cut off: a half, for rounding, and what centring
            takes from a mean whose rounded weights do not add up to one.
    """

    blocks: tuple["_Block", ...]
    offsets: Floats


@dataclass(frozen=True)
class _Block:
    """Weights of adjacent output positions.

    Attributes:
        outputs: The positions, n of them.
        inputs: The m input positions that they depend on.
        weights: [n, m], float32 or float64.
    """

    outputs: slice
    inputs: slice
    weights: Floats


def resize_picture(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize a picture, bilinear with antialiasing, without keeping its aspect ratio.

    Args:
        picture: [H, W, 3] RGB.
        size: (height, width) in pixels.

    Returns:
        [height, width, 3], equal to what :func:`anydepth.images.resize_keeping_type` makes of the same
        picture; the picture itself if it has this size.

    Raises:
        ValueError: Not [H, W, 3] uint8, or a side below 1.
    """
    _check(picture, size)
    height, width = picture.shape[:2]
    if (height, width) == tuple(size):
        return picture
    return _resize_height(_resize_width(picture, size[1]), size[0])


def _check(picture: Pixels, size: tuple[int, int]) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"got a picture of shape {picture.shape} and type {picture.dtype}, expected [H, W, 3] uint8 RGB"
        )
    if min(*picture.shape, *size) < 1:
        raise ValueError(
            f"got a picture of {picture.shape[:2]} to resize to {tuple(size)} pixels, expected sides from 1"
        )


def _resize_width(picture: Pixels, width: int) -> NDArray[np.float32]:
    """Return planes [3, H, width] of centred levels of a picture [H, W, 3]."""
    height, input_width = picture.shape[:2]
    resized = np.empty((3, height, width), dtype=np.float32)
    if width == input_width:
        resized[...] = _centre(picture).transpose(2, 0, 1)
        return resized
    axis = _axis(input_width, width)
    rows = min(height, max(1, _PART // input_width))
    part = np.empty((3, rows, input_width), dtype=axis.offsets.dtype)
    means = np.empty((3, rows, width), dtype=part.dtype)
    for top in range(0, height, rows):
        # The last part begins earlier instead of being smaller.
        begin = min(top, height - rows)
        part[...] = _centre(picture[begin : begin + rows]).transpose(2, 0, 1)
        for block in axis.blocks:
            # Planes as rows of one matrix: [3 * rows, m] @ [m, n]
            np.matmul(
                part.reshape(-1, input_width)[:, block.inputs],
                block.weights.T,
                out=means.reshape(-1, width)[:, block.outputs],
            )
        means += axis.offsets
        np.floor(means, out=resized[:, begin : begin + rows], casting="same_kind")
    return resized


def _resize_height(planes: NDArray[np.float32], height: int) -> Pixels:
    """Return the picture [height, W, 3] of planes [3, H, W] of centred levels."""
    _, input_height, width = planes.shape
    if height == input_height:
        return _uncentre(planes)
    resized = np.empty((height, width, 3), dtype=np.uint8)
    axis = _axis(input_height, height)
    for block in axis.blocks:
        means = np.matmul(block.weights, planes[:, block.inputs])  # [3, n, W]
        means += axis.offsets[block.outputs, None]
        resized[block.outputs] = _uncentre(np.floor(means, out=means))
    return resized


def _centre(levels: Pixels) -> NDArray[np.int8]:
    """Return levels - 128, by the bit that is the sign of an 8-bit integer."""
    return (levels ^ 128).view(np.int8)


def _uncentre(planes: Floats) -> Pixels:
    """Return the picture [H, W, 3] of planes [3, H, W] of centred levels."""
    # Interleaved last, because numpy interleaves bytes faster than floats.
    levels = planes.astype(np.int8).view(np.uint8) ^ 128
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _axis(input_side: int, output_side: int) -> _Axis:
    if input_side > _CACHED_SIDE:
        return _make_axis(input_side, output_side)
    return _cached_axis(input_side, output_side)


def _make_axis(input_side: int, output_side: int) -> _Axis:
    first, last, weights, places = _weights(input_side, output_side)
    dtype = np.float32 if places <= _MAX_PLACES_FLOAT32 else np.float64
    scaled = (weights / 2**places).astype(dtype)
    blocks = tuple(
        _cut_block(slice(begin, min(begin + _BLOCK, output_side)), first, last, scaled)
        for begin in range(0, output_side, _BLOCK)
    )
    offsets = 0.5 + 128 * (weights.sum(axis=1) / 2**places - 1)
    return _Axis(blocks, offsets.astype(dtype))


_cached_axis = lru_cache(maxsize=64)(_make_axis)


def _cut_block(outputs: slice, first: Indices, last: Indices, weights: Floats) -> _Block:
    inputs = slice(int(first[outputs.start]), int(last[outputs].max()))
    n, taps = outputs.stop - outputs.start, weights.shape[1]
    # Room for the zeros that follow the weights of positions near the end.
    banded = np.zeros((n, inputs.stop - inputs.start + taps), dtype=weights.dtype)
    places = first[outputs, None] - inputs.start + np.arange(taps)  # [n, taps]
    np.put_along_axis(banded, places, weights[outputs], axis=1)
    return _Block(outputs, inputs, banded[:, : inputs.stop - inputs.start])


def _weights(input_side: int, output_side: int) -> tuple[Indices, Indices, Indices, int]:
    """Return the weights of each output position in fixed point.

    Returns:
        The first input position and the one after the last, [n] each; the weights of those between, [n, taps]
        with zeros behind; the number of binary places of the weights.
    """
    scale = input_side / output_side
    reach = max(scale, 1.0)  # Half the base of the triangle, in input pixels
    centers = scale * (np.arange(output_side) + 0.5)
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + reach + 0.5).astype(np.int64), input_side)
    taps = np.arange(int((last - first).max()))
    # Every operation and its order count: a weight that is rounded otherwise changes grey levels.
    distances = np.abs((taps + first[:, None] - centers[:, None] + 0.5) * (1.0 / reach))
    triangle = np.where(taps < (last - first)[:, None], np.maximum(1.0 - distances, 0.0), 0.0)
    # A running sum, because numpy's sum adds in pairs.
    means = triangle / np.cumsum(triangle, axis=1)[:, -1:]
    places = _binary_places(float(means.max()))
    return first, last, (0.5 + means * 2**places).astype(np.int64), places


def _binary_places(largest: float) -> int:
    """Return the most binary places with which the largest weight stays within 16 bits."""
    places = 0
    while places < _MAX_PLACES and int(0.5 + largest * 2 ** (places + 1)) < _WEIGHT_LIMIT:
        places += 1
    return places
