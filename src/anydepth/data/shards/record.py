"""Records of a shard: an unchanged image file and its annotations, protected by a checksum."""

import struct
import zlib
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from anydepth.data.outlines import Outlines

_MAGIC = b"ADR1"  # AnyDepth record, version 1.
_PREFIX = struct.Struct("<4sI")
"""Magic number, and CRC-32 of everything that follows."""
_HEADER = struct.Struct("<QqIIIIQ?III")
"""Row, image id, height, width; number of annotations, of bytes of the name and of the image; whether there
are outlines, and the number of their objects, rings and points."""

_NO_OUTLINES = Outlines(np.zeros((0, 2), np.float32), np.zeros(1, np.int64), np.zeros(1, np.int64))


class RecordError(ValueError):
    """A record is truncated, altered or of another row."""


@dataclass(frozen=True, eq=False)
class Record:
    """The record of one image. ``A`` annotations, as in ``CocoIndex``.

    Attributes:
        row: Row of the image in the data set.
        image_id: The data set's id of the image.
        file_name: File name in the json.
        size: (height, width) in pixels according to the json.
        image: Bytes of the image file.
        boxes_xywh: [A, 4] float64, corner and size in pixels.
        labels: [A] int32, contiguous classes.
        crowd: [A] bool.
        areas: [A] float64, square pixels.
        annotation_ids: [A] int64.
        outlines: Polygons of the annotations without crowd regions; None if the data set keeps none.
    """

    row: int
    image_id: int
    file_name: str
    size: tuple[int, int]
    image: bytes
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    outlines: Outlines | None = None


def pack_record(record: Record) -> bytes:
    """Pack a record into bytes; :func:`unpack_record` is the inverse."""
    name = record.file_name.encode("utf-8")
    outlines = record.outlines or _NO_OUTLINES
    extents = len(outlines.object_starts) - 1, len(outlines.ring_starts) - 1, len(outlines.points)
    header = _HEADER.pack(
        record.row,
        record.image_id,
        *record.size,
        len(record.labels),
        len(name),
        len(record.image),
        record.outlines is not None,
        *extents,
    )
    columns = (
        record.boxes_xywh,
        record.areas,
        record.annotation_ids,
        outlines.ring_starts,
        outlines.object_starts,
        outlines.points,
        record.labels,
        record.crowd,
    )
    layout = _layout(len(record.labels), *extents)
    arrays = [
        np.ascontiguousarray(column, dtype).tobytes()
        for column, (dtype, _) in zip(columns, layout, strict=True)
    ]
    body = b"".join([header, *arrays, name, record.image])
    return _PREFIX.pack(_MAGIC, zlib.crc32(body)) + body


def unpack_record(data: bytes, row: int) -> Record:
    """Unpack a record and verify it.

    Args:
        data: Bytes from :func:`pack_record`.
        row: Expected row.

    Raises:
        RecordError: The bytes are truncated, altered, or the record of another row.
    """
    header_end = _PREFIX.size + _HEADER.size
    if len(data) < header_end:
        raise RecordError(
            f"the record of row {row} is truncated: got {len(data)} bytes, expected at least {header_end}"
        )
    magic, checksum = _PREFIX.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(memoryview(data)[_PREFIX.size :]) != checksum:
        raise RecordError(f"the record of row {row} was altered: its checksum does not match")
    found, image_id, height, width, annotations, name_bytes, image_bytes, outlined, *extents = (
        _HEADER.unpack_from(data, _PREFIX.size)
    )
    if found != row:
        raise RecordError(f"got row {found}, expected row {row}")
    layout = _layout(annotations, *extents)
    sizes = [np.dtype(dtype).itemsize * prod(shape) for dtype, shape in layout]
    places = list(accumulate([*sizes, name_bytes, image_bytes], initial=header_end))
    if places[-1] != len(data):
        raise RecordError(
            f"the record of row {row} holds {len(data)} bytes, expected {places[-1]} by its header"
        )
    boxes, areas, ids, ring_starts, object_starts, outline, labels, crowd = (
        np.frombuffer(data[start:end], dtype).reshape(shape)
        for (dtype, shape), (start, end) in zip(layout, pairwise(places[: len(layout) + 1]), strict=True)
    )
    return Record(
        row=row,
        image_id=image_id,
        file_name=data[places[-3] : places[-2]].decode("utf-8", "replace"),
        size=(height, width),
        image=data[places[-2] :],
        boxes_xywh=boxes,
        labels=labels,
        crowd=crowd,
        areas=areas,
        annotation_ids=ids,
        outlines=_check_outlines(Outlines(outline, ring_starts, object_starts), crowd, row)
        if outlined
        else None,
    )


def _layout(
    annotations: int, objects: int, rings: int, points: int
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return type and shape of each array of a record, in the order of storage."""
    return (
        ("<f8", (annotations, 4)),
        ("<f8", (annotations,)),
        ("<i8", (annotations,)),
        ("<i8", (rings + 1,)),
        ("<i8", (objects + 1,)),
        ("<f4", (points, 2)),
        ("<i4", (annotations,)),
        ("?", (annotations,)),
    )


def _check_outlines(outlines: Outlines, crowd: NDArray[np.bool_], row: int) -> Outlines:
    """Check outlines: a checksum shows that they are unchanged, not that they were valid."""
    ends = len(outlines.points), len(outlines.ring_starts) - 1
    for starts, end in zip((outlines.ring_starts, outlines.object_starts), ends, strict=True):
        if starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
            raise RecordError(f"the record of row {row} holds outlines with inconsistent offsets")
    if len(outlines.object_starts) - 1 != np.count_nonzero(~crowd):
        raise RecordError(f"the record of row {row} holds outlines of another number of objects")
    return outlines
