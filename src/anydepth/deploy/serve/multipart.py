"""Forms with a file, as browsers and curl send them (``multipart/form-data``, RFC 7578), read from memory."""

from email.message import Message
from typing import Final

# A form of ours has three fields of two headers each; more only costs time.
_MAX_PARTS: Final = 8
_MAX_HEADER_BYTES: Final = 4096


class FormError(ValueError):
    """Bytes that are no form, or one with more fields than anybody needs; the message says what came."""


def is_form(content_type: str) -> bool:
    """Return whether a header ``Content-Type`` announces a form with files."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def read_form(content_type: str, body: bytes) -> dict[str, bytes]:
    r"""Return the content of each field of a form.

    Args:
        content_type: Header ``Content-Type``, which names the boundary.
        body: Body of the request.

    Raises:
        FormError: No boundary, a part without a name, a field given twice, or a form that is cut short.

    Example:
        >>> body = b'--b\r\nContent-Disposition: form-data; name="depth"\r\n\r\nfull\r\n--b--\r\n'
        >>> read_form("multipart/form-data; boundary=b", body)
        {'depth': b'full'}
    """
    boundary = _parameter(content_type, "content-type", "boundary")
    # RFC 2046, section 5.1.1: 1 to 70 characters.
    if not boundary or len(boundary) > 70:
        raise FormError("got multipart/form-data without a boundary, expected `boundary=...` in Content-Type")
    # The first delimiter may stand at the very beginning, where no line ends before it.
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), _MAX_PARTS + 2)
    if len(parts) > _MAX_PARTS + 2:
        raise FormError(f"got a form of more than {_MAX_PARTS} fields")
    # Before the first delimiter stands a preamble without meaning; the last one is followed by two dashes.
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise FormError("got a form that is cut short: its closing boundary is missing")
    fields: dict[str, bytes] = {}
    for part in parts[1:-1]:
        name, content = _read_part(part)
        if name in fields:
            raise FormError(f"got the field {name[:40]!r} twice")
        fields[name] = content
    return fields


def _read_part(part: bytes) -> tuple[str, bytes]:
    # An empty part of headers leaves only the line end that follows the delimiter.
    head, separator, content = part.partition(b"\r\n\r\n")
    if not separator or len(head) > _MAX_HEADER_BYTES:
        raise FormError("got a part of a form without its headers")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            name = _parameter(value.strip(), "content-disposition", "name")
            if name:
                return name, content
    raise FormError('got a part of a form without `Content-Disposition: form-data; name="..."`')


def _parameter(value: str, header: str, name: str) -> str:
    """Return a parameter of a header, without its quotes; empty if it is missing."""
    message = Message()
    message[header] = value.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, header=header)
    return found if isinstance(found, str) else ""
