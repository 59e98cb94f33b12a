"""Hue, saturation and value by lookup tables: bit by bit what Pillow makes of them, in half the time.

Pillow converts each pixel in floating point, there and back. What it rounds to is a function of few small
whole numbers, so tables hold it: hue of (channel that is largest, difference of the two others, largest -
smallest), saturation of (largest, largest - smallest).
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anydepth.data.augment.random_arguments import between, uniform
from anydepth.data.augment.view import View

Bytes = NDArray[np.uint8]

_ROWS = 64
_ONE = 255 * 255  # Saturation and weight of a channel are both in 255ths.
_CASE = 256 * 512  # Entries of the table of hues for each channel that may be largest.
_IDENTITY = np.arange(256, dtype=np.uint8)


class HSVJitter:
    """Multiplies hue, saturation and value by factors of their own, as YOLO's training does.

    Args:
        hue: Largest change of the factor of the hue, which wraps around: 0.015 draws from 0.985 to 1.015.
        saturation: Of the saturation.
        value: Of the value, the largest of red, green and blue.
    """

    def __init__(self, *, hue: float = 0.015, saturation: float = 0.7, value: float = 0.4) -> None:
        self.hue = between("hue", hue, 0, 1)
        self.saturation = between("saturation", saturation, 0, 1)
        self.value = between("value", value, 0, 1)

    def __call__(self, view: View, generator: torch.Generator) -> View:
        """The view in other colours."""
        hue, saturation, value = (
            uniform((1 - extent, 1 + extent), generator) for extent in (self.hue, self.saturation, self.value)
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
    """Look up new hues, saturations and values.

    Args:
        pixels: [H, W, 3] RGB.
        hue: [256] new hue of each hue; 255 is once around.
        saturation: [256] new saturation of each.
        value: [256] new value of each.

    Returns:
        [3, H, W] RGB.
    """
    changed = np.empty((3, *pixels.shape[:2]), np.uint8)
    weights = _weight_table()[hue]
    saturations = saturation[_saturation_table()]
    # In strips, so that what lies between the steps stays in the cache of the processor.
    for top in range(0, len(pixels), _ROWS):
        strip = np.ascontiguousarray(pixels[top : top + _ROWS].transpose(2, 0, 1))
        changed[:, top : top + _ROWS] = _changed(strip, weights, saturations, value)
    return changed


def _changed(rgb: Bytes, weights: NDArray[np.uint32], saturations: Bytes, values: Bytes) -> Bytes:
    """[3, h, W] in new colours; see the tables below for what is looked up."""
    largest = rgb.max(axis=0)
    spread = largest - rgb.min(axis=0)
    spread_rows = spread.astype(np.int32) << 9
    new_value = np.take(values, largest).astype(np.int32)
    new_saturation = np.take(saturations, (spread_rows >> 1) + largest).astype(np.int32)
    hues = np.take(_hue_table(), spread_rows + _hue_columns(rgb, largest))
    share = np.take(weights, hues).view(np.uint8).reshape(*hues.shape, 4)
    out = np.empty_like(rgb)
    for channel in range(3):
        # No two halves ever meet here: adding a half before the division rounds as Pillow does.
        out[channel] = (new_value * (_ONE - new_saturation * share[..., channel]) + _ONE // 2) // _ONE
    return out


def _hue_columns(rgb: Bytes, largest: Bytes) -> NDArray[np.int32]:
    """Which channel is largest, the first of equals, and how much the next exceeds the one after."""
    red, green, blue = rgb.astype(np.int32)
    of_others = np.where(green == largest, blue - red + _CASE, red - green + 2 * _CASE)
    columns: NDArray[np.int32] = np.where(red == largest, green - blue, of_others) + 256
    return columns


@cache
def _hue_table() -> Bytes:
    """Hue by (channel that is largest, spread, difference of the two others + 256), in one dimension."""
    spread, difference = np.meshgrid(np.arange(256), np.arange(-256, 256), indexing="ij")
    colours = np.stack([spread, difference.clip(0), (-difference).clip(0)], axis=-1)
    colours = colours.clip(0, spread[..., None])
    turned = [np.roll(colours, case, axis=-1) for case in range(3)]
    return np.concatenate([_converted(colour, "RGB", "HSV")[..., 0].ravel() for colour in turned])


@cache
def _saturation_table() -> Bytes:
    """Saturation by (spread, largest), in one dimension."""
    spread, largest = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    smallest = (largest - spread).clip(0)
    return _converted(np.stack([largest, smallest, smallest], axis=-1), "RGB", "HSV")[..., 1].ravel()


@cache
def _weight_table() -> NDArray[np.uint32]:
    """By hue, how much of the saturation each channel loses, in 255ths: bytes R, G, B and 0 of one number."""
    hue = np.arange(256)
    full = np.stack([hue, np.full(256, 255), np.full(256, 255)], axis=-1)
    shares = 255 - _converted(full, "HSV", "RGB")
    return np.pad(shares, ((0, 0), (0, 1))).view(np.uint32).ravel()


def _converted(pixels: NDArray[np.int_], source: str, target: str) -> Bytes:
    height, width = pixels.reshape(-1, *pixels.shape[-2:]).shape[:2]
    data = pixels.astype(np.uint8)
    picture = Image.frombytes(source, (width, height), data.tobytes())
    return np.asarray(picture.convert(target)).reshape(pixels.shape)
