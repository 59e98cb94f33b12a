"""Hue, saturation and value by lookup tables: bit-identical to Pillow's conversion, in half the time.

Pillow converts each pixel to HSV and back in floating point and rounds. The rounded results are functions of
a few small integers, so tables hold them: the hue of (index of the largest channel, difference of the two
others, largest - smallest), the saturation of (largest, largest - smallest).
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anydepth.data.augment.random_arguments import check_between, draw_uniform
from anydepth.data.augment.view import View

Bytes = NDArray[np.uint8]

_STRIP_ROWS = 64  # Rows at a time, so that the intermediate results stay in the processor's cache.
_FULL = 255 * 255  # Saturation times the weight of a channel, both in 255ths.
_HUES_PER_CHANNEL = 256 * 512  # Entries of the hue table per largest channel: spread times difference + 256.
_IDENTITY = np.arange(256, dtype=np.uint8)


class HSVJitter:
    """Random factors of hue, saturation and value, as in YOLO's training.

    Args:
        hue: Maximum change of the hue's factor: 0.015 draws from 0.985 to 1.015. The hue wraps around.
        saturation: Maximum change of the saturation's factor.
        value: Maximum change of the factor of the value, the largest of red, green and blue.
    """

    def __init__(self, *, hue: float = 0.015, saturation: float = 0.7, value: float = 0.4) -> None:
        self.hue = check_between("hue", hue, 0, 1)
        self.saturation = check_between("saturation", saturation, 0, 1)
        self.value = check_between("value", value, 0, 1)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """Change the colours of a view."""
        hue, saturation, value = (
            draw_uniform((1 - extent, 1 + extent), generator)
            for extent in (self.hue, self.saturation, self.value)
        )
        levels = np.arange(256)
        pixels = change_hsv(
            view.image.permute(1, 2, 0).numpy(),
            hue=(levels * hue % 255).astype(np.uint8),
            saturation=(levels * saturation).clip(0, 255).astype(np.uint8),
            value=(levels * value).clip(0, 255).astype(np.uint8),
        )
        return view._replace(image=View.of(torch.from_numpy(pixels), view.boxes_xyxy, view.labels).image)


def change_hsv(
    pixels: Bytes, *, hue: Bytes = _IDENTITY, saturation: Bytes = _IDENTITY, value: Bytes = _IDENTITY
) -> Bytes:
    """Map hues, saturations and values through lookup tables.

    Args:
        pixels: [H, W, 3] RGB.
        hue: [256] new hue of each hue; 255 is a full turn.
        saturation: [256] new saturation of each saturation.
        value: [256] new value of each value.

    Returns:
        [3, H, W] RGB.
    """
    changed = np.empty((3, *pixels.shape[:2]), np.uint8)
    weights = _weight_table()[hue]
    saturations = saturation[_saturation_table()]
    for top in range(0, len(pixels), _STRIP_ROWS):
        strip = np.ascontiguousarray(pixels[top : top + _STRIP_ROWS].transpose(2, 0, 1))
        changed[:, top : top + _STRIP_ROWS] = _change_strip(strip, weights, saturations, value)
    return changed


def _change_strip(rgb: Bytes, weights: NDArray[np.uint32], saturations: Bytes, values: Bytes) -> Bytes:
    """Change the colours of a strip [3, h, W]; see the tables below."""
    largest = rgb.max(axis=0)  # [h, W]
    spread = largest - rgb.min(axis=0)  # [h, W]
    spread_rows = spread.astype(np.int32) << 9
    new_value = np.take(values, largest).astype(np.int32)
    new_saturation = np.take(saturations, (spread_rows >> 1) + largest).astype(np.int32)
    hues = np.take(_hue_table(), spread_rows + _hue_columns(rgb, largest))
    share = np.take(weights, hues).view(np.uint8).reshape(*hues.shape, 4)  # [h, W, 4]
    out = np.empty_like(rgb)
    for channel in range(3):
        # _FULL is odd, so that no quotient ends in a half: adding a half before dividing rounds as Pillow.
        out[channel] = (new_value * (_FULL - new_saturation * share[..., channel]) + _FULL // 2) // _FULL
    return out


def _hue_columns(rgb: Bytes, largest: Bytes) -> NDArray[np.int32]:
    """Return the column in the hue table: index of the largest channel and difference of the two others."""
    red, green, blue = rgb.astype(np.int32)
    green_or_blue = np.where(
        green == largest, blue - red + _HUES_PER_CHANNEL, red - green + 2 * _HUES_PER_CHANNEL
    )
    # Of equal channels the first counts, as in Pillow.
    columns: NDArray[np.int32] = np.where(red == largest, green - blue, green_or_blue) + 256
    return columns


@cache
def _hue_table() -> Bytes:
    """Return the hue by (largest channel, spread, difference of the two others + 256), flattened."""
    spread, difference = np.meshgrid(np.arange(256), np.arange(-256, 256), indexing="ij")
    colours = np.stack([spread, difference.clip(0), (-difference).clip(0)], axis=-1)
    colours = colours.clip(0, spread[..., None])
    turned = [np.roll(colours, case, axis=-1) for case in range(3)]
    return np.concatenate([_convert(colour, "RGB", "HSV")[..., 0].ravel() for colour in turned])


@cache
def _saturation_table() -> Bytes:
    """Return the saturation by (spread, largest), flattened."""
    spread, largest = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    smallest = (largest - spread).clip(0)
    return _convert(np.stack([largest, smallest, smallest], axis=-1), "RGB", "HSV")[..., 1].ravel()


@cache
def _weight_table() -> NDArray[np.uint32]:
    """Return by hue how much of the saturation each channel loses (255ths), as bytes R, G, B, 0 of uint32."""
    hue = np.arange(256)
    full = np.stack([hue, np.full(256, 255), np.full(256, 255)], axis=-1)
    shares = 255 - _convert(full, "HSV", "RGB")
    return np.pad(shares, ((0, 0), (0, 1))).view(np.uint32).ravel()


def _convert(pixels: NDArray[np.int_], source: str, target: str) -> Bytes:
    height, width = pixels.reshape(-1, *pixels.shape[-2:]).shape[:2]
    data = pixels.astype(np.uint8)
    picture = Image.frombytes(source, (width, height), data.tobytes())
    return np.asarray(picture.convert(target)).reshape(pixels.shape)
