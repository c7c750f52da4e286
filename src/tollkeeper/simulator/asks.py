"""Requests: five kinds of bodies become one neutral `Ask`. Knows the request formats and nothing of answers.

Input tokens are a quarter of the UTF-8 bytes of the request's text, rounded up: deterministic, realistic, and never
more than its bytes. Token ids in a prompt count as one each, media as nothing.
"""

import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import msgspec

from tollkeeper.simulator.directives import BadDirective, Directive, parse_directive

BYTES_PER_TOKEN: Final = 4
CHOICES_MAX: Final = 128
EMBEDDING_INPUTS_MAX: Final = 2048
EMBEDDING_DIMENSIONS_MAX: Final = 4096
EMBEDDING_DIMENSIONS: Final = 1536
LEGACY_OUTPUT_MAX: Final = 16
"""OpenAI's default maximum for /v1/completions."""
_NESTING_MAX: Final = 8
_NO_TOOLS: Final = msgspec.Raw(b"")
_TEXT_FIELDS: Final = ("text", "content", "output", "arguments", "input", "function")


class Endpoint(StrEnum):
    """Where requests are posted."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"


class Refusal(msgspec.Struct, frozen=True):
    """An error answer before it takes a dialect's form. `kind` and `code` are OpenAI's; Anthropic goes by status."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A valid request. `output_max` is per choice; `tools` is their JSON, empty if there are none."""

    endpoint: Endpoint
    model: str
    user: str
    stream: bool
    directive: Directive
    input_tokens: int
    seed: int
    choices: int = 1
    output_max: int | None = None
    include_usage: bool = False
    tools: bytes = b""
    inputs: int = 1
    dimensions: int = EMBEDDING_DIMENSIONS
    base64: bool = False


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    tool_calls: list[Any] | None = None


class _Chat(msgspec.Struct):
    messages: list[_Message]
    model: str
    user: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    tools: msgspec.Raw = _NO_TOOLS


class _Completion(msgspec.Struct):
    model: str
    prompt: str | list[Any] = ""
    user: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[Any]
    user: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


class _Response(msgspec.Struct):
    model: str
    input: str | list[Any] = ""
    instructions: str | None = None
    user: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    tools: msgspec.Raw = _NO_TOOLS


