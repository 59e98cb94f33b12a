"""Colours by tables, against Pillow's conversion."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from painted_pictures import generator, painted, plain
from PIL import Image

from anydepth.data.augment.hsv import HSVJitter, change_hsv

Bytes = NDArray[np.uint8]


def by_pillow(pixels: Bytes, hue: Bytes, saturation: Bytes, value: Bytes) -> Bytes:
    picture = Image.fromarray(pixels).convert("HSV").point([*hue, *saturation, *value])
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def test_every_colour_becomes_what_pillow_makes_of_it() -> None:
    # Every fourth red with all greens and blues (4 million colours), under tables of random numbers.
    green, blue = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    random = np.random.default_rng(0)
    for red in (*range(0, 256, 4), 255):
        pixels = np.stack([np.full_like(green, red), green, blue], axis=-1).astype(np.uint8)
        tables = [random.integers(0, 256, 256).astype(np.uint8) for _ in range(3)]
        found = change_hsv(pixels, hue=tables[0], saturation=tables[1], value=tables[2])
        assert np.array_equal(found, by_pillow(pixels, *tables)), red


def test_pictures_of_every_shape_are_changed() -> None:
    random = np.random.default_rng(1)
    for shape in ((1, 1), (1, 300), (129, 1), (256, 3), (200, 77)):
        pixels = random.integers(0, 256, (*shape, 3)).astype(np.uint8)
        same = np.arange(256, dtype=np.uint8)
        assert np.array_equal(change_hsv(pixels), by_pillow(pixels, same, same, same))


def test_jitter_multiplies_and_hue_wraps_around() -> None:
    # A hue just below a full turn, times 1.015 at most, comes out as red with some yellow.
    pixels = torch.tensor([250, 0, 6], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8).contiguous()
    view = painted(8, 8, [])._replace(image=pixels)
    wrapped = [
        plain(HSVJitter(hue=0.015, saturation=0, value=0)(view, generator(seed)))[0][:, 0, 0]
        for seed in range(40)
    ]
    assert any(colour[1] > 0 and colour[2] == 0 for colour in wrapped)
    assert any(colour[1] == 0 and colour[2] > 6 for colour in wrapped)
    brightness = HSVJitter(hue=0, saturation=0, value=0.4)
    values = [plain(brightness(view, generator(seed)))[0].max() / 250 for seed in range(40)]
    assert 0.6 <= min(values) < 0.7
    # 1.02 is where 255 cuts off.
    assert max(values) == pytest.approx(1.02)


def test_no_jitter_keeps_colours_up_to_the_rounding_of_the_conversion() -> None:
    view = painted(20, 30, [[2, 2, 20, 10], [5, 5, 9, 9]])
    same = HSVJitter(hue=0, saturation=0, value=0)(view, generator())
    assert (plain(same)[0].int() - plain(view)[0].int()).abs().max() <= 4
    assert torch.equal(same.labels, view.labels)


@pytest.mark.parametrize("name", ["hue", "saturation", "value"])
def test_impossible_strengths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=1.5, expected 0 to 1"):
        HSVJitter(**{name: 1.5})
