"""Reads a request's body, and writes the one that goes upstream.

The body that is forwarded is built anew from the top level that was read, so that no key given twice can mean one
thing here and another at the provider. The values of fields keep their bytes. What the content costs is found in
`content.py`; this file knows only the fields that steer a call.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from tollkeeper.domain.bound import OUTPUT_TOKENS_MAX, Content
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.base import Call, Endpoint, Name, Sold
from tollkeeper.gateway.dialects.content import TextBlockMessage, TextMessage, read_content, read_text
from tollkeeper.gateway.dialects.form import parse_form
from tollkeeper.gateway.dialects.sold import BODIES, sold_call

CHOICES_MAX: Final = 128
"""OpenAI's own maximum of n."""
COMPLETION_TOKENS_DEFAULT: Final = 16
"""What /v1/completions answers with at most if no limit is stated, as OpenAI documents."""

_Limit = Annotated[int, msgspec.Meta(ge=0, le=OUTPUT_TOKENS_MAX)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=CHOICES_MAX)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Body(msgspec.Struct):
    """The fields that every request has."""

    model: str
    stream: bool | None = None


class _OpenAI(_Body):
    user: str | None = None
    stream_options: _StreamOptions | None = None


class _Chat(_OpenAI, kw_only=True):
    messages: msgspec.Raw
    n: _Choices | None = None
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None


class _TextChat(_Chat, kw_only=True):
    """A chat of nothing but text."""

    messages: list[TextMessage]  # type: ignore[assignment]


class _Completions(_OpenAI):
    n: _Choices | None = None
    best_of: _Choices | None = None
    max_tokens: _Limit | None = None


class _Embeddings(_OpenAI, kw_only=True):
    input: msgspec.Raw


class _Responses(_OpenAI):
    max_output_tokens: _Limit | None = None


class _Messages(_Body, kw_only=True):
    messages: msgspec.Raw
    max_tokens: _Limit
    metadata: _Metadata | None = None


class _TextMessages(_Messages, kw_only=True):
    """The same of Anthropic's format."""

    messages: list[TextBlockMessage]  # type: ignore[assignment]


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_model: Final = msgspec.json.Decoder(str).decode
_decode_body: Final[Mapping[Name, Any]] = {
    "chat": msgspec.json.Decoder(_Chat).decode,
    "completions": msgspec.json.Decoder(_Completions).decode,
    "embeddings": msgspec.json.Decoder(_Embeddings).decode,
    "responses": msgspec.json.Decoder(_Responses).decode,
    "messages": msgspec.json.Decoder(_Messages).decode,
    **{name: msgspec.json.Decoder(body).decode for name, body in BODIES.items()},
}
_decode_text: Final[Mapping[Name, Any]] = {
    "chat": msgspec.json.Decoder(_TextChat).decode,
    "messages": msgspec.json.Decoder(_TextMessages).decode,
}
"""Conversations of nothing but text, which most are: steering fields and messages in one pass."""
_encode = msgspec.json.Encoder().encode

