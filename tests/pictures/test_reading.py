"""Reading pictures of every kind as arrays."""

import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anydepth.data.coco.orientation import read_picture_sizes
from anydepth.pictures.reading import ImageError, convert_picture, decode_picture, read_picture
from anydepth.utils import wide_pixels

Pixels = NDArray[np.uint8]
PICTURE: Pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
"""Two rows and three columns of distinct colours."""


def write_png16(path: Path, values: list[int]) -> None:
    """A one-row RGB picture of 16 bits per channel, which Pillow itself cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    row = b"\0" + b"".join(struct.pack(">H", value) * 3 for value in values)
    header = struct.pack(">IIBBBBB", len(values), 1, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, PICTURE)


def test_grey_is_repeated_over_the_channels(tmp_path: Path) -> None:
    Image.fromarray(PICTURE[:, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), PICTURE[:, :, [0, 0, 0]])


def test_cmyk_becomes_the_colour_that_its_inks_print(tmp_path: Path) -> None:
    # No ink is white, magenta with yellow is red, full black is black.
    inks = np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif")
    expected = [[[255, 255, 255], [255, 0, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif"), expected)


def test_palette_with_transparency_keeps_its_colours_and_does_not_warn(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8), mode="P")
    picture.putpalette([200, 10, 20, 30, 40, 250])
    picture.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(found, [[[200, 10, 20], [30, 40, 250], [30, 40, 250]]])


def test_transparent_pixels_keep_the_colour_under_them(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[9, 8, 7, 0]]], dtype=np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), [[[9, 8, 7]]])


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    # 65535 / 255 = 257: white stays white, and k * 257 is the grey level k; 40000 / 257 = 155.6.
    values = np.array([[0, 257, 100 * 257, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png")[0, :, 0], [0, 1, 100, 156, 255])
    assert (read_picture(tmp_path / "a.png") == read_picture(tmp_path / "a.png")[..., :1]).all()


def test_sixteen_bit_colour_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", [0, 257, 100 * 257, 40000, 65535])
    found = read_picture(tmp_path / "a.png")[0, :, 0].astype(int)
    assert np.abs(found - [0, 1, 100, 156, 255]).max() <= 1


TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}
"""Transforms from stored pixels to upright ones, as TIFF 6.0 and Exif 2.32 define tag 274."""


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_unless_the_stored_pixels_are_wanted(
    tmp_path: Path, orientation: int
) -> None:
    picture = Image.fromarray(PICTURE)
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), TURNS[orientation](PICTURE))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", upright=False), PICTURE)


def test_damaged_exif_does_not_spoil_the_picture(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), PICTURE)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# Unpacked they are 3 MB, more than Pillow allows of one; 70 texts of 1 MB are more than it allows together.
LARGE_METADATA = {
    "profile": _png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000))),
    "packed text": _png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
    "international text": _png_chunk(b"iTXt", b"XML:a\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "many texts": b"".join(
        _png_chunk(b"zTXt", b"c%d\0\0" % index + zlib.compress(b"x" * 1_000_000)) for index in range(70)
    ),
    "orientation that is no text of one": _png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"x" * 3_000_000)
    ),
}


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        (name, behind)
        for name in LARGE_METADATA
        for behind in (False, True)
        if not (behind and name == "profile")
    ],
)
def test_large_metadata_does_not_make_a_png_unreadable(tmp_path: Path, name: str, behind: bool) -> None:
    picture, path = Image.fromarray(PICTURE), tmp_path / "a.png"
    exif = picture.getexif()
    exif[274] = 6
    picture.save(path, exif=exif)
    plain = path.read_bytes()
    place = plain.index(b"IEND") - 4 if behind else 8 + 25  # behind the signature and the header's chunk
    path.write_bytes(plain[:place] + LARGE_METADATA[name] + plain[place:])
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as opened:
        opened.load()
    np.testing.assert_array_equal(read_picture(path), TURNS[6](PICTURE))
    np.testing.assert_array_equal(decode_picture(path.read_bytes(), "a.png", upright=False), PICTURE)
    assert read_picture_sizes(path) == ((3, 2), (2, 3))


def test_orientation_in_a_text_stays_when_other_metadata_is_left_out(tmp_path: Path) -> None:
    # As ImageMagick writes it: the hexadecimal digits of the EXIF block behind its name and length.
    exif = Image.Exif()
    exif[274] = 3
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    plain = path.read_bytes()
    oriented = _png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    path.write_bytes(plain[:33] + oriented + LARGE_METADATA["profile"] + plain[33:])
    np.testing.assert_array_equal(read_picture(path), TURNS[3](PICTURE))


def test_a_truncated_png_with_large_metadata_is_still_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.png"
    Image.fromarray(noise).save(path)
    plain = path.read_bytes()
    path.write_bytes((plain[:33] + LARGE_METADATA["profile"] + plain[33:])[: -len(plain) // 2])
    with pytest.raises(ImageError, match=r"cut\.png: not a readable image .*truncated"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated_picture_is_refused_with_its_name(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}: not a readable image .* restore it or remove it"):
        read_picture(path)


def test_a_file_that_is_not_a_picture_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture", encoding="utf-8")
    with pytest.raises(ImageError, match=r"notes\.jpg: not a readable image"):
        read_picture(tmp_path / "notes.jpg")


def test_a_missing_file_and_a_folder_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file; check its name"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="give a readable image file"):
        read_picture(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_fixed_range_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.full((2, 2), 70000, dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: .*no fixed range; convert the picture to 8 or 16 bits"):
        read_picture(tmp_path / "a.tif")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ImageError, match=r"a\.png: .*decompression bomb"):
        read_picture(tmp_path / "a.png")


@pytest.fixture
def fresh_warnings() -> None:
    wide_pixels._warn_of_few_bits.cache_clear()
    wide_pixels._warn_of_dark_values.cache_clear()


TWELVE_BITS = [0, 16, 2048, 4095]
"""In 8 bits: 0, 1 (0.996), 128 (127.53), 255."""


def _grey_png(path: Path) -> Path:
    Image.fromarray(np.array([TWELVE_BITS], dtype=np.uint16)).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def _grey_tiff(path: Path, dtype: type = np.uint16) -> Path:
    Image.fromarray(np.array([TWELVE_BITS], dtype=dtype)).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif")


def _colour_png(path: Path) -> Path:
    write_png16(path.with_suffix(".png"), TWELVE_BITS)
    return path.with_suffix(".png")


def _colour_tiff(path: Path, *, order: str = "<") -> Path:
    """Write an uncompressed TIFF of 16-bit colours (TIFF 6.0, section 6), which Pillow itself cannot."""
    pixels = np.repeat(np.array(TWELVE_BITS, dtype=f"{order}u2"), 3).tobytes()
    fields = [(256, 3, 4), (257, 3, 1), (258, 3, 122), (259, 3, 1), (262, 3, 2), (273, 4, 128)]
    fields += [(277, 3, 3), (278, 3, 1), (279, 4, len(pixels))]  # 9 fields of 12 bytes, from byte 10 on
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(fields))
    for tag, kind, value in fields:
        short = kind == 3 and tag != 258
        header += struct.pack(f"{order}HHI", tag, kind, 3 if tag == 258 else 1)
        header += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    bits = struct.pack(f"{order}IHHH", 0, 16, 16, 16)  # no other directory, then the bits per sample at 122
    path.with_suffix(".tif").write_bytes(header + bits + pixels)
    return path.with_suffix(".tif")


WRITERS: dict[str, Callable[[Path], Path]] = {
    "grey png": _grey_png,
    "grey tiff": _grey_tiff,
    "grey tiff of 32 bits": partial(_grey_tiff, dtype=np.int32),
    "colour png": _colour_png,
    "colour tiff": _colour_tiff,
    "colour tiff, big-endian": partial(_colour_tiff, order=">"),
}


@pytest.mark.usefixtures("fresh_warnings")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_twelve_bits_in_wider_files_are_not_black_and_warned_of_once(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "a")
    with pytest.warns(
        UserWarning, match=r"below 4,096 are taken for pictures of 12 bits.*ANYDEPTH_IMAGE_BITS"
    ):
        found = read_picture(path)
    np.testing.assert_array_equal(found[0], [[0] * 3, [1] * 3, [128] * 3, [255] * 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_picture(path), found)


@pytest.mark.usefixtures("fresh_warnings")
def test_eight_bits_in_a_file_of_thirty_two_are_kept(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="pictures of 8 bits"):
        np.testing.assert_array_equal(read_picture(tmp_path / "a.tif")[0, :, 0], [0, 7, 255])


@pytest.mark.parametrize("write", [_grey_png, _colour_png, _colour_tiff])
def test_a_given_number_of_bits_holds_for_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "a")
    for bits, expected in ((16, [0, 0, 8, 16]), (10, [0, 4, 255, 255])):  # 2048 / 257 = 7.97
        monkeypatch.setenv("ANYDEPTH_IMAGE_BITS", str(bits))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read_picture(path)[0, :, 0].astype(int)
        assert np.abs(found - expected).max() <= 1, found  # Pillow cuts the low byte where nothing is scaled
    monkeypatch.setenv("ANYDEPTH_IMAGE_BITS", "12 bits")
    with pytest.raises(ImageError, match="ANYDEPTH_IMAGE_BITS='12 bits', expected one of 8, 9, 10"):
        read_picture(path)


@pytest.mark.usefixtures("fresh_warnings")
def test_dark_colours_of_sixteen_bits_keep_their_orientation(tmp_path: Path) -> None:
    path = _colour_png(tmp_path / "a")
    exif = Image.Exif()
    exif[274] = 2  # mirrored
    data = path.read_bytes()
    place = data.index(b"IDAT") - 4
    block = _png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(data[:place] + block + data[place:])
    with pytest.warns(UserWarning, match="12 bits"):
        np.testing.assert_array_equal(read_picture(path)[0, :, 0], [255, 128, 1, 0])


@pytest.mark.filterwarnings("ignore:pictures of 16")
@pytest.mark.parametrize("write", [_colour_png, _colour_tiff])
def test_a_picture_that_pillow_opened_is_read_as_its_file_is(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "a")
    with Image.open(path) as opened:
        np.testing.assert_array_equal(convert_picture(opened, "a"), read_picture(path))


@pytest.mark.usefixtures("fresh_warnings")
def test_fourteen_bits_are_warned_of(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 16383]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="below 16,384 come out dark: if they have 13 or 14 bits"):
        assert read_picture(tmp_path / "a.png").max() == 64


@pytest.mark.filterwarnings("ignore:pictures of 16")
def test_sixteen_bits_whose_least_value_is_white_are_turned_over(tmp_path: Path) -> None:
    path = _grey_tiff(tmp_path / "a")
    data = path.read_bytes()
    entry = struct.pack("<HHI", 262, 3, 1)  # PhotometricInterpretation, BlackIsZero as written
    assert data.count(entry + struct.pack("<H", 1)) == 1
    black_is_zero = read_picture(path)
    path.write_bytes(data.replace(entry + struct.pack("<H", 1), entry + struct.pack("<H", 0)))
    np.testing.assert_array_equal(read_picture(path), 255 - black_is_zero)


def test_sixteen_bit_colours_in_planes_are_refused(tmp_path: Path) -> None:
    path = _colour_tiff(tmp_path / "a")
    data = path.read_bytes()
    samples = struct.pack("<HHIHH", 277, 3, 1, 3, 0)
    planes = struct.pack("<HHIHH", 284, 3, 1, 2, 0)
    assert samples in data
    # In place of RowsPerStrip, which has a default.
    rows = struct.pack("<HHIHH", 278, 3, 1, 1, 0)
    path.write_bytes(data.replace(rows, planes))
    with pytest.raises(ImageError, match="planes one after another cannot be read; save it with interleaved"):
        read_picture(path)
