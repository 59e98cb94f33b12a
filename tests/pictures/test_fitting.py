"""What a network gets of a file is the same without PyTorch as with it, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from anydepth.images import fit_image, read_image, to_tensor, to_unit_range
from anydepth.pictures.fitting import Fit, fit_picture, letter_box_frame, to_input
from anydepth.pictures.reading import Pixels, read_picture

RANDOM = np.random.default_rng(0)


def _noise(height: int, width: int) -> Pixels:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _palette(path: Path) -> Path:
    Image.fromarray(_noise(40, 61)).quantize(30).save(path.with_suffix(".png"), transparency=3)
    return path.with_suffix(".png")


def _cmyk(path: Path) -> Path:
    inks = RANDOM.integers(0, 256, (33, 70, 4), dtype=np.uint8)
    Image.fromarray(inks, mode="CMYK").save(path.with_suffix(".jpg"))
    return path.with_suffix(".jpg")


def _turned(path: Path) -> Path:
    picture = Image.fromarray(_noise(50, 81))
    exif = picture.getexif()
    exif[274] = 6
    picture.save(path.with_suffix(".jpg"), exif=exif)
    return path.with_suffix(".jpg")


def _plain(pixels: np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        return path.with_suffix(".png")

    return write


WRITERS: dict[str, Callable[[Path], Path]] = {
    "odd sides": _plain(_noise(123, 77)),
    "wide": _plain(_noise(31, 301)),
    "of the input's size": _plain(_noise(64, 96)),
    "one pixel": _plain(_noise(1, 1)),
    "one row": _plain(_noise(1, 90)),
    "one column": _plain(_noise(90, 1)),
    "grey": _plain(_noise(45, 46)[:, :, 0]),
    "transparent": _plain(RANDOM.integers(0, 256, (40, 50, 4), dtype=np.uint8)),
    "16-bit grey": _plain(RANDOM.integers(0, 65536, (40, 50), dtype=np.uint16)),
    "palette": _palette,
    "CMYK": _cmyk,
    "EXIF orientation": _turned,
}


@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_files_are_fitted_as_pytorch_fits_them(
    tmp_path: Path, write: Callable[[Path], Path], fit: Fit
) -> None:
    path = write(tmp_path / "a")
    fitted = fit_picture(read_picture(path), (64, 96), fit)
    expected = fit_image(read_image(path), (64, 96), fit)
    np.testing.assert_array_equal(fitted, expected.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(to_input([fitted])[0], to_unit_range(expected).numpy())


def test_all_levels_become_the_same_floats() -> None:
    levels = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    assert len(np.unique(levels)) == 256
    batch = to_input([levels, levels[::-1]])
    assert batch.dtype == np.float32
    assert batch.shape == (2, 3, 16, 16)
    expected = to_unit_range(torch.stack([to_tensor(levels), to_tensor(levels[::-1].copy())])).numpy()
    np.testing.assert_array_equal(batch.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


def test_a_letter_boxed_picture_fills_its_region_and_is_grey_beside() -> None:
    fitted = fit_picture(np.zeros((50, 100, 3), dtype=np.uint8), (64, 64), "letter_box")
    box = letter_box_frame((50, 100), (64, 64))
    assert box.region == (slice(16, 48), slice(0, 64))  # 50 * 64 / 100 = 32 rows, half of 64 - 32 above
    assert (fitted[box.region] == 0).all()
    assert (np.delete(fitted, range(16, 48), axis=0) == 114).all()
