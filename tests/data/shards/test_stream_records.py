"""Records of a shard: they unpack as packed, and every change of their bytes is noticed."""

import struct
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.data.outlines import Outlines
from anydepth.data.shards.record import Record, RecordError, pack_record, unpack_record

OUTLINES = Outlines(
    points=np.arange(14, dtype=np.float32).reshape(7, 2),
    ring_starts=np.array([0, 3, 7]),
    object_starts=np.array([0, 0, 2]),
)


def record(annotations: int = 3, **changes: object) -> Record:
    random = np.random.default_rng(annotations)
    made = Record(
        row=5,
        image_id=-7,
        file_name="näme/a.jpg",
        size=(480, 640),
        image=random.bytes(1000),
        boxes_xywh=random.random((annotations, 4)),
        labels=np.arange(annotations, dtype=np.int32),
        crowd=np.arange(annotations) == 1,
        areas=random.random(annotations),
        annotation_ids=np.arange(annotations) + 2**40,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def assert_equal(one: object, other: object) -> None:
    for field in fields(one):  # type: ignore[arg-type]
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, Outlines):
            assert_equal(left, right)
        else:
            assert np.array_equal(left, right), field.name
            assert getattr(left, "dtype", None) == getattr(right, "dtype", None), field.name


@pytest.mark.parametrize("annotations", [0, 1, 3])
def test_a_record_comes_back_as_it_was(annotations: int) -> None:
    packed = record(annotations)
    assert_equal(unpack_record(pack_record(packed), 5), packed)


def test_outlines_of_the_training_objects_come_back() -> None:
    packed = record(outlines=OUTLINES)
    assert_equal(unpack_record(pack_record(packed), 5), packed)


@given(
    image=st.binary(max_size=50),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    boxes=st.lists(st.floats(allow_nan=False), min_size=8, max_size=8),
    image_id=st.integers(-(2**63), 2**63 - 1),
)
def test_any_content_comes_back(image: bytes, name: str, boxes: list[float], image_id: int) -> None:
    packed = record(
        2, image=image, file_name=name, boxes_xywh=np.array(boxes).reshape(2, 4), image_id=image_id
    )
    assert_equal(unpack_record(pack_record(packed), 5), packed)


@pytest.mark.parametrize("bit", [0, 7])
def test_every_altered_byte_is_noticed(bit: int) -> None:
    data = pack_record(record(image=b"picture"))
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1 << bit
        with pytest.raises(RecordError, match="row 5 was altered"):
            unpack_record(bytes(altered), 5)


def test_every_cut_is_noticed() -> None:
    data = pack_record(record(image=b"picture"))
    for end in range(len(data)):
        with pytest.raises(RecordError, match="row 5"):
            unpack_record(data[:end], 5)


def test_a_record_of_another_row_is_noticed() -> None:
    with pytest.raises(RecordError, match="got row 5, expected row 6"):
        unpack_record(pack_record(record()), 6)


@pytest.mark.parametrize(
    "outlines",
    [
        replace(OUTLINES, ring_starts=np.array([0, 9, 7])),
        replace(OUTLINES, ring_starts=np.array([1, 3, 7])),
        replace(OUTLINES, object_starts=np.array([0, 1, 3])),
        replace(OUTLINES, object_starts=np.array([0, 2])),
    ],
)
def test_outlines_that_point_nowhere_are_refused_though_their_checksum_is_right(outlines: Outlines) -> None:
    with pytest.raises(RecordError, match="outlines"):
        unpack_record(pack_record(record(outlines=outlines)), 5)


def test_a_header_that_promises_more_than_is_there_is_refused_though_its_checksum_is_right() -> None:
    body = bytearray(pack_record(record())[8:])
    body[24:28] = struct.pack("<I", 2**31)  # The number of annotations.
    with pytest.raises(RecordError, match="by its header"):
        unpack_record(b"ADR1" + struct.pack("<I", zlib.crc32(body)) + bytes(body), 5)
