"""Resizing with numpy gives the values that PyTorch computes, without any tolerance."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anydepth.images import resize_keeping_type, to_tensor
from anydepth.pictures.reading import Pixels
from anydepth.pictures.resizing import resize_picture

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torchvision resizes uint8 images in floating point on this CPU, and rounds some levels otherwise",
)
SIDES = st.integers(1, 300)
SIZES = st.tuples(SIDES, SIDES)


def resize_with_torch(picture: Pixels, size: tuple[int, int], *, channels_last: bool = True) -> Pixels:
    image = to_tensor(picture)
    resized = resize_keeping_type(image if channels_last else image.contiguous(), size)
    pixels: Pixels = resized.permute(1, 2, 0).numpy()
    return pixels


def make_picture(size: tuple[int, int], seed: int = 0) -> Pixels:
    """Noise of all levels, or of black and white alone, whose means are farthest from both."""
    random = np.random.default_rng(seed)
    if seed % 2:
        return random.choice(np.array([0, 255], dtype=np.uint8), (*size, 3))
    return random.integers(0, 256, (*size, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=150)
@given(SIZES, SIZES, st.integers(0, 9))
@example((1, 1), (300, 200), 0)
@example((1, 300), (64, 64), 1)
@example((299, 1), (64, 64), 0)
@example((100, 64), (64, 64), 1)  # The rows stay as long as they are.
@example((64, 100), (64, 64), 1)
def test_every_level_is_the_one_of_pytorch(
    original: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    picture = make_picture(original, seed)
    np.testing.assert_array_equal(resize_picture(picture, size), resize_with_torch(picture, size))


@pytest.mark.parametrize(
    ("original", "size"),
    [
        ((1080, 1920), (640, 640)),
        ((480, 640), (640, 640)),
        ((700, 5000), (96, 640)),  # 17 binary places in both passes, the most of float32
        ((900, 7000), (96, 640)),  # 18 places
        ((3000, 40), (32, 64)),
        ((2, 9000), (64, 640)),  # Longer than the sides whose weights are kept.
    ],
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_large_pictures_and_either_order_of_memory(
    original: tuple[int, int], size: tuple[int, int], channels_last: bool
) -> None:
    picture = make_picture(original)
    expected = resize_with_torch(picture, size, channels_last=channels_last)
    np.testing.assert_array_equal(resize_picture(picture, size), expected)


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("original", [(20, 31), (400, 200), (96, 3000)])
def test_black_and_white_stay_what_they_are(original: tuple[int, int], level: int) -> None:
    # The rounded weights of a pixel may add up to more than one.
    assert (resize_picture(np.full((*original, 3), level, dtype=np.uint8), (64, 32)) == level).all()


@pytest.mark.parametrize("scale", [6, 14, 30])  # 17, 18 and 19 binary places
@pytest.mark.parametrize("level", [0, 254])
def test_means_halfway_between_two_levels_are_exact(scale: int, level: int) -> None:
    # Every other column or row is a level brighter. The weights of both kinds mirror each other, so that the
    # means lie at a half or one unit beside it, and one bit too few would round them to the other side.
    picture = np.full((scale * 8, scale * 8, 3), level, dtype=np.uint8)
    picture[:, ::2] += 1
    for striped in (picture, np.ascontiguousarray(picture.transpose(1, 0, 2))):
        np.testing.assert_array_equal(resize_picture(striped, (8, 8)), resize_with_torch(striped, (8, 8)))


def test_a_mirrored_view_and_one_of_other_channels_are_taken_as_they_are() -> None:
    picture = make_picture((50, 70))
    view = picture[:, ::-1, ::-1]
    np.testing.assert_array_equal(resize_picture(view, (32, 96)), resize_with_torch(view.copy(), (32, 96)))


def test_a_picture_of_the_right_size_is_not_copied() -> None:
    picture = make_picture((8, 9))
    assert resize_picture(picture, (8, 9)) is picture


def test_other_arrays_and_empty_sizes_are_refused() -> None:
    for other in (np.zeros((8, 9), np.uint8), np.zeros((8, 9, 4), np.uint8), np.zeros((8, 9, 3))):
        with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8 RGB"):
            resize_picture(other, (8, 8))
    with pytest.raises(ValueError, match=r"of \(8, 9\) to resize to \(0, 4\) pixels, expected sides from 1"):
        resize_picture(make_picture((8, 9)), (0, 4))
