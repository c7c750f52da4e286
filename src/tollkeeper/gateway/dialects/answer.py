"""Reads what an answer says it used, and what it says that cost.

Conventions are those of domain/usage.py: totals include their parts, also where a format counts them apart. A report
that contradicts itself, or has numbers no request can have, is no report: the caller then charges what it held.
"""

from typing import Any, Final, Literal

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.base import ABSENT, HOME, TIER_CHARS_MAX, Endpoint, Tokens
from tollkeeper.gateway.dialects.parts import Part, Svg, authored, drawn_by, rounds_beside, svg_part, tool_usage_of
from tollkeeper.gateway.dialects.sold_answer import milliseconds, read_sold
from tollkeeper.gateway.dialects.stated import stated_cost


class _Cached(msgspec.Struct):
    """Parts of the cached tokens."""

    audio_tokens: Tokens | None = None
    image_tokens: Tokens | None = None


class _Creation(msgspec.Struct):
    """Anthropic's cache writes by lifetime."""

    ephemeral_5m_input_tokens: Tokens | None = None
    ephemeral_1h_input_tokens: Tokens | None = None


class _Details(msgspec.Struct):
    """Parts of an OpenAI total, on either side. Cache writes: as OpenAI, as Qwen and as LiteLLM spell them."""

    cached_tokens: Tokens | None = None
    cached_tokens_details: _Cached | None = None
    cache_write_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    cache_creation: _Creation | None = None
    cache_creation_tokens: Tokens | None = None
    cache_creation_token_details: _Creation | None = None
    audio_tokens: Tokens | None = None
    image_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    thinking_tokens: Tokens | None = None


class _ServerTools(msgspec.Struct):
    """Uses of tools that the provider runs, as Anthropic and OpenRouter count them."""

    web_search_requests: Tokens | None = None


class _Searches(msgspec.Struct):
    """xAI's `server_side_tool_usage_details`."""

    web_search_calls: Tokens | None = None
    x_search_calls: Tokens | None = None


class ReportedUsage(msgspec.Struct):
    """The `usage` object of any of the formats, as it is spelled. `cost…`: JSON that only some providers send."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    input_tokens_details: _Details | None = None
    input_token_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation: _Creation | None = None
    citation_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    num_search_queries: Tokens | None = None
    server_tool_use: _ServerTools | None = None
    server_side_tool_usage_details: _Searches | None = None
    prompt_audio_seconds: msgspec.Raw = ABSENT
    iterations: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    speed: msgspec.Raw = ABSENT
    inference_geo: msgspec.Raw = ABSENT
    cost: msgspec.Raw = ABSENT
    cost_details: msgspec.Raw = ABSENT
    is_byok: msgspec.Raw = ABSENT
    cost_in_usd_ticks: msgspec.Raw = ABSENT


class Answer(msgspec.Struct, frozen=True):
    """What an answer reports. `model` is the provider's name for what answered.

    `cost` is the JSON text of the amount in USD that the provider says it charges, empty if it says none. `parts`:
    what other rounds of the request used, which `usage` leaves out. `drawn`: size and quality of images, each
    empty if it is not told.
    """

    usage: Usage | None = None
    model: str | None = None
    cost: bytes = b""
    parts: tuple[Part, ...] = ()
    drawn: tuple[str, str] | None = None


class Served(msgspec.Struct, frozen=True):
    """What an answer tells of its price outside of its usage: the service tier and uses of the provider's tools."""

    service_tier: str = ""
    web_searches: int = 0
    file_searches: int = 0
    parts: tuple[Part, ...] = ()


class _Envelope(msgspec.Struct):
    usage: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    tool_usage: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    svg_usage: msgspec.Raw = ABSENT
    size: msgspec.Raw = ABSENT
    quality: msgspec.Raw = ABSENT


class _PlainInputs(msgspec.Struct, forbid_unknown_fields=True):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Literal[0] | None = None
    audio_tokens: Literal[0] | None = None
    image_tokens: Literal[0] | None = None


class _PlainOutputs(msgspec.Struct, forbid_unknown_fields=True):
    reasoning_tokens: Tokens | None = None
    audio_tokens: Literal[0] | None = None
    accepted_prediction_tokens: msgspec.Raw = ABSENT
    rejected_prediction_tokens: msgspec.Raw = ABSENT


