"""What other models did within one request, told beside the usage of the model that was asked.

Anthropic lists the rounds of a request: an advisor's tokens and those of a compaction are in no total. OpenAI tells
images that a hosted tool drew, and the authoring of an SVG. Each such part has a price of its own, by its model. What
cannot be read is not told. It knows no prices.
"""

from typing import Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.base import Tokens

PARTS_MAX: Final = 256
"""Of one answer."""
DRAWS_DEFAULT: Final = "gpt-image-1"
"""OpenAI's documented default of the hosted tool's `model`."""


class Part(msgspec.Struct, frozen=True):
    """Tokens of another round. `model`: whose; empty for the model that was asked."""

    model: str
    usage: Usage


class _Creation(msgspec.Struct):
    ephemeral_1h_input_tokens: Tokens | None = None


class _Round(msgspec.Struct):
    """An entry of Anthropic's `usage.iterations`."""

    type: str = ""
    model: str | None = None
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation: _Creation | None = None


class _Kinds(msgspec.Struct):
    image_tokens: Tokens | None = None
    cached_image_tokens: Tokens | None = None


class _Drawn(msgspec.Struct):
    """`tool_usage.image_gen` of the Responses format."""

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens | None = None
    input_tokens_details: _Kinds | None = None
    cached_tokens_details: _Kinds | None = None
    output_tokens_details: _Kinds | None = None


class _Searched(msgspec.Struct):
    num_requests: Tokens | None = None


class ToolUsage(msgspec.Struct):
    """`tool_usage` of the Responses format."""

    image_gen: _Drawn | None = None
    web_search: _Searched | None = None


class Svg(msgspec.Struct):
    """`svg_usage`, of an image or of an item."""

    model: str = ""
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0


class _Tool(msgspec.Struct):
    type: str | None = None
    model: str | None = None


_decode_rounds = msgspec.json.Decoder(list[_Round]).decode
_decode_tools = msgspec.json.Decoder(list[_Tool]).decode
_decode_tool_usage = msgspec.json.Decoder(ToolUsage | None).decode
_decode_svg = msgspec.json.Decoder(Svg | None).decode
_UNTOTALLED: Final = ("compaction", "advisor_message")
"""Rounds that Anthropic's totals leave out, as its SDK and its guides "Compaction" and "Advisor tool" say."""


def rounds_beside(iterations: msgspec.Raw) -> tuple[Part, ...]:
    """The rounds that are in no total."""
    if not len(iterations) or not any(kind.encode() in bytes(iterations) for kind in _UNTOTALLED):
        return ()
    try:
        rounds = _decode_rounds(iterations)[:PARTS_MAX]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(_of_round(its) for its in rounds if its.type in _UNTOTALLED)


def _of_round(its: _Round) -> Part:
    written, cached = its.cache_creation_input_tokens or 0, its.cache_read_input_tokens or 0
    for_1h = 0 if its.cache_creation is None else its.cache_creation.ephemeral_1h_input_tokens or 0
    usage = Usage(its.input_tokens + written + cached, its.output_tokens, cached, written, min(for_1h, written))
    return Part(its.model or "", usage)


def tool_usage_of(raw: msgspec.Raw) -> ToolUsage | None:
    """The uses of hosted tools, if they are told."""
    try:
        return _decode_tool_usage(raw) if len(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def drawn_by(used: ToolUsage, tools: msgspec.Raw) -> tuple[Part, ...]:
    """Images that the hosted tool drew, by the model that the answer's `tools` name."""
    drawn = used.image_gen
    if drawn is None or not (drawn.input_tokens or drawn.output_tokens):
        return ()
    shown, again = drawn.input_tokens_details or _Kinds(), drawn.cached_tokens_details or _Kinds()
    made = drawn.output_tokens_details or _Kinds()
    usage = Usage(
        drawn.input_tokens,
        drawn.output_tokens,
        drawn.cached_tokens or 0,
        input_image_tokens=shown.image_tokens or 0,
        cached_image_tokens=again.cached_image_tokens or 0,
        output_image_tokens=made.image_tokens,
    )
    return (Part(_drawing_model(tools), usage),)


def _drawing_model(tools: msgspec.Raw) -> str:
    try:
        found = _decode_tools(tools) if len(tools) else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = []
    return next((its.model for its in found if its.type == "image_generation" and its.model), DRAWS_DEFAULT)


def svg_part(raw: msgspec.Raw) -> tuple[Part, ...]:
    """The authoring of an SVG."""
    try:
        svg = _decode_svg(raw) if len(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        svg = None
    return () if svg is None else (authored(svg),)


def authored(svg: Svg) -> Part:
    """The same, read already."""
    return Part(svg.model, Usage(svg.input_tokens, svg.output_tokens, reasoning_tokens=svg.reasoning_tokens))
