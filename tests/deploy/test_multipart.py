"""Forms with a file, beside the standard library's own reader of such messages."""

from contextlib import suppress
from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.deploy.serve.multipart import FormError, is_form, read_form

TYPE = "multipart/form-data; boundary=XyZ"


def form(*parts: bytes) -> bytes:
    return b"".join(b"--XyZ\r\n" + part + b"\r\n" for part in parts) + b"--XyZ--\r\n"


def part(name: bytes, content: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="%s"; filename="a b.jpg"\r\n\r\n%s' % (name, content)


def test_it_reads_what_the_standard_library_reads():
    # Text alone: the standard library changes line ends of bytes.
    body = form(
        b"content-disposition: form-data; name=depth\r\nX-Other: 1\r\n\r\n<=8ms",
        b'Content-Type: image/png\r\nContent-Disposition: form-data; filename="x"; name="image"\r\n\r\nPNG',
    )
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {TYPE}\r\n\r\n".encode() + body)
    reference = {
        str(one.get_param("name", header="content-disposition")): one.get_content().encode()
        if one.get_content_maintype() == "text"
        else one.get_content()
        for one in message.iter_parts()
    }
    found = read_form(TYPE, body)
    assert found == {"depth": b"<=8ms", "image": b"PNG"}
    assert {name: value.strip() for name, value in reference.items()} == found


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_content_comes_back_byte_by_byte(content: bytes):
    if b"\r\n--XyZ" not in b"\r\n" + content:
        assert read_form(TYPE, form(part(b"image", content))) == {"image": content}


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"--XyZ", b"--XyZ\r\n", b"--XyZ\r\nContent-Disposition: "])
)
def test_arbitrary_bytes_are_a_form_or_refused(content: bytes, start: bytes):
    with suppress(FormError):  # and nothing else
        read_form(TYPE, start + content + b"\r\n--XyZ--")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cut short"),
        (form(part(b"image", b"x"))[:-6], "cut short"),
        (form(b"image"), "without its headers"),
        (form(b"A: " + b"b" * 5000 + b"\r\n\r\nx"), "without its headers"),
        (form(b"Content-Type: text/plain\r\n\r\nx"), "without `Content-Disposition"),
        (form(part(b"", b"x")), "without `Content-Disposition"),
        (form(part(b"depth", b"a"), part(b"depth", b"b")), "got the field 'depth' twice"),
        (form(*(part(b"%d" % index, b"a") for index in range(9))), "more than 8 fields"),
        (b"--XyZ\r\n" * 100_000, "more than 8 fields"),
    ],
)
def test_broken_forms_are_refused(body: bytes, message: str):
    with pytest.raises(FormError, match=message):
        read_form(TYPE, body)


def test_eight_fields_are_a_form():
    assert len(read_form(TYPE, form(*(part(b"%d" % index, b"a") for index in range(8))))) == 8


@pytest.mark.parametrize("header", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_form_needs_its_boundary(header: str):
    with pytest.raises(FormError, match="without a boundary"):
        read_form(header, b"")


def test_only_forms_with_files_are_forms():
    assert is_form("Multipart/Form-Data; boundary=a")
    assert not is_form("application/x-www-form-urlencoded")
    assert not is_form("")
