"""Requests that are not conversations: moderations, reranking, images, speech, recordings, and counting of tokens.

What such a request buys besides tokens is read here (`Sold`), as far as the request itself tells it. As in
`content.py` every field is on an allow-list: one that is not known carries a reason why the cost has no bound.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.base import Call, Endpoint, Name, Sold
from tollkeeper.gateway.dialects.content import IMAGE_PREFIXES
from tollkeeper.gateway.dialects.form import Form

IMAGES_MAX: Final = 10
"""OpenAI's own maximum of images made by one request."""
PARTIAL_IMAGES_MAX: Final = 3
DOCUMENTS_MAX: Final = 10_000
SEARCH_DOCUMENTS: Final = 100
SEARCH_TOKENS: Final = 500
"""Cohere, documented ("Pricing"): one search has up to 100 documents, and a document longer than 500 tokens, the
query included, counts as several."""
MODELS_DEFAULT: Final[Mapping[Name, str]] = {
    "moderations": "omni-moderation-latest",
    "image_variations": "dall-e-2",
}
"""What OpenAI documents for requests that name no model; elsewhere a model must be named."""
WAV_UNCOMPRESSED: Final = (1, 3)
"""Format tags of whole numbers and of floats."""
WAV_HEAD: Final = 12
WAV_CHUNKS_MAX: Final = 32

_Images = Annotated[int, msgspec.Meta(ge=1, le=IMAGES_MAX)]
_Partial = Annotated[int, msgspec.Meta(ge=0, le=PARTIAL_IMAGES_MAX)]


class _Fields(msgspec.Struct):
    model: str | None = None
    user: str | None = None
    stream: bool | None = None


class Moderation(_Fields, kw_only=True):
    """`/v1/moderations`."""

    input: str | list[str | dict[str, Any]]


class Rerank(_Fields, kw_only=True):
    """`/v1/rerank`, as Cohere spells it and others follow."""

    query: str
    documents: Annotated[list[str | dict[str, Any]], msgspec.Meta(min_length=1, max_length=DOCUMENTS_MAX)]


class Images(_Fields, kw_only=True):
    """`/v1/images/…`."""

    n: _Images | None = None
    partial_images: _Partial | None = None
    size: str | None = None
    quality: str | None = None


class Speech(_Fields, kw_only=True):
    """`/v1/audio/speech`."""

    input: str
    stream_format: str | None = None


class Recording(_Fields, kw_only=True):
    """`/v1/audio/transcriptions` and `…/translations`."""


class Counting(_Fields, kw_only=True):
    """`/v1/messages/count_tokens`."""

    messages: msgspec.Raw


BODIES: Final[Mapping[Name, type[_Fields]]] = {
    "moderations": Moderation,
    "rerank": Rerank,
    "images": Images,
    "image_edits": Images,
    "image_variations": Images,
    "speech": Speech,
    "transcriptions": Recording,
    "translations": Recording,
    "count_tokens": Counting,
}
"""The fields that steer each of the calls, by their types."""

_IMAGE: Final = frozenset(
    (
        *("model", "prompt", "n", "size", "quality", "style", "response_format", "user", "stream", "partial_images"),
        *("background", "moderation", "output_compression", "output_format", "input_fidelity"),
    )
)
_RECORDING: Final = frozenset(
    (
        *("model", "language", "prompt", "response_format", "temperature", "stream", "include[]", "include"),
        *("timestamp_granularities[]", "timestamp_granularities", "diarize", "known_speaker_names[]"),
    )
)
KNOWN: Final[Mapping[Name, frozenset[str]]] = {
    "moderations": frozenset(("model", "input", "user")),
    "rerank": frozenset(
        (
            *("model", "query", "documents", "top_n", "top_k", "return_documents", "truncation", "truncate", "user"),
            *("max_chunks_per_doc", "max_tokens_per_doc", "rank_fields", "priority"),
        )
    ),
    "images": _IMAGE,
    "image_edits": _IMAGE,
    "image_variations": _IMAGE,
    "speech": frozenset(
        ("model", "input", "voice", "instructions", "response_format", "speed", "stream_format", "user")
    ),
    "transcriptions": _RECORDING,
    "translations": _RECORDING,
}
"""Fields that cost nothing beyond what is bounded."""


def sold_call(endpoint: Endpoint, size: int, read: Any, fields: dict[str, msgspec.Raw], form: Form | None) -> Call:
    """The call of a body of so many bytes (files left out). Raises RequestError INVALID."""
    name = endpoint.name
    model = read.model or MODELS_DEFAULT.get(name)
    if not model:
        raise RequestError(Fault.INVALID, "You must provide a model parameter.", param="model")
    if form is not None:
        _check_files(name, form)
    reason: str | None = None
    unknown = () if endpoint.free else sorted(fields.keys() - KNOWN[name])
    if unknown:
        reason = f"what the field '{unknown[0][:64]}' costs is not known"
    images, unread = (0, None) if name != "moderations" else _shown(read.input)
    if form is not None:
        images = len(form.files("image", "mask"))
    content = Content(
        text_bytes=size + _repeated_query(name, read),
        images=images,
        audio=name in ("transcriptions", "translations"),
        one_context=False,
        unbounded=reason or unread,
    )
    stream = read.stream is True and endpoint.streams
    if name == "speech":
        stream = read.stream_format == "sse"
    return Call(endpoint, model, stream, 0, 1, read.user, True, content, fields, _SOLD[name](read, form), form)


