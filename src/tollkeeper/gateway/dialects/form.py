"""Multipart forms: a body's parts as views of it, and the form that goes upstream. Bytes in, bytes out, no IO.

The form that is forwarded is written anew, part by part, with a boundary of ours: what two parsers could read
differently (a preamble, folded headers, a second `name`, a boundary inside a header) is not passed on. The contents
of files are never copied: parts are views of the body, and what goes upstream is a list of pieces.

Only what clients of the formats send is read: `form-data` parts with a name and maybe a file name and content type.
"""

import os
import re
from typing import Final

import msgspec

from tollkeeper.domain.errors import Fault, RequestError

PARTS_MAX: Final = 64
HEAD_BYTES_MAX: Final = 4096
"""Of the headers of one part."""
TEXT_BYTES_MAX: Final = 2**20
"""Of a part that is no file."""
NAME_CHARS_MAX: Final = 64
FILENAME_CHARS_MAX: Final = 256

_CONTENT_TYPE: Final = re.compile(
    rb'multipart/form-data\s*;\s*boundary=(?:"([^"\\\r\n]{1,70})"|([^\s;",]{1,70}))\s*', re.IGNORECASE
)
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_PARAMETER: Final = re.compile(rb';[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')
_MEDIA_TYPE: Final = re.compile(rb"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}/[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]+")

Piece = bytes | memoryview


class Part(msgspec.Struct, frozen=True):
    """One field. `filename` is None if it is no file; then `data` is text. `media_type` is empty if none was told."""

    name: str
    filename: str | None
    media_type: str
    data: memoryview

    @property
    def text(self) -> str:
        """The field as text. Raises RequestError for what is no UTF-8."""
        try:
            return str(self.data, "utf-8")
        except UnicodeDecodeError:
            raise RequestError(Fault.INVALID, f"'{self.name}' is not valid UTF-8.", param=self.name) from None