class _Messages(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int
    system: str | list[Any] | None = None
    metadata: _Metadata | None = None
    stream: bool | None = None
    tools: msgspec.Raw = _NO_TOOLS


def parse_ask(endpoint: Endpoint, body: bytes) -> Ask | Refusal:
    """What a body asks for, or why the provider would refuse it."""
    directive = parse_directive(body)
    if isinstance(directive, BadDirective):
        return Refusal(400, f"Directive not understood: {directive.why}", code="invalid_directive")
    try:
        return _READERS[endpoint](body, directive)
    except msgspec.ValidationError as error:
        return Refusal(400, f"Invalid request: {error}", param=_path_of(str(error)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal(400, "We could not parse the JSON body of your request. The body must be valid JSON.")


def _path_of(message: str) -> str | None:
    _, found, path = message.partition("`$.")
    return path.rstrip("`") if found else None


_CHAT: Final = msgspec.json.Decoder(_Chat)
_COMPLETION: Final = msgspec.json.Decoder(_Completion)
_EMBEDDING: Final = msgspec.json.Decoder(_Embedding)
_RESPONSE: Final = msgspec.json.Decoder(_Response)
_MESSAGES: Final = msgspec.json.Decoder(_Messages)


def _read_chat(body: bytes, directive: Directive) -> Ask | Refusal:
    it = _CHAT.decode(body)
    texts: list[str] = []
    for message in it.messages:
        _gather_message(message, texts)
    tools = _tools(it.tools)
    tokens, seed = _measure(texts, tools)
    return _checked(
        Ask(
            Endpoint.CHAT,
            it.model,
            it.user or "",
            bool(it.stream),
            directive,
            tokens,
            seed,
            choices=1 if it.n is None else it.n,
            output_max=it.max_tokens if it.max_completion_tokens is None else it.max_completion_tokens,
            include_usage=it.stream_options is not None and bool(it.stream_options.include_usage),
            tools=tools,
        )
    )


def _read_completion(body: bytes, directive: Directive) -> Ask | Refusal:
    it = _COMPLETION.decode(body)
    texts, ids, prompts = _prompts(it.prompt)
    tokens, seed = _measure(texts)
    return _checked(
        Ask(
            Endpoint.COMPLETIONS,
            it.model,
            it.user or "",
            bool(it.stream),
            directive,
            tokens + ids,
            seed + ids,
            choices=(1 if it.n is None else it.n) * prompts,
            output_max=LEGACY_OUTPUT_MAX if it.max_tokens is None else it.max_tokens,
            include_usage=it.stream_options is not None and bool(it.stream_options.include_usage),
        )
    )


def _read_embedding(body: bytes, directive: Directive) -> Ask | Refusal:
    it = _EMBEDDING.decode(body)
    texts, ids, inputs = _prompts(it.input)
    tokens, seed = _measure(texts)
    dimensions = EMBEDDING_DIMENSIONS if it.dimensions is None else it.dimensions
    if not 1 <= inputs <= EMBEDDING_INPUTS_MAX:
        return Refusal(400, f"'$.input' must hold 1 to {EMBEDDING_INPUTS_MAX} items.", param="input")
    if not 1 <= dimensions <= EMBEDDING_DIMENSIONS_MAX:
        return Refusal(400, f"'$.dimensions' must be 1 to {EMBEDDING_DIMENSIONS_MAX}.", param="dimensions")
    return Ask(
        Endpoint.EMBEDDINGS,
        it.model,
        it.user or "",
        False,
        directive,
        tokens + ids,
        seed + ids,
        inputs=inputs,
        dimensions=dimensions,
        base64=it.encoding_format == "base64",
    )


def _read_response(body: bytes, directive: Directive) -> Ask | Refusal:
    it = _RESPONSE.decode(body)
    texts: list[str] = [] if it.instructions is None else [it.instructions]
    _gather(it.input, texts)
    tools = _tools(it.tools)
    tokens, seed = _measure(texts, tools)
    return _checked(
        Ask(
            Endpoint.RESPONSES,
            it.model,
            it.user or "",
            bool(it.stream),
            directive,
            tokens,
            seed,
            output_max=it.max_output_tokens,
            tools=tools,
        )
    )


def _read_messages(body: bytes, directive: Directive) -> Ask | Refusal:
    it = _MESSAGES.decode(body)
    texts: list[str] = []
    _gather(it.system, texts)
    for message in it.messages:
        _gather_message(message, texts)
    tools = _tools(it.tools)
    tokens, seed = _measure(texts, tools)
    user = None if it.metadata is None else it.metadata.user_id
    return _checked(
        Ask(
            Endpoint.MESSAGES,
            it.model,
            user or "",
            bool(it.stream),
            directive,
            tokens,
            seed,
            output_max=it.max_tokens,
            tools=tools,
        )
    )


_READERS: Final[dict[Endpoint, Callable[[bytes, Directive], Ask | Refusal]]] = {
    Endpoint.CHAT: _read_chat,
    Endpoint.COMPLETIONS: _read_completion,
    Endpoint.EMBEDDINGS: _read_embedding,
    Endpoint.RESPONSES: _read_response,
    Endpoint.MESSAGES: _read_messages,
}


def _checked(ask: Ask) -> Ask | Refusal:
    if not 1 <= ask.choices <= CHOICES_MAX:
        return Refusal(400, f"Between 1 and {CHOICES_MAX} choices can be asked for.", param="n")
    if ask.output_max is not None and ask.output_max < 1:
        return Refusal(400, "The maximum of output tokens must be at least 1.", param="max_tokens")
    return ask


def _tools(raw: msgspec.Raw) -> bytes:
    tools = bytes(raw)
    return b"" if tools in (b"null", b"[]") else tools


def _gather_message(message: _Message, into: list[str]) -> None:
    if isinstance(message.content, str):
        into.append(message.content)
    else:
        _gather(message.content, into)
    if message.tool_calls:
        _gather(message.tool_calls, into)


def _gather(value: Any, into: list[str], depth: int = 0) -> None:
    """All text of a message's content, whatever its shape, and none of its media."""
    if isinstance(value, str):
        into.append(value)
    elif isinstance(value, list) and depth < _NESTING_MAX:
        for item in value:
            _gather(item, into, depth + 1)
    elif isinstance(value, dict) and depth < _NESTING_MAX:
        for name in _TEXT_FIELDS:
            if name in value:
                _gather(value[name], into, depth + 1)


def _measure(texts: list[str], tools: bytes = b"") -> tuple[int, int]:
    """Input tokens and seed of a text."""
    data = (texts[0] if len(texts) == 1 else "".join(texts)).encode("utf-8", "surrogatepass")
    return -(-(len(data) + len(tools)) // BYTES_PER_TOKEN), zlib.crc32(data)


def _prompts(value: str | list[Any]) -> tuple[list[str], int, int]:
    """Texts, number of token ids, and number of prompts of a prompt: a text, texts, ids, or lists of ids."""
    if isinstance(value, str):
        return [value], 0, 1
    if value and isinstance(value[0], int):
        return [], len(value), 1
    texts = [item for item in value if isinstance(item, str)]
    return texts, sum(len(item) for item in value if isinstance(item, list)), len(value)