def _check_files(name: Name, form: Form) -> None:
    wanted = "file" if name in ("transcriptions", "translations") else "image"
    for part in form.parts:
        if part.filename is not None and part.name.removesuffix("[]") not in (wanted, "mask"):
            raise RequestError(Fault.INVALID, f"'{part.name}' is no file of this endpoint.", param=part.name)
    found = form.files(wanted)
    if not found or (wanted == "file" and len(found) > 1):
        raise RequestError(Fault.INVALID, f"Missing required parameter: '{wanted}', one file.", param=wanted)


def _shown(value: str | list[str | dict[str, Any]]) -> tuple[int, str | None]:
    """How many images a moderation is shown, and what cannot be read of it."""
    images = 0
    for part in [] if isinstance(value, str) else value:
        if isinstance(part, str) or part.get("type") == "text":
            continue
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if part.get("type") != "image_url" or not isinstance(url, str):
            return images, f"content of type '{str(part.get('type'))[:64]}' has no published maximum of tokens"
        if url[:5].lower() == "data:" and not url.startswith(IMAGE_PREFIXES):
            return images, "a data URL that is not a PNG, JPEG, GIF or WebP image has no published maximum"
        images += 1
    return images, None


def _repeated_query(name: Name, read: Any) -> int:
    """A reranker reads the query with each document."""
    return len(read.query.encode("utf-8", "surrogatepass")) * len(read.documents) if name == "rerank" else 0


def _nothing(read: Any, form: Form | None) -> Sold:
    return Sold(counted=Usage())


def _searches(read: Any, form: Form | None) -> Sold:
    """At most so many searches, by what Cohere documents: each byte of a document may be a token, and each chunk has
    room for a token of it at least, however long the query is."""
    room = max(1, SEARCH_TOKENS - len(read.query.encode("utf-8", "surrogatepass")))
    chunks = sum(max(1, -(-_size(document) // room)) for document in read.documents)
    return Sold(searches=-(-chunks // SEARCH_DOCUMENTS))


def _size(document: str | dict[str, Any]) -> int:
    if isinstance(document, str):
        return len(document.encode("utf-8", "surrogatepass"))
    return len(msgspec.json.encode(document))


def _images(read: Any, form: Form | None) -> Sold:
    size, quality = ("" if told in (None, "auto") else told for told in (read.size, read.quality))
    return Sold(images=read.n or 1, partial_images=read.partial_images or 0, size=size, quality=quality)


def _characters(read: Any, form: Form | None) -> Sold:
    spoken = len(read.input)
    return Sold(characters=spoken, counted=Usage(characters=spoken))


def _recording(read: Any, form: Form | None) -> Sold:
    assert form is not None
    audio_ms = wav_ms(form.files("file")[0].data)
    return Sold(listens=True, audio_ms=audio_ms, counted=None if audio_ms is None else Usage(audio_ms=audio_ms))


_SOLD: Final[Mapping[Name, Callable[[Any, Form | None], Sold]]] = {
    "moderations": _nothing,
    "rerank": _searches,
    "images": _images,
    "image_edits": _images,
    "image_variations": _images,
    "speech": _characters,
    "transcriptions": _recording,
    "translations": _recording,
    "count_tokens": _nothing,
}


def wav_ms(data: memoryview) -> int | None:
    """The length of an uncompressed WAV, rounded up; None for anything else.

    It is what all bytes of the file would last, whatever its header says of their number, so one that lies about its
    size makes it no shorter; that a provider reads what begins as such a WAV as one is our assumption. Of compressed
    audio no length is certain without decoding it: silence takes nearly no bytes.
    """
    if bytes(data[:4]) != b"RIFF" or bytes(data[8:WAV_HEAD]) != b"WAVE":
        return None
    at, bytes_a_second = WAV_HEAD, 0
    for _ in range(WAV_CHUNKS_MAX):
        kind, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"data" and bytes_a_second:
            return -(-len(data) * 1000 // bytes_a_second)
        if kind == b"fmt ":
            if bytes_a_second or size < _FMT.size or at + 8 + _FMT.size > len(data):
                return None
            form, channels, rate, _, frame_bytes, bits = _FMT.unpack_from(data, at + 8)
            if form not in WAV_UNCOMPRESSED or not rate or not channels or frame_bytes * 8 != channels * bits:
                return None
            bytes_a_second = frame_bytes * rate
            if not bytes_a_second:
                return None
        at += 8 + size + size % 2
    return None


_FMT: Final = struct.Struct("<HHIIHH")