class Form(msgspec.Struct, frozen=True):
    """A form that was read, with the boundary it will be written with."""

    parts: tuple[Part, ...]
    boundary: str

    @property
    def content_type(self) -> str:
        """The header of `written`."""
        return f"multipart/form-data; boundary={self.boundary}"

    def texts(self) -> dict[str, str]:
        """The fields that are no files; of those that repeat, the names that end with `[]`, the last."""
        return {part.name: part.text for part in self.parts if part.filename is None}

    def files(self, *names: str) -> list[Part]:
        """The files under these names, also if written as a list (`image[]`)."""
        return [p for p in self.parts if p.filename is not None and p.name.removesuffix("[]") in names]

    def described(self) -> bytes:
        """The form for a log, as JSON: its texts, and of its files name, type and size."""
        fields: dict[str, object] = dict(self.texts())
        for part in self.parts:
            if part.filename is not None:
                fields[part.name] = {
                    "filename": part.filename,
                    "media_type": part.media_type,
                    "bytes": len(part.data),
                }
        return msgspec.json.encode(fields)

    def written(self, **replaced: str) -> list[Piece]:
        """The form as it is sent, in pieces; some of its texts replaced or added."""
        pieces: list[Piece] = []
        rest = dict(replaced)
        for part in self.parts:
            text = rest.pop(part.name, None) if part.filename is None else None
            pieces += self._part(part) if text is None else self._text(part.name, text)
        for name, text in rest.items():
            pieces += self._text(name, text)
        pieces.append(f"--{self.boundary}--\r\n".encode())
        return pieces

    def _text(self, name: str, text: str) -> list[Piece]:
        return [f'--{self.boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()]

    def _part(self, part: Part) -> list[Piece]:
        head = f'--{self.boundary}\r\ncontent-disposition: form-data; name="{part.name}"'
        if part.filename is not None:
            head += f'; filename="{_escaped(part.filename)}"'
        if part.media_type:
            head += f"\r\ncontent-type: {part.media_type}"
        return [f"{head}\r\n\r\n".encode(), part.data, b"\r\n"]


def parse_form(content_type: bytes, body: bytes | bytearray) -> Form:
    """The form in a body. Raises RequestError MALFORMED or INVALID with what to send instead."""
    named = _CONTENT_TYPE.fullmatch(content_type.strip())
    if named is None or not _BOUNDARY.fullmatch(named[1] or named[2]):
        raise RequestError(
            Fault.INVALID, "This endpoint takes a form: content-type multipart/form-data with a boundary."
        )
    view = memoryview(body).toreadonly()
    parts: list[Part] = []
    seen: set[str] = set()
    for start, end in _spans(body, b"--" + (named[1] or named[2])):
        part = _part(body, view, start, end)
        if part.name in seen and not part.name.endswith("[]") and part.name not in _REPEATED:
            raise RequestError(Fault.INVALID, f"'{part.name}' is in the form twice.", param=part.name)
        seen.add(part.name)
        parts.append(part)
    return Form(tuple(parts), "tollkeeper-" + os.urandom(16).hex())


_REPEATED: Final = ("image",)
"""Fields that some clients repeat without the brackets of a list."""


def _spans(body: bytes | bytearray, delimiter: bytes) -> list[tuple[int, int]]:
    """Start and end of each part, headers included."""
    if not body.startswith(delimiter + b"\r\n"):
        raise _malformed("it does not begin with its boundary")
    spans: list[tuple[int, int]] = []
    start = len(delimiter) + 2
    inner = b"\r\n" + delimiter
    while True:
        found = body.find(inner, start)
        if found < 0:
            raise _malformed("its last boundary is missing")
        after = found + len(inner)
        spans.append((start, found))
        if len(spans) > PARTS_MAX:
            raise RequestError(Fault.INVALID, f"The form has more than {PARTS_MAX} fields.")
        if body[after : after + 2] == b"--":
            if body[after + 2 : after + 5] not in (b"", b"\r\n"):
                raise _malformed("something follows its last boundary")
            return spans
        if body[after : after + 2] != b"\r\n":
            raise _malformed("its boundary stands inside of a line")
        start = after + 2


def _part(body: bytes | bytearray, view: memoryview, start: int, end: int) -> Part:
    blank = body.find(b"\r\n\r\n", start, min(end, start + HEAD_BYTES_MAX))
    if blank < 0:
        raise _malformed("a field has no end of its headers")
    headers: dict[bytes, bytes] = {}
    for line in bytes(body[start:blank]).split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None or header[1].lower() in headers:
            raise _malformed("a field's headers cannot be read")
        headers[header[1].lower()] = header[2]
    disposition = headers.get(b"content-disposition", b"")
    kind, _, _ = disposition.partition(b";")
    parameters = _parameters(disposition[len(kind) :])
    name = parameters.get("name", "")
    if kind.strip().lower() != b"form-data" or len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise _malformed("a field has no usable name")
    filename = parameters.get("filename")
    if headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"7bit", b"8bit"):
        raise _malformed("a field is encoded for transfer")
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip()
    if media_type and not _MEDIA_TYPE.fullmatch(media_type):
        raise _malformed("a field's content type cannot be read")
    data = view[blank + 4 : end]
    if filename is None and len(data) > TEXT_BYTES_MAX:
        raise RequestError(Fault.INVALID, f"'{name}' is longer than {TEXT_BYTES_MAX} bytes.", param=name)
    return Part(name, None if filename is None else filename[:FILENAME_CHARS_MAX], media_type.decode(), data)


def _parameters(raw: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(raw):
        match = _PARAMETER.match(raw, at)
        if match is None:
            raise _malformed("a field's content-disposition cannot be read")
        name = match[1].decode().lower()
        if name == "filename*":  # the plain one is enough, and one name is enough
            name = ""
        if name in found and name:
            raise _malformed(f"a field has two '{name}'")
        value = match[3] if match[2] is None else re.sub(rb"\\(.)", rb"\1", match[2])
        found[name] = value.decode("utf-8", "replace")
        at = match.end()
    return found


def _escaped(filename: str) -> str:
    """As browsers write it: nothing in it ends the value or the line, and no folder is named."""
    plain = re.split(r"[/\\]", filename)[-1]
    plain = "".join(c for c in plain if c.isprintable()) or "file"
    return plain.replace('"', "%22")


def _malformed(why: str) -> RequestError:
    return RequestError(Fault.MALFORMED, f"We could not read the form of your request: {why}.")
