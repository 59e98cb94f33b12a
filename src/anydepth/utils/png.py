"""PNG files without the metadata that nobody needs to read their pixels."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt")
# Texts in which programs store the orientation; the chunk eXIf, its place by the standard, is always kept.
_ORIENTATIONS: Final = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")
# Bytes of a text when it is unpacked, which is Pillow's limit for one.
_MAX_TEXT: Final = 2**20


def strip_metadata(data: bytes) -> bytes:
    """Return a PNG file without its colour profile and its texts, of which only those of orientation stay.

    Decoders limit the size of metadata, which a small file can inflate to any size, and refuse the picture
    with it. Pixels, transparency and the EXIF chunk stay. What follows damaged bytes is returned as it is.

    Args:
        data: Bytes of the file, from the signature on.

    Source: PNG specification (Third Edition), W3C, chapter 11.
    """
    kept = [SIGNATURE]
    seen: set[bytes] = set()
    for kind, body, whole in _chunks(data):
        keyword = body.partition(b"\0")[0]
        if kind == b"iCCP" or (kind in _TEXTS and (keyword in seen or not _is_needed(kind, keyword, body))):
            continue
        if kind in _TEXTS:
            seen.add(keyword)
        kept.append(whole)
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield type, content and all bytes of each chunk; what is no chunk comes last, with an empty type."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        yield data[position + 4 : position + 8], data[position + 8 : end - 4], data[position:end]
        position = end
    if position < len(data):
        yield b"", b"", data[position:]


def _is_needed(kind: bytes, keyword: bytes, body: bytes) -> bool:
    if keyword not in _ORIENTATIONS or len(body) > _MAX_TEXT:
        return False
    rest = body[len(keyword) + 1 :]
    if kind == b"zTXt":
        return _inflates_to_little(rest[1:])
    if kind == b"iTXt" and rest[:1] == b"\1":
        # Flag, method, language and translated keyword, the last two ended by zero.
        return _inflates_to_little(rest[2:].split(b"\0", 2)[-1])
    return True


def _inflates_to_little(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _MAX_TEXT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