class _PlainUsage(msgspec.Struct, forbid_unknown_fields=True):
    """The report of most chats: text, with nothing in it that has a price of its own."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens | None = None
    prompt_tokens_details: _PlainInputs | None = None
    completion_tokens_details: _PlainOutputs | None = None


class _PlainAnswer(msgspec.Struct):
    """The same of an answer: whatever else of `_Envelope` has a meaning is null or absent."""

    usage: _PlainUsage
    model: str | None = None
    service_tier: Literal["auto", "default", "standard"] | None = None
    output: None = None
    tool_usage: None = None


class _Action(msgspec.Struct):
    type: str | None = None


class _Item(msgspec.Struct):
    """An output item of the Responses format, as far as it has a fee."""

    type: str | None = None
    action: _Action | None = None
    svg_usage: Svg | None = None


_decode_plain = msgspec.json.Decoder(_PlainAnswer).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_usage = msgspec.json.Decoder(ReportedUsage | None).decode
_decode_string = msgspec.json.Decoder(str | None).decode

_decode_items = msgspec.json.Decoder(list[_Item]).decode

_NO_DETAILS: Final = _Details()
_NO_CACHED: Final = _Cached()
_NO_CREATION: Final = _Creation()
_NOT_SERVED: Final = Served()
STANDARD_TIERS: Final = ("auto", "default", "standard")
_USUAL_TIERS: Final = frozenset((b"", b"null", b'"default"', b'"standard"'))
"""As they are spelled in nearly every answer: not worth a decoder."""
_FREE_ACTIONS: Final = ("open_page", "find_in_page")
"""Of a web search call: OpenAI's "Web search" guide charges for `search` only. One that is not told counts as one."""


def read_answer(endpoint: Endpoint, body: bytes) -> Answer:
    """Usage and model of an answer that is not a stream; empty for what cannot be read. Never raises."""
    return (read_plain_answer(body) if endpoint.name == "chat" else None) or read_any_answer(endpoint, body)


