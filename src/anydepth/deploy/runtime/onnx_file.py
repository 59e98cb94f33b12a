"""The tensors that an ONNX graph takes from other files, read without the onnx package.

A bundle may come from a stranger, and a graph may name any file as that of its weights. The few messages that
lead to tensors are read here, by the numbers of their fields in onnx.proto (ONNX 1.23, unchanged since 1.7).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# Wire types of Protocol Buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Which fields of a message hold which message.
_MODEL: Final = {7: "graph", 25: "function"}
_CHILDREN: Final[Mapping[str, Mapping[int, str]]] = {
    "model": _MODEL,
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA: Final = 13
_TAG_BYTES: Final = 5
# Subgraphs within subgraphs: far above any exporter, and below what recursion takes.
_MAX_DEPTH: Final = 64


@dataclass(frozen=True)
class ExternalTensor:
    """Place of a tensor in another file.

    Attributes:
        location: Name of the file, relative to the graph.
        offset: Position of its first byte.
        length: Number of bytes; None: up to the end of the file.
    """

    location: str
    offset: int
    length: int | None


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """Return every tensor of a serialised ONNX model that lies in another file.

    Args:
        model: Bytes of the ``.onnx`` file.

    Raises:
        ValueError: The bytes are no such file.
    """
    return list(_walk(memoryview(model), "model", 0))


def _walk(message: memoryview, kind: str, level: int) -> Iterator[ExternalTensor]:
    if level > _MAX_DEPTH:
        raise ValueError(f"subgraphs are nested more than {_MAX_DEPTH} levels deep")
    if kind == "tensor":
        yield from _external(message)
        return
    children = _CHILDREN[kind]
    for number, value in _fields(message):
        if number in children and isinstance(value, memoryview):
            yield from _walk(value, children[number], level + 1)


def _external(tensor: memoryview) -> Iterator[ExternalTensor]:
    entries: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA and isinstance(value, memoryview):
            texts = {key: bytes(text) for key, text in _fields(value) if isinstance(text, memoryview)}
            key = texts.get(1, b"").decode()
            if key in entries:
                raise ValueError(f"a tensor names its {key[:40]!r} twice")
            entries[key] = texts.get(2, b"").decode()
    if entries:
        length = entries.get("length")
        yield ExternalTensor(
            entries.get("location", ""),
            _number(entries.get("offset", "0")),
            None if length is None else _number(length),
        )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"got {text[:40]!r} as a position in a file of weights, expected a number")
    return int(text)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: a number, or the bytes of a text or message."""
    position, end = 0, len(message)
    while position < end:
        start = position
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        # Other readers cut a tag to 32 bits, and would see another field.
        if position - start > _TAG_BYTES or key >= 2**32 or not number:
            raise ValueError(f"not an ONNX file: an invalid tag at byte {start}")
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"not an ONNX file: wire type {wire} at byte {position}")
        if length > end - position:
            raise ValueError("not a complete ONNX file: a field is longer than the file")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("not a complete ONNX file: a number is cut short")