LIMIT_FIELDS: Final[Mapping[Name, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
"""The fields by which a client can limit the output of an endpoint; others have none."""

_LISTS: Final[Mapping[Name, str]] = {"chat": "messages", "messages": "messages", "count_tokens": "messages"}

_WRONG_TYPE: Final = re.compile(r"Expected `(.+?)`, got `(.+?)`(?: - at `\$\.?(.*)`)?")
_WRONG_VALUE: Final = re.compile(r"Expected `int` (>=|<=) (-?\d+) - at `\$\.?(.*)`")
_MISSING: Final = re.compile(r"Object missing required field `(.+?)`(?: - at `\$\.?(.*)`)?")
_WORDS: Final[Mapping[str, str]] = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


def parse(
    endpoint: Endpoint, body: bytes | bytearray, content_type: bytes = b"", *, model: str | None = None
) -> Call:
    """The body as a call. `model` counts instead of the body's, where a path names one.

    Raises RequestError MALFORMED or INVALID with what to write instead.
    """
    if endpoint.form:
        return _parsed_form(endpoint, body, content_type, model)
    assert isinstance(body, bytes)
    if model is not None:
        body = _naming(body, model)
    if endpoint.name in _decode_text:
        call = _text_call(endpoint, body)
        if call is not None:
            return call
    fields, read = _decoded(endpoint, body)
    if endpoint.sells_media:
        if endpoint.name in _LISTS:
            _check_list(_LISTS[endpoint.name], fields[_LISTS[endpoint.name]])
        return sold_call(endpoint, len(body), read, fields, None)
    if not read.model:
        raise RequestError(Fault.INVALID, "You must provide a model parameter; it is empty.", param="model")
    name = endpoint.name
    if name in _LISTS:
        _check_list(_LISTS[name], fields[_LISTS[name]])
    content, prompts = read_content(endpoint, body, fields)
    choices = 1
    if name == "messages":
        user = None if read.metadata is None else read.metadata.user_id
        return Call(endpoint, read.model, read.stream is True, read.max_tokens, 1, user, False, content, fields)
    max_output: int | None = 0
    if name == "chat":
        choices, max_output = read.n or 1, _largest(read.max_tokens, read.max_completion_tokens)
    elif name == "responses":
        max_output = read.max_output_tokens
    elif name == "completions":
        choices = max(read.n or 1, read.best_of or 1) * prompts
        max_output = COMPLETION_TOKENS_DEFAULT if read.max_tokens is None else read.max_tokens
    wants = read.stream_options is not None and read.stream_options.include_usage is True
    return Call(
        endpoint,
        read.model,
        read.stream is True and endpoint.streams,
        max_output,
        choices,
        read.user,
        wants,
        content,
        fields,
    )


def parse_upload(endpoint: Endpoint, body: bytearray, content_type: bytes) -> Call:
    """A file to keep at the provider. Raises RequestError as `parse`."""
    form = parse_form(content_type, body)
    if len(form.files("file")) != 1 or sum(part.filename is not None for part in form.parts) != 1:
        raise RequestError(Fault.INVALID, "Missing required parameter: 'file', one file.", param="file")
    content = Content(text_bytes=0)
    return Call(endpoint, "", False, 0, 1, None, False, content, {}, sold=Sold(counted=Usage()), form=form)


def _naming(body: bytes, model: str) -> bytes:
    """The body with a model; one that is no object stays as it is, to be refused for what it is."""
    try:
        return _encode(_decode_fields(body) | {"model": msgspec.Raw(_encode(model))})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


def _parsed_form(endpoint: Endpoint, body: bytes | bytearray, content_type: bytes, model: str | None) -> Call:
    form = parse_form(content_type, body)
    texts = form.texts()
    if model is not None:
        texts["model"] = model
    fields = {name: msgspec.Raw(_encode(text)) for name, text in texts.items()}
    size = sum(map(len, fields.values()))
    try:
        # Everything in a form is text: a number or `true` is written in it.
        read = msgspec.convert(texts, BODIES[endpoint.name], strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    return sold_call(endpoint, size, read, fields, form)


def _text_call(endpoint: Endpoint, body: bytes) -> Call | None:
    """A conversation of nothing but text, which most are. None: it is something else, or wrong."""
    try:
        if not body.isascii():
            body.decode()
        read, fields = _decode_text[endpoint.name](body), _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not read.messages or not read.model:
        return None
    content, streams = read_text(endpoint, body, fields), read.stream is True
    if endpoint.dialect == "anthropic":
        user = None if read.metadata is None else read.metadata.user_id
        return Call(endpoint, read.model, streams, read.max_tokens, 1, user, False, content, fields)
    output = read.max_tokens
    if read.max_completion_tokens is not None:
        output = _largest(output, read.max_completion_tokens)
    wants = read.stream_options is not None and read.stream_options.include_usage is True
    return Call(endpoint, read.model, streams, output, read.n or 1, read.user, wants, content, fields)


def _decoded(endpoint: Endpoint, body: bytes) -> tuple[dict[str, msgspec.Raw], Any]:
    """The top level as it is, and the fields that steer the call by their types."""
    try:
        if not body.isascii():
            body.decode()
        return _decode_fields(body), _decode_body[endpoint.name](body)
    except UnicodeDecodeError as error:
        message = f"The body of your request is not valid UTF-8 (byte {error.start})."
        raise RequestError(Fault.MALFORMED, message) from None
    except RecursionError:
        raise RequestError(Fault.MALFORMED, "The JSON body of your request is nested too deep.") from None
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise RequestError(Fault.MALFORMED, _unparsable(str(error))) from None


def _largest(one: int | None, other: int | None) -> int | None:
    """Which of two stated limits a provider heeds is unknown."""
    if one is None:
        return other
    return one if other is None else max(one, other)


def _check_list(name: str, raw: msgspec.Raw) -> None:
    value = memoryview(raw)
    if value[0] != _BRACKET:
        got = _WORDS[_KINDS.get(bytes(value[:1]), "float")]
        raise RequestError(
            Fault.INVALID, f"Invalid type for '{name}': expected an array, but got {got} instead.", param=name
        )
    if _EMPTY.fullmatch(value):
        raise RequestError(Fault.INVALID, f"'{name}' is empty: there must be at least one message.", param=name)


_BRACKET: Final = ord("[")
_EMPTY: Final = re.compile(rb"\[\s*\]")
_KINDS: Final = {b"{": "object", b'"': "str", b"t": "bool", b"f": "bool", b"n": "null"}


def _unparsable(message: str) -> str:
    if message == "Input data was truncated":
        # This is also what an escaped half of a surrogate pair looks like to the decoder.
        detail = "it ends too early, or a string has an unpaired surrogate"
    else:
        detail = message.removeprefix("JSON is malformed: ")
    return f"We could not parse the JSON body of your request: {detail}."


def _invalid(message: str) -> RequestError:
    """The decoder's words about a wrong body, in ours."""
    if missing := _MISSING.fullmatch(message):
        name = missing[1]
        said = "You must provide a model parameter." if name == "model" else f"Missing required parameter: '{name}'."
        return RequestError(Fault.INVALID, said, param=name)
    if value := _WRONG_VALUE.fullmatch(message):
        comparison = "at least" if value[1] == ">=" else "at most"
        return RequestError(
            Fault.INVALID, f"Invalid value for '{value[3]}': it must be {comparison} {value[2]}.", param=value[3]
        )
    if kind := _WRONG_TYPE.fullmatch(message):
        expected = " or ".join(_WORDS.get(word, word) for word in kind[1].split(" | "))
        got = _WORDS.get(kind[2], kind[2])
        if not kind[3]:
            return RequestError(Fault.INVALID, f"The body of your request must be a JSON object, not {got}.")
        return RequestError(
            Fault.INVALID, f"Invalid type for '{kind[3]}': expected {expected}, but got {got} instead.", param=kind[3]
        )
    return RequestError(Fault.INVALID, f"The request is not valid: {message}.")


NULL: Final = msgspec.Raw(b"null")
_TRUE: Final = msgspec.Raw(b"true")


def upstream_body(
    call: Call, *, model: str, output_limit: tuple[str, int] | None = None, asks_usage: bool = True
) -> bytes:
    """The body to send: the same fields with the provider's name of the model.

    `output_limit` (field, tokens) takes the place of whatever limits the client stated. A stream in a format that
    reports usage only when asked is asked to; without `asks_usage` not even if the client did. The default limit of
    /v1/completions is written out, for not all who follow OpenAI keep to it.
    """
    fields, name = call.fields, call.endpoint.name
    if name == "chat" and not call.stream and output_limit is None and "stream_options" not in fields:
        return _encode(fields if model == call.model else fields | {"model": msgspec.Raw(_encode(model))})
    fields = dict(fields)
    if model != call.model:
        fields["model"] = msgspec.Raw(_encode(model))
    if output_limit is not None:
        for other in LIMIT_FIELDS[name]:
            fields.pop(other, None)
        fields[output_limit[0]] = msgspec.Raw(b"%d" % output_limit[1])
    elif name == "completions" and fields.get("max_tokens", NULL) == NULL:
        fields["max_tokens"] = msgspec.Raw(b"%d" % COMPLETION_TOKENS_DEFAULT)
    asks = call.stream and name in ("chat", "completions")
    options = fields.get("stream_options")
    if options is not None and options != NULL:
        read = _decode_fields(options)
        if not asks_usage:
            read.pop("include_usage", None)
        elif asks:
            read["include_usage"] = _TRUE
        fields["stream_options"] = msgspec.Raw(_encode(read))
        if not read:
            del fields["stream_options"]
    elif asks and asks_usage:
        fields["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
    return _encode(fields)
