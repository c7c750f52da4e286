"""What a request asks a model to read: images to count, and whatever makes its cost unbounded.

Everything is an allow-list: a field, item, part or tool that is not known to be text, or an image with a published
maximum, carries a reason why the cost has no bound. So what a provider adds tomorrow is refused for keys with a
budget, with its name in the message, and never slips past it.

Conversations of nothing but text are recognised by one typed decoding. It holds against repeated keys, since every
occurrence of a key must have the type of text. Anything else is walked as plain data, after a proof that no key
occurs twice in an object: a provider that takes the first of two where we take the last would see another request.

What Content means is written in domain/bound.py. This file knows no prices.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from tollkeeper.domain.bound import Content
from tollkeeper.gateway.dialects.base import ABSENT, HOME, TIER_CHARS_MAX, Endpoint, Name

PREAMBLE_TOKENS: Final = 1024
"""Added once for tools, once for each tool of Anthropic's that the client runs, and once for a schema of the answer.

Documented: Anthropic's system prompt for tools, at most 530 tokens by its "Tool use" pricing table (mostly 346).
Our assumption: that its own client tools and newer models stay below 1,024, and that OpenAI and those who follow it,
who document no number, do too."""
BLOCK_DEPTH_MAX: Final = 4
"""Messages hold tool results, which hold documents, which hold text: no format nests deeper."""
IMAGE_PREFIXES: Final = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "jpg", "gif", "webp"))
NULL: Final = msgspec.Raw(b"null")
FREE_TIERS: Final = ("auto", "default", "standard", "standard_only", "on_demand")

"""`auto` is what the provider's project is set to, and nothing but a setting of ours can know it."""
FREE_RETENTIONS: Final = (None, "in_memory", "in-memory", "24h")
"""Writes of these cost the same (OpenAI's and Azure's "Prompt caching"); OpenAI's newest models have dearer ones."""

BACKSLASH: Final = ord("\\")
_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


class Unbounded(Exception):
    """Carries the reason out of a walk."""


class _Text(msgspec.Struct, forbid_unknown_fields=True):
    """A part of text in any of the formats."""

    type: Literal["text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"]
    text: str | None = None
    refusal: str | None = None
    cache_control: msgspec.Raw = ABSENT
    citations: msgspec.Raw = ABSENT
    annotations: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT


class _Called(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call that an assistant message repeats."""

    type: Literal["function", "custom"] = "function"
    id: str | None = None
    index: int | None = None
    function: msgspec.Raw = ABSENT
    custom: msgspec.Raw = ABSENT


class TextMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A chat message of text."""

    role: str
    content: str | list[_Text] | None = None
    name: str | None = None
    tool_calls: list[_Called] | None = None
    tool_call_id: str | None = None
    function_call: msgspec.Raw = ABSENT
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[msgspec.Raw] | None = None
    audio: None = None


class _Block(msgspec.Struct, forbid_unknown_fields=True):
    """An Anthropic block of text."""

    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = ABSENT
    tool_use_id: str | None = None
    content: str | list[_Text] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    cache_control: msgspec.Raw = ABSENT
    citations: msgspec.Raw = ABSENT


class TextBlockMessage(msgspec.Struct, forbid_unknown_fields=True):
    """An Anthropic message of text."""

    role: str
    content: str | list[_Block]


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    """An input item of the Responses format that is text. None is no value of `content`, so that a repeated key
    cannot take it back: without content a message is a reference to a stored one."""

    type: Literal[
        "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"
    ] = "message"
    role: str | None = None
    content: str | list[_Text] | msgspec.UnsetType = msgspec.UNSET
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    call_id: str | None = None
    input: str | None = None
    output: str | list[_Text] | None = None


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the client runs: it costs the tokens of its description and nothing else."""

    type: Literal[
        "function",
        "custom",
        "bash_20241022",
        "bash_20250124",
        "text_editor_20241022",
        "text_editor_20250124",
        "text_editor_20250429",
        "text_editor_20250728",
    ] = "custom"
    name: str | None = None
    description: str | None = None
    function: msgspec.Raw = ABSENT
    custom: msgspec.Raw = ABSENT
    parameters: msgspec.Raw = ABSENT
    input_schema: msgspec.Raw = ABSENT
    input_examples: msgspec.Raw = ABSENT
    format: msgspec.Raw = ABSENT
    strict: bool | None = None
    cache_control: msgspec.Raw = ABSENT
    eager_input_streaming: bool | None = None
    max_characters: int | None = None


class _Edit(msgspec.Struct):
    """An edit that only takes input away."""

    type: Literal["clear_tool_uses_20250919", "clear_thinking_20251015"]


class _ContextManagement(msgspec.Struct, forbid_unknown_fields=True):
    edits: list[_Edit] = []


_chat_text = msgspec.json.Decoder(list[TextMessage]).decode
_block_text = msgspec.json.Decoder(list[TextBlockMessage]).decode
_item_text = msgspec.json.Decoder(str | list[_Item]).decode
_system_text = msgspec.json.Decoder(str | list[_Text]).decode
_tools = msgspec.json.Decoder(list[_Tool]).decode
_tool_types = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_tier = msgspec.json.Decoder(str | None).decode
_modalities = msgspec.json.Decoder(list[str] | None).decode
_context_management = msgspec.json.Decoder(_ContextManagement | None).decode
_embedding_input = msgspec.json.Decoder(str | list[str | int | list[int]]).decode


class _Walk:
    """What a walk has found so far. `payload` counts bytes of base64 that are surely in the body."""

    __slots__ = ("heard", "images", "payload", "stored")

    def __init__(self) -> None:
        self.heard = False
        self.images = 0
        self.payload = 0
        self.stored: str | None = None

    def image_url(self, url: object) -> None:
        """Count an image given by address or as a data URL."""
        if not isinstance(url, str):
            raise Unbounded("an image without an address cannot be read")
        self.images += 1
        if url[:5].lower() == "data:":
            if not url.startswith(IMAGE_PREFIXES):
                raise Unbounded("a data URL that is not a PNG, JPEG, GIF or WebP image has no published maximum")
            self.payload += len(url)


def _tree(raw: msgspec.Raw) -> Any:
    """The value as plain data. Raises Unbounded if an object in it has a key twice."""
    data = bytes(raw)
    tree = _decode_any(data)
    # What comes out again byte for byte had no key that got lost. Spaces and escapes make it differ too: then look.
    if _encode(tree) != data:
        json.loads(data, object_pairs_hook=_without_repeats)
    return tree


def _without_repeats(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise Unbounded("a JSON object has the same key twice, which providers read differently")


def _object(value: object, keys: Iterable[str], what: str) -> dict[str, Any]:
    """The value if it is an object with no other keys than these."""
    if not isinstance(value, dict):
        raise Unbounded(f"{what} that is not an object cannot be read")
    unknown = value.keys() - keys
    if unknown:
        raise Unbounded(f"what '{min(unknown)}' of {what} costs is not known")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Unbounded(f"{what} that is not a list cannot be read")
    return value


_TEXT_KEYS: Final = frozenset(_Text.__struct_fields__)
_TEXT_TYPES: Final = frozenset(("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"))
_CHAT_KEYS: Final = frozenset(TextMessage.__struct_fields__)
_ITEM_KEYS: Final = frozenset((*_Item.__struct_fields__, "summary", "encrypted_content"))
_BLOCK_KEYS: Final = frozenset(_Block.__struct_fields__)


def _kind(part: object, what: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise Unbounded(f"{what} without a type cannot be read")
    return kind


def _parts(value: object, walk: _Walk) -> None:
    """Content of a chat message or a Responses item: text, or a list of text and images."""
    if value is None or isinstance(value, str):
        return
    for part in _list(value, "content"):
        kind = _kind(part, "a content part")
        if kind in _TEXT_TYPES:
            _object(part, _TEXT_KEYS, "a text part")
        elif kind == "image_url":
            image = _object(part, ("type", "image_url", "cache_control"), "an image part").get("image_url")
            if isinstance(image, dict):
                image = _object(image, ("url", "detail"), "an image").get("url")
            walk.image_url(image)
        elif kind == "input_image":
            _object(part, ("type", "image_url", "file_id", "detail"), "an image part")
            if part.get("file_id") is not None:
                walk.images += 1
            if part.get("image_url") is not None or part.get("file_id") is None:
                walk.image_url(part.get("image_url"))
        else:
            walk.heard = walk.heard or kind == "input_audio"
            raise Unbounded(f"content of type '{kind[:64]}' has no published maximum of tokens")


def _walk_chat(tree: object, walk: _Walk) -> None:
    for message in _list(tree, "'messages'"):
        message = _object(message, _CHAT_KEYS, "a message")  # noqa: PLW2901 - the same object, with its type
        if message.get("audio") is not None:
            raise Unbounded("'audio' of a message refers to stored audio")
        _parts(message.get("content"), walk)
        for call in _list(message.get("tool_calls") or [], "'tool_calls'"):
            _object(call, _Called.__struct_fields__, "a tool call")


def _walk_items(tree: object, walk: _Walk) -> None:
    if isinstance(tree, str):
        return
    for item in _list(tree, "'input'"):
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in (None, "item_reference", "message", "reasoning", *_CALL_ITEMS):
            raise Unbounded(f"an input item of type '{str(kind)[:64]}' has no bound of tokens")
        _object(item, _ITEM_KEYS, "an input item")
        _parts(item.get("content"), walk)
        _parts(item.get("output"), walk)
        _parts(item.get("summary"), walk)
        whole = "encrypted_content" if kind == "reasoning" else "content"
        if kind not in _CALL_ITEMS and item.get(whole) is None:
            walk.stored = "input"


_CALL_ITEMS: Final = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")


def _walk_blocks(tree: object, walk: _Walk) -> None:
    for message in _list(tree, "'messages'"):
        _blocks(_object(message, ("role", "content"), "a message").get("content"), walk, BLOCK_DEPTH_MAX)


def _blocks(value: object, walk: _Walk, depth: int) -> None:
    """Anthropic content: text, or a list of blocks."""
    if value is None or isinstance(value, str):
        return
    if depth == 0:
        raise Unbounded("content is nested too deep")
    for block in _list(value, "content"):
        kind = _kind(block, "a content block")
        if kind in ("text", "tool_use", "thinking", "redacted_thinking"):
            _object(block, _BLOCK_KEYS, f"a block of type '{kind}'")
        elif kind == "tool_result":
            _blocks(_object(block, _BLOCK_KEYS, "a tool result").get("content"), walk, depth - 1)
        elif kind == "search_result":
            keys = ("type", "source", "title", "content", "citations", "cache_control")
            _blocks(_object(block, keys, "a search result").get("content"), walk, depth - 1)
        elif kind == "image":
            _image_source(_object(block, ("type", "source", "cache_control"), "an image").get("source"), walk)
        elif kind == "document":
            keys = ("type", "source", "title", "context", "citations", "cache_control")
            _document(_object(block, keys, "a document").get("source"), walk, depth)
        else:
            raise Unbounded(f"content of type '{kind[:64]}' has no published maximum of tokens")


def _image_source(source: object, walk: _Walk) -> None:
    found = _object(source, ("type", "media_type", "data", "url", "file_id"), "an image's source")
    if found.get("type") not in ("base64", "url", "file"):
        raise Unbounded("an image's source of unknown type cannot be read")
    walk.images += 1
    data = found.get("data")
    if isinstance(data, str):
        walk.payload += len(data)


def _document(source: object, walk: _Walk, depth: int) -> None:
    found = _object(source, ("type", "media_type", "data", "url", "file_id", "content"), "a document's source")
    kind = found.get("type")
    if kind == "content":
        _blocks(found.get("content"), walk, depth - 1)
    elif kind != "text" or found.get("url") is not None or found.get("file_id") is not None:
        raise Unbounded("a PDF or stored file has no published maximum of tokens")


class _Reader:
    """Reads one request's fields in turn, keeping the first reason."""

    __slots__ = ("extra_input", "extra_output", "geo", "one_context", "prompts", "reason", "tiers", "walk")

    def __init__(self) -> None:
        self.walk = _Walk()
        self.reason: str | None = None
        self.extra_input = 0
        self.extra_output = 0
        self.one_context = True
        self.prompts = 1
        self.tiers: tuple[str, ...] = ()
        self.geo = ""

    def served(self) -> tuple[str, ...]:
        """Every service tier that the request may be served as."""
        return (*self.tiers, self.geo, *(f"{tier} {self.geo}" for tier in self.tiers)) if self.geo else self.tiers

    def because(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason

    def conversation(
        self, raw: msgspec.Raw, text: Callable[[msgspec.Raw], Any], walk: Callable[[Any, _Walk], None]
    ) -> None:
        """Text by its type, anything else by a walk."""
        try:
            found = text(raw)
        except msgspec.ValidationError:
            try:
                walk(_tree(raw), self.walk)
            except Unbounded as error:
                self.because(str(error))
            except RecursionError:
                self.because("content is nested too deep")
        else:
            if text is _item_text and not isinstance(found, str):
                self._items(found)

    def _items(self, items: list[_Item]) -> None:
        """Items that are text by their types, but may stand for something stored."""
        if any(item.type == "message" and item.content is msgspec.UNSET for item in items):
            self.walk.stored = "input"


def _messages(raw: msgspec.Raw, reader: _Reader) -> None:
    reader.conversation(raw, _chat_text, _walk_chat)


def _block_messages(raw: msgspec.Raw, reader: _Reader) -> None:
    reader.conversation(raw, _block_text, _walk_blocks)


def _input_items(raw: msgspec.Raw, reader: _Reader) -> None:
    reader.conversation(raw, _item_text, _walk_items)


def _system(raw: msgspec.Raw, reader: _Reader) -> None:
    reader.conversation(raw, _system_text, _walk_system)


def _walk_system(tree: object, walk: _Walk) -> None:
    _blocks(tree, walk, 1)


def _tool_list(raw: msgspec.Raw, reader: _Reader) -> None:
    try:
        tools = _tools(raw)
    except msgspec.ValidationError:
        reader.because(_tool_reason(raw))
        return
    if tools:
        builtin = sum(tool.type not in ("function", "custom") for tool in tools)
        reader.extra_input += PREAMBLE_TOKENS * (1 + builtin)


def _tool_reason(raw: msgspec.Raw) -> str:
    """Names the tool at fault as well as it can."""
    try:
        for tool in _tool_types(raw):
            kind = _decode_any(tool["type"]) if "type" in tool else "custom"
            if isinstance(kind, str) and kind not in ("function", "custom"):
                return f"the tool '{kind[:64]}' is run and charged by the provider"
    except (msgspec.ValidationError, TypeError):
        pass
    return "a tool that is not a function of the client's cannot be priced"


def _service_tier(raw: msgspec.Raw, reader: _Reader) -> None:
    try:
        tier = _tier(raw)
    except msgspec.ValidationError:
        reader.because("a service tier that is no text cannot be priced")
        return
    if tier is not None and tier not in FREE_TIERS:
        reader.tiers += (tier[:TIER_CHARS_MAX],)


def _residency(raw: msgspec.Raw, reader: _Reader) -> None:
    """Anthropic's place of inference is priced as a service tier, also together with another."""
    try:
        geo = _tier(raw)
    except msgspec.ValidationError:
        reader.because("an inference_geo that is no text cannot be priced")
        return
    if geo is not None and geo not in HOME:
        reader.geo = geo[:TIER_CHARS_MAX]


def _cache_retention(raw: msgspec.Raw, reader: _Reader) -> None:
    try:
        retention = _tier(raw)
    except msgspec.ValidationError:
        retention = "?"
    if retention not in FREE_RETENTIONS:
        reader.because(f"'prompt_cache_retention' of '{str(retention)[:64]}' may have a price of its own")


def _output_modalities(raw: msgspec.Raw, reader: _Reader) -> None:
    try:
        modalities = _modalities(raw)
    except msgspec.ValidationError:
        modalities = ["?"]
    if modalities and any(m != "text" for m in modalities):
        reader.because("'modalities' other than text have prices of their own")


def _prediction(raw: msgspec.Raw, reader: _Reader) -> None:
    # Tokens of a prediction that do not appear in the answer are charged as output.
    reader.extra_output += len(bytes(raw))


def _schema(raw: msgspec.Raw, reader: _Reader) -> None:
    reader.extra_input += PREAMBLE_TOKENS


def _prompts(raw: msgspec.Raw, reader: _Reader) -> None:
    """Each prompt of a list gets answers of its own."""
    try:
        prompts = _embedding_input(raw)
    except msgspec.ValidationError:
        reader.because("'prompt' is not text or tokens")
        return
    if isinstance(prompts, list) and not all(isinstance(p, int) for p in prompts):
        reader.prompts = len(prompts)
        reader.one_context = reader.prompts == 1


def _embedding_inputs(raw: msgspec.Raw, reader: _Reader) -> None:
    reader.one_context = False
    try:
        _embedding_input(raw)
    except msgspec.ValidationError:
        reader.because("'input' is not text or tokens")


def _stored(name: str) -> Callable[[msgspec.Raw, _Reader], None]:
    def read(raw: msgspec.Raw, reader: _Reader) -> None:
        reader.walk.stored = name

    return read


def _refused(reason: str) -> Callable[[msgspec.Raw, _Reader], None]:
    def read(raw: msgspec.Raw, reader: _Reader) -> None:
        reader.because(reason)

    return read


def _context_edits(raw: msgspec.Raw, reader: _Reader) -> None:
    try:
        _context_management(raw)
    except msgspec.ValidationError:
        reader.because("'context_management' other than clearing costs tokens of its own")


_SAMPLING: Final = frozenset(
    (
        *("frequency_penalty", "presence_penalty", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("seed", "stop", "logit_bias", "logprobs", "top_logprobs", "user", "model", "stream", "stream_options"),
        *("metadata", "safety_identifier", "prompt_cache_key", "store"),
    )
)
_FREE: Final[Mapping[Name, frozenset[str]]] = {
    "chat": _SAMPLING
    | {"n", "max_tokens", "max_completion_tokens", "parallel_tool_calls", "tool_choice", "function_call"}
    | {"reasoning_effort", "verbosity", "ignore_eos", "min_tokens"},
    "completions": _SAMPLING | {"n", "max_tokens", "best_of", "echo", "suffix"},
    "embeddings": frozenset(("model", "user", "dimensions", "encoding_format", "input_type", "truncate")),
    "responses": _SAMPLING
    | {"max_output_tokens", "parallel_tool_calls", "tool_choice", "instructions", "reasoning", "include"}
    | {"truncation", "max_tool_calls", "background"},
    "messages": frozenset(
        (
            *("model", "max_tokens", "metadata", "stop_sequences", "stream", "temperature", "thinking"),
            *("tool_choice", "top_k", "top_p", "cache_control"),
        )
    ),
}
"""Fields that cost nothing beyond their bytes."""

_READ: Final[Mapping[Name, Mapping[str, Callable[[msgspec.Raw, _Reader], None]]]] = {
    "chat": {
        "messages": _messages,
        "tools": _tool_list,
        "functions": _schema,
        "response_format": _schema,
        "prediction": _prediction,
        "modalities": _output_modalities,
        "service_tier": _service_tier,
        "prompt_cache_retention": _cache_retention,
        "audio": _refused("audio output has prices of its own"),
        "web_search_options": _refused("web search is charged by the provider"),
    },
    "completions": {
        "prompt": _prompts,
        "service_tier": _service_tier,
        "prompt_cache_retention": _cache_retention,
    },
    "embeddings": {"input": _embedding_inputs},
    "responses": {
        "input": _input_items,
        "tools": _tool_list,
        "text": _schema,
        "service_tier": _service_tier,
        "prompt_cache_retention": _cache_retention,
        "previous_response_id": _stored("previous_response_id"),
        "conversation": _stored("conversation"),
        "prompt": _refused("a stored prompt can hold anything"),
    },
    "messages": {
        "messages": _block_messages,
        "system": _system,
        "tools": _tool_list,
        "output_config": _schema,
        "output_format": _schema,
        "service_tier": _service_tier,
        "speed": _service_tier,
        "inference_geo": _residency,
        "context_management": _context_edits,
    },
}
"""How the other known fields are read. Any field in neither table is a reason."""


def _mentions(body: bytes, word: bytes) -> bool:
    """Whether a JSON text has this ASCII word, however it is escaped."""
    # Of bytes `in` is quick for a byte only: a word is first taken for a number, in vain and by way of an exception.
    if body.find(word) >= 0:
        return True
    return BACKSLASH in body and body.find(b"\\u") >= 0 and word in _encode(_decode_any(body))


_TEXT_FIELDS: Final[Mapping[Name, frozenset[str]]] = {
    name: _FREE[name] | {"messages"} for name in ("chat", "messages")
}


def read_text(endpoint: Endpoint, body: bytes, fields: Mapping[str, msgspec.Raw]) -> Content:
    """The same as `read_content` for a conversation whose messages were decoded as text and nothing else."""
    if not fields.keys() <= _TEXT_FIELDS[endpoint.name]:
        return read_content(endpoint, body, fields)[0]
    cache_write = endpoint.dialect == "openai" or _mentions(body, b"cache_control")
    for_1h = cache_write and _mentions(body, b'"1h"')
    return Content(
        text_bytes=len(body), cache_write=cache_write, cache_write_1h=for_1h, plain=cache_write and not for_1h
    )


def read_content(endpoint: Endpoint, body: bytes, fields: Mapping[str, msgspec.Raw]) -> tuple[Content, int]:
    """What the body asks a model to read, and how many prompts it holds."""
    reader = _Reader()
    read = _READ[endpoint.name]
    free = _FREE[endpoint.name]
    for name, raw in fields.items():
        if name in free or raw == NULL:
            continue
        handler = read.get(name)
        if handler is None:
            reader.because(f"what the field '{name[:64]}' costs is not known")
        else:
            handler(raw, reader)
    # OpenAI and those who follow it write caches unasked; Anthropic where cache_control says so.
    cache_write = endpoint.dialect == "openai" or _mentions(body, b"cache_control")
    return Content(
        text_bytes=len(body) - reader.walk.payload,
        images=reader.walk.images,
        audio=reader.walk.heard,
        extra_input_tokens=reader.extra_input,
        extra_output_tokens=reader.extra_output,
        cache_write=cache_write,
        cache_write_1h=cache_write and _mentions(body, b'"1h"'),
        one_context=reader.one_context,
        stored_context=reader.walk.stored,
        service_tiers=reader.served(),
        unbounded=reader.reason,
    ), reader.prompts