def read_plain_answer(body: bytes) -> Answer | None:
    """The answer to a chat in one pass; None if there is anything unusual in it."""
    try:
        found = _decode_plain(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    its = found.usage
    prompt, completion, total = its.prompt_tokens, its.completion_tokens, its.total_tokens
    if total is not None and total - prompt > completion:
        completion = total - prompt
    inputs, outputs = its.prompt_tokens_details, its.completion_tokens_details
    cached = 0 if inputs is None else inputs.cached_tokens or 0
    reasoning = 0 if outputs is None else outputs.reasoning_tokens or 0
    if cached > prompt or reasoning > completion:
        return None
    return Answer(Usage(prompt, completion, cached, 0, 0, reasoning), found.model)


def read_any_answer(endpoint: Endpoint, body: bytes) -> Answer:
    """`read_answer` for every answer there is."""
    try:
        envelope = _decode_envelope(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer()
    reported = parse_usage(envelope.usage)
    served = parse_served(envelope.service_tier, envelope.output, envelope.tool_usage, envelope.tools)
    usage = usage_of(endpoint, reported, served)
    parts = parts_of(endpoint, reported, served)
    drawn = None
    if endpoint.sells_media:
        usage = read_sold(endpoint, body, usage, envelope.usage)
        parts += svg_part(envelope.svg_usage)
        if "image" in endpoint.fees:
            drawn = (parse_string(envelope.size) or "", parse_string(envelope.quality) or "")
    return Answer(usage, parse_string(envelope.model), cost_of(reported), parts, drawn)


def read_usage(endpoint: Endpoint, body: bytes) -> Usage | None:
    """The usage alone."""
    return read_answer(endpoint, body).usage


def parse_usage(raw: msgspec.Raw) -> ReportedUsage | None:
    """A `usage` object as it is spelled; None if it is absent or not one. Never raises."""
    try:
        reported: ReportedUsage | None = _decode_usage(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return reported


def parse_string(raw: msgspec.Raw) -> str | None:
    """A field, if it is a string. Never raises."""
    try:
        value: str | None = _decode_string(raw) if len(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value


def parse_served(
    service_tier: msgspec.Raw,
    output: msgspec.Raw = ABSENT,
    tool_usage: msgspec.Raw = ABSENT,
    tools: msgspec.Raw = ABSENT,
) -> Served:
    """From the fields beside `usage`: OpenAI's service tier, the Responses format's items and tools. Never raises."""
    tier = _parse_tier(service_tier)
    web = files = 0
    parts: tuple[Part, ...] = ()
    if len(output) and _has_fees(bytes(output)):
        try:
            items = _decode_items(output)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            items = []
        for item in items:
            if item.type == "file_search_call":
                files += 1
            elif item.type == "web_search_call":
                web += item.action is None or item.action.type not in _FREE_ACTIONS
            if item.svg_usage is not None:
                parts += (authored(item.svg_usage),)
    used = tool_usage_of(tool_usage) if len(tool_usage) else None
    if used is not None:
        parts += drawn_by(used, tools)
        if used.web_search is not None and used.web_search.num_requests is not None:
            # The provider's own count of those it bills.
            web = used.web_search.num_requests
    return Served(tier, web, files, parts) if tier or web or files or parts else _NOT_SERVED


def _has_fees(output: bytes) -> bool:
    return b"_search_call" in output or b'"svg_usage"' in output


def parts_of(endpoint: Endpoint, reported: ReportedUsage | None, served: Served) -> tuple[Part, ...]:
    """What other rounds of the request used."""
    if endpoint.dialect == "anthropic" and reported is not None:
        return rounds_beside(reported.iterations)
    return served.parts


def _parse_tier(raw: msgspec.Raw) -> str:
    """A service tier; empty for the standard."""
    if bytes(raw) in _USUAL_TIERS:
        return ""
    tier = parse_string(raw)
    return "" if tier is None or tier in STANDARD_TIERS else tier[:TIER_CHARS_MAX]


def cost_of(reported: ReportedUsage | None) -> bytes:
    """The JSON text of the cost that a report states."""
    if reported is None:
        return b""
    return stated_cost(reported.cost, reported.cost_in_usd_ticks, reported.is_byok, reported.cost_details)


def merged(earlier: ReportedUsage | None, later: ReportedUsage | None) -> ReportedUsage | None:
    """Anthropic reports a stream's usage in parts, each cumulative: what the later one states counts."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    fields: dict[str, Any] = {}
    for name in ReportedUsage.__struct_fields__:
        value = getattr(later, name)
        fields[name] = getattr(earlier, name) if value is None or value == ABSENT else value
    return ReportedUsage(**fields)


def usage_of(endpoint: Endpoint, reported: ReportedUsage | None, served: Served = _NOT_SERVED) -> Usage | None:
    """A report in our conventions; None if totals are missing or parts exceed them."""
    if reported is None:
        return None
    if endpoint.dialect == "anthropic":
        usage = _of_anthropic(reported)
    elif endpoint.name == "responses" or (endpoint.sells_media and reported.input_tokens is not None):
        # Transcriptions spell the details without an s.
        details = "input_tokens_details" if reported.input_token_details is None else "input_token_details"
        usage = _of_openai(
            *(reported, served, reported.input_tokens, reported.output_tokens),
            *(details, "output_tokens_details"),
        )
    else:
        prompt, output = reported.prompt_tokens, reported.completion_tokens
        if output is None and endpoint.name in ("embeddings", "rerank"):
            output = 0
        if prompt is None and endpoint.name in ("embeddings", "rerank"):
            # Voyage and Jina.
            prompt = reported.total_tokens
        if output is None and prompt is not None and reported.total_tokens is not None:
            # Gemini, where all that was made are thoughts.
            output = max(0, reported.total_tokens - prompt)
        usage = _of_openai(
            *(reported, served, prompt, output),
            *("prompt_tokens_details", "completion_tokens_details"),
        )
    return usage if usage is not None and _consistent(usage) else None


def _of_openai(
    reported: ReportedUsage,
    served: Served,
    prompt: int | None,
    completion: int | None,
    prompt_parts: str,
    completion_parts: str,
) -> Usage | None:
    if prompt is None or completion is None:
        return None
    # xAI and Gemini count reasoning in the total but not in the completion.
    if reported.total_tokens is not None:
        completion = max(completion, reported.total_tokens - prompt)
    inputs: _Details = getattr(reported, prompt_parts) or _NO_DETAILS
    outputs: _Details = getattr(reported, completion_parts) or _NO_DETAILS
    cached = inputs.cached_tokens
    if cached is None:
        # DeepSeek and Moonshot.
        cached = reported.prompt_cache_hit_tokens or reported.cached_tokens or reported.cache_read_input_tokens
    of_cached = inputs.cached_tokens_details or _NO_CACHED
    reasoning = outputs.reasoning_tokens or 0
    citation = 0
    if reported.citation_tokens is not None:
        # Perplexity counts both outside of completion and total.
        citation, reasoning = reported.citation_tokens, reported.reasoning_tokens or 0
        completion += citation + reasoning
    written, for_1h = _written(reported, inputs)
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cached_tokens=cached or 0,
        cache_write_tokens=written,
        cache_write_1h_tokens=for_1h,
        reasoning_tokens=reasoning,
        input_audio_tokens=inputs.audio_tokens or 0,
        output_audio_tokens=outputs.audio_tokens or 0,
        cached_audio_tokens=of_cached.audio_tokens or 0,
        input_image_tokens=inputs.image_tokens or 0,
        cached_image_tokens=of_cached.image_tokens or 0,
        output_image_tokens=outputs.image_tokens,
        citation_tokens=citation,
        web_searches=max(_searches(reported), served.web_searches),
        file_searches=served.file_searches,
        audio_ms=milliseconds(reported.prompt_audio_seconds) or 0 if len(reported.prompt_audio_seconds) else 0,
        service_tier=served.service_tier,
    )


def _written(reported: ReportedUsage, inputs: _Details) -> tuple[int, int]:
    """Tokens written to a cache, and those of them that are kept for an hour."""
    creation = inputs.cache_creation or inputs.cache_creation_token_details or reported.cache_creation or _NO_CREATION
    written = (
        inputs.cache_write_tokens
        or inputs.cache_creation_input_tokens
        or inputs.cache_creation_tokens
        # LiteLLM passes Anthropic's own fields on beside its totals.
        or reported.cache_creation_input_tokens
        or 0
    )
    return written, creation.ephemeral_1h_input_tokens or 0


def _searches(reported: ReportedUsage) -> int:
    """Web searches that the provider ran, as Perplexity, OpenRouter and xAI count them."""
    if reported.server_tool_use is not None:
        return reported.server_tool_use.web_search_requests or 0
    its = reported.server_side_tool_usage_details
    if its is not None:
        return (its.web_search_calls or 0) + (its.x_search_calls or 0)
    return reported.num_search_queries or 0


def _of_anthropic(reported: ReportedUsage) -> Usage | None:
    if reported.input_tokens is None or reported.output_tokens is None:
        return None
    cached = reported.cache_read_input_tokens or 0
    creation = reported.cache_creation
    for_1h = for_5m = 0
    if creation is not None:
        for_1h, for_5m = creation.ephemeral_1h_input_tokens or 0, creation.ephemeral_5m_input_tokens or 0
    written = reported.cache_creation_input_tokens
    if written is None:
        written = for_1h + for_5m
    outputs = reported.output_tokens_details or _NO_DETAILS
    tools = reported.server_tool_use
    return Usage(
        input_tokens=reported.input_tokens + written + cached,
        output_tokens=reported.output_tokens,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=for_1h,
        reasoning_tokens=outputs.thinking_tokens or 0,
        web_searches=0 if tools is None else tools.web_search_requests or 0,
        service_tier=_served_as(reported),
    )


def _served_as(reported: ReportedUsage) -> str:
    """Anthropic's service tier, speed and place, each if it is not the standard: `us`, `fast us`."""
    tier = _parse_tier(reported.speed) or _parse_tier(reported.service_tier)
    geo = _parse_tier(reported.inference_geo)
    return tier if not geo or geo in HOME else f"{tier} {geo}".lstrip()


def _consistent(usage: Usage) -> bool:
    return (
        usage.cached_tokens + usage.cache_write_tokens <= usage.input_tokens
        and usage.cache_write_1h_tokens <= usage.cache_write_tokens
        and usage.input_audio_tokens + usage.input_image_tokens <= usage.input_tokens
        and usage.cached_audio_tokens <= usage.input_audio_tokens
        and usage.cached_image_tokens <= usage.input_image_tokens
        and usage.cached_audio_tokens + usage.cached_image_tokens <= usage.cached_tokens
        and usage.reasoning_tokens <= usage.output_tokens
        and usage.output_audio_tokens + (usage.output_image_tokens or 0) <= usage.output_tokens
    )
