"""The forms in which pictures are given to what runs without PyTorch."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anydepth.image_sources import list_images, to_image
from anydepth.pictures.reading import ImageError, Pixels
from anydepth.pictures.sources import list_pictures, to_picture

PICTURE: Pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "top", "remedy"),
    [
        (np.uint16, 65535, "convert values in [0, 65535] with (image / 257).round().astype(np.uint8)"),
        (np.uint16, 255, "convert values in [0, 255] with image.astype(np.uint8)"),
        (np.int64, 255, "convert values in [0, 255] with image.astype(np.uint8)"),
        (np.float32, 1, "convert values in [0, 1] with (255 * image).round().astype(np.uint8)"),
        (np.float64, 255, "convert values in [0, 255] with image.round().clip(0, 255).astype(np.uint8)"),
    ],
)
def test_what_an_error_says_to_do_gives_the_picture(kind: type, top: int, remedy: str) -> None:
    image = (np.linspace(0, 1, 12).reshape(2, 2, 3) * top).astype(kind)
    with pytest.raises(ValueError, match=re.escape(f"expected [H, W, 3] uint8 RGB; {remedy}")):
        to_picture(image)
    picture = to_picture(eval(remedy.rpartition(" with ")[2], {"image": image, "np": np}))
    assert (picture[0, 0, 0], picture[-1, -1, -1]) == (0, 255)


def test_every_form_gives_the_same_picture_as_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    data = path.read_bytes()
    mirrored = np.ascontiguousarray(PICTURE[:, ::-1])[:, ::-1]
    forms = [path, str(path), data, bytearray(data), Image.fromarray(PICTURE), PICTURE, mirrored]
    listed = list_pictures(iter(forms))
    assert len(listed) == 7
    for form in listed:
        np.testing.assert_array_equal(to_picture(form), PICTURE)
        np.testing.assert_array_equal(to_image(form).permute(1, 2, 0).numpy(), PICTURE)
    np.testing.assert_array_equal(to_picture(BytesIO(data)), PICTURE)
    with path.open("rb") as opened:
        assert list_pictures(opened) == [opened]
        np.testing.assert_array_equal(to_picture(opened), PICTURE)


def test_one_picture_is_a_list_of_one_and_a_batch_one_of_its_pictures() -> None:
    assert len(list_pictures(PICTURE)) == len(list_pictures("a.png")) == len(list_pictures(b"data")) == 1
    batch = list_pictures(np.stack([PICTURE, 255 - PICTURE]))
    assert len(batch) == 2
    np.testing.assert_array_equal(to_picture(batch[1]), 255 - PICTURE)
    assert list_pictures([]) == []


REFUSED = [
    (np.zeros((8, 8), np.uint8), "repeat a grey image with np.stack"),
    (np.zeros((8, 8, 4), np.uint8), r"drop the transparency with image\[\.\.\., :3\]"),
    (np.zeros((8, 8, 3)), r"convert values in \[0, 1\] with"),
    (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
    (b"not an image", "the image in memory: not a readable image"),
    (None, r"got None as an image; give a path, .* an array \[H, W, 3\] uint8 RGB, or a list of these$"),
    (7, "got an object of type int as an image"),
    ("https://localhost/a.png", r"https://localhost/a\.png: the address of an image; allow .* urls=True"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED)
def test_other_pictures_are_refused_with_the_remedy(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_picture(source)


def test_a_tensor_is_refused_and_not_taken_for_a_list_of_its_channels() -> None:
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1)
    message = "object of type Tensor as an image; give .*; convert a tensor .* image.permute"
    for read in (list_pictures, to_picture):
        with pytest.raises(ValueError, match=message):
            read(tensor)
    remedied = tensor.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(to_picture(remedied), PICTURE)
    assert list_images(tensor)[0] is tensor


def test_messages_name_tensors_only_where_they_are_taken() -> None:
    with pytest.raises(ValueError, match=re.escape("a tensor [3, H, W] RGB")):
        to_image(None)
    with pytest.raises(ValueError, match=re.escape("a tensor [3, H, W] RGB")):
        list_images({"image": 1})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.jpg: not a readable image"):
        to_picture(tmp_path / "a.jpg")
