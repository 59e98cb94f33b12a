"""Images as tensors: reading, resizing and letter-boxing."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from anydepth.images import decode_image, fit_image, read_image, resize_keeping_type, to_unit_range
from anydepth.pictures.fitting import Fit, check_fit, place_image


def test_an_image_is_the_picture_with_its_channels_in_front(tmp_path: Path) -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    Image.fromarray(picture).save(tmp_path / "a.png")
    for image in (read_image(tmp_path / "a.png"), decode_image((tmp_path / "a.png").read_bytes(), "a")):
        assert image.shape == (3, 2, 3)
        assert image.dtype == torch.uint8
        assert image[None].is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), picture)


@pytest.mark.parametrize("size", [(20, 31), (96, 50)])
def test_resizing_agrees_with_pillow(size: tuple[int, int]) -> None:
    # Pillow's bilinear filter widens with the reduction, which is what antialiasing means.
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    found = to_unit_range(resize_keeping_type(image, size))
    assert found.dtype == torch.float32
    assert found.shape == (3, *size)
    reference = torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, reference, atol=1.01 / 255, rtol=0)
    if size[0] < 70:
        aliased = F.interpolate(image[None] / 255, size, mode="bilinear", antialias=False)[0]
        assert (aliased - reference).abs().max() > 0.1


def test_float_and_uint8_are_resized_alike_up_to_one_grey_level() -> None:
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    as_float = resize_keeping_type(image / 255, (32, 32))
    whole = resize_keeping_type(image, (32, 32))
    assert as_float.dtype == torch.float32
    assert whole.dtype == torch.uint8
    torch.testing.assert_close(as_float, to_unit_range(whole), atol=1.01 / 255, rtol=0)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    assert get_args(Fit) == ("stretch", "letter_box")
    for fit in get_args(Fit):
        assert torch.equal(fit_image(image, (8, 9), fit), image)


@pytest.mark.parametrize("original", [(50, 100), (100, 50), (30, 31), (1, 400), (7, 5)])
@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_box_lies_where_its_pixels_do_once_the_image_is_fitted(original: tuple[int, int], fit: Fit) -> None:
    height, width = original
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    box = (width // 4, height // 5, width - width // 3, height)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    size = (64, 96)
    fitted = fit_image(image, size, fit)[0].float()
    canvas, offset = place_image(original, size, fit)
    x = [(corner + offset[1]) / canvas[1] * size[1] for corner in box[::2]]
    y = [(corner + offset[0]) / canvas[0] * size[0] for corner in box[1::2]]
    assert 0 <= x[0] < x[1] <= size[1] + 1e-4
    assert 0 <= y[0] < y[1] <= size[0] + 1e-4
    # Grey beside the image, black in it, white in the box: borders are where columns and rows are half white.
    inside = torch.zeros(size)
    inside[round(y[0]) : round(y[1]), round(x[0]) : round(x[1])] = 255
    differs = ((fitted - inside).abs() > 128).nonzero()
    border_x, border_y = (torch.tensor([low, high]) for low, high in (x, y))
    for row, column in differs.tolist():
        near_x = (border_x - column - 0.5).abs().min()
        near_y = (border_y - row - 0.5).abs().min()
        assert min(near_x, near_y) <= max(1.0, 0.5 * size[1] / width, 0.5 * size[0] / height)


def test_letter_boxing_keeps_the_aspect_and_is_grey_beside() -> None:
    image = torch.zeros(3, 50, 100, dtype=torch.uint8)
    fitted = fit_image(image, (64, 64), "letter_box")
    assert fitted.shape == (3, 64, 64)
    assert fitted[:, 16:48].eq(0).all()
    assert fitted[:, :16].eq(114).all()
    assert fitted[:, 48:].eq(114).all()
    assert torch.equal(to_unit_range(fitted), fit_image(image / 255, (64, 64), "letter_box"))
    with pytest.raises(ValueError, match="fit='crop', expected stretch or letter_box"):
        check_fit("crop")
