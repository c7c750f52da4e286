"""Forms: what clients write is read and written anew; what two parsers could read differently is refused."""

import email.parser
import email.policy
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.gateway.dialects.form import PARTS_MAX, TEXT_BYTES_MAX, parse_form

TYPE = b"multipart/form-data; boundary=XX"


def form(*parts: bytes, end: bytes = b"--XX--\r\n") -> bytes:
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + end


def field(name: str = "model", value: bytes = b"whisper-1", more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="%b"%b\r\n\r\n%b' % (name.encode(), more, value)


def test_texts_and_files() -> None:
    body = form(
        field(),
        b"content-type: audio/wav; x=1\r\n"
        b'CONTENT-DISPOSITION: form-data; name=file; filename="a b.wav"\r\n\r\nRIFF\r\n--X',
    )
    read = parse_form(b'Multipart/Form-Data; boundary="XX"', body)
    assert read.texts() == {"model": "whisper-1"}
    (file,) = read.files("file")
    assert (file.filename, file.media_type, bytes(file.data)) == ("a b.wav", "audio/wav", b"RIFF\r\n--X")


def test_files_are_not_copied() -> None:
    """The pieces that go upstream are views of the body as it arrived."""
    body = bytearray(form(field(), field("file", b"x" * 5_000_000, b'; filename="a"')))
    written = parse_form(TYPE, body).written(model="other")
    (large,) = [piece for piece in written if len(piece) > 10_000]
    assert isinstance(large, memoryview) and large.obj is body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--XX--\r\n",
        b"--YY\r\n" + field() + b"\r\n--YY--\r\n",
        b"preamble\r\n" + form(field()),
        form(field(), end=b""),
        form(field(), end=b"--XX--\r\n--XX\r\n"),
        form(field(), end=b"--XX--epilogue"),
        form(field(), field()),
        form(field(value=b"a\r\n--XXX\r\nb")),
        form(b"\r\n\r\nno headers"),
        form(b'Content-Disposition: form-data; name="model"\r\n folded: x\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name="model"; name="other"\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name="model"\r\nContent-Disposition: form-data; name="n"\r\n\r\nv'),
        form(b'Content-Disposition: attachment; name="model"\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name="mo\ndel"\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name=""\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name="m" junk\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name="m"\r\nContent-Transfer-Encoding: base64\r\n\r\ndg=='),
        form(b'Content-Disposition: form-data; name="m"\r\nContent-Type: a\r\n\r\nv'),
        form(b'Content-Disposition: form-data; name="m"\r\nX: ' + b"x" * 5000 + b"\r\n\r\nv"),
        form(*[field(f"f{n}") for n in range(PARTS_MAX + 1)]),
        form(field(value=b"x" * (TEXT_BYTES_MAX + 1))),
    ],
)
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_form(TYPE, body)
    assert caught.value.fault in (Fault.MALFORMED, Fault.INVALID)


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/mixed; boundary=XX",
    ],
)
def test_what_is_no_form_by_its_type(content_type: bytes) -> None:
    with pytest.raises(RequestError, match="multipart/form-data"):
        parse_form(content_type, form(field()))


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=12)


@given(
    st.dictionaries(NAMES, st.text(max_size=50)),
    st.lists(st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=200))),
)
def test_what_is_written_is_read_alike_by_another_parser(
    texts: dict[str, str], files: list[tuple[str, bytes]]
) -> None:
    """Every text and file goes upstream as it came, whatever is in it, and nothing else does."""
    parts = [field(name, text.encode("utf-8", "replace")) for name, text in texts.items()]
    for name, data in files:
        quoted = name.encode("utf-8", "replace").translate(None, b'"\\\r\n\0')
        parts.append(field("image[]", data, b'; filename="%b"' % quoted))
    body = form(*parts) if parts else form(field("only", b""))
    try:
        read = parse_form(TYPE, body)
    except RequestError:
        assert b"\r\n--XX" in b"".join(parts) or not parts or any(b"\0" in part for part in parts)
        return
    written = b"".join(bytes(piece) for piece in read.written())
    head = b"content-type: " + read.content_type.encode() + b"\r\n\r\n"
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + written)
    assert not message.defects
    found: list[Any] = list(message.iter_parts())
    assert [part.get_param("name", header="content-disposition") for part in found] == [p.name for p in read.parts]
    if not any(b"\r" in bytes(p.data) or b"\n" in bytes(p.data) for p in read.parts):  # that parser mends line ends
        assert [part.get_payload(decode=True) for part in found] == [bytes(p.data) for p in read.parts]
    assert [p.text for p in parse_form(read.content_type.encode(), written).parts if p.filename is None] == list(
        read.texts().values()
    )
