"""Reads what an answer says it used.

Conventions are those of domain/usage.py: totals include their parts, also where a format counts them apart. A report
that contradicts itself, or has numbers no request can have, is no report: the caller then charges what it held.
"""

from typing import Annotated, Any, Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects.base import ABSENT, Endpoint

TOKENS_MAX: Final = 2**40
"""A larger number is garbage."""

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _Details(msgspec.Struct):
    """Parts of an OpenAI total, on either side."""

    cached_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None
    audio_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None
    thinking_tokens: _Tokens | None = None


class _Creation(msgspec.Struct):
    """Anthropic's cache writes by lifetime."""

    ephemeral_5m_input_tokens: _Tokens | None = None
    ephemeral_1h_input_tokens: _Tokens | None = None


class ReportedUsage(msgspec.Struct):
    """The `usage` object of any of the formats, as it is spelled."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: _Tokens | None = None
    cached_tokens: _Tokens | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    cache_creation: _Creation | None = None


class Answer(msgspec.Struct, frozen=True):
    """What an answer reports. `model` is the provider's name for what answered."""

    usage: Usage | None = None
    model: str | None = None


class _Envelope(msgspec.Struct):
    usage: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_usage = msgspec.json.Decoder(ReportedUsage | None).decode
_decode_model = msgspec.json.Decoder(str | None).decode

_NO_DETAILS: Final = _Details()


def read_answer(endpoint: Endpoint, body: bytes) -> Answer:
    """Usage and model of an answer that is not a stream; empty for what cannot be read. Never raises."""
    try:
        envelope = _decode_envelope(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer()
    return Answer(usage_of(endpoint, parse_usage(envelope.usage)), parse_model(envelope.model))


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


def parse_model(raw: msgspec.Raw) -> str | None:
    """A `model` field, if it is a string. Never raises."""
    try:
        model: str | None = _decode_model(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return model


def merged(earlier: ReportedUsage | None, later: ReportedUsage | None) -> ReportedUsage | None:
    """Anthropic reports a stream's usage in parts, each cumulative: what the later one states counts."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    fields: dict[str, Any] = {}
    for name in ReportedUsage.__struct_fields__:
        value = getattr(later, name)
        fields[name] = getattr(earlier, name) if value is None else value
    return ReportedUsage(**fields)


def usage_of(endpoint: Endpoint, reported: ReportedUsage | None) -> Usage | None:
    """A report in our conventions; None if totals are missing or parts exceed them."""
    if reported is None:
        return None
    if endpoint.dialect == "anthropic":
        usage = _of_anthropic(reported)
    elif endpoint.name == "responses":
        usage = _of_openai(
            reported, reported.input_tokens, reported.output_tokens, "input_tokens_details", "output_tokens_details"
        )
    else:
        output = reported.completion_tokens
        if output is None and endpoint.name == "embeddings":
            output = 0
        usage = _of_openai(
            reported, reported.prompt_tokens, output, "prompt_tokens_details", "completion_tokens_details"
        )
    return usage if usage is not None and _consistent(usage) else None


def _of_openai(
    reported: ReportedUsage, prompt: int | None, completion: int | None, prompt_parts: str, completion_parts: str
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
        cached = reported.prompt_cache_hit_tokens or reported.cached_tokens
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cached_tokens=cached or 0,
        cache_write_tokens=inputs.cache_write_tokens or 0,
        reasoning_tokens=outputs.reasoning_tokens or 0,
        input_audio_tokens=inputs.audio_tokens or 0,
        output_audio_tokens=outputs.audio_tokens or 0,
    )


def _of_anthropic(reported: ReportedUsage) -> Usage | None:
    if reported.input_tokens is None or reported.output_tokens is None:
        return None
    written = reported.cache_creation_input_tokens or 0
    cached = reported.cache_read_input_tokens or 0
    creation = reported.cache_creation
    outputs = reported.output_tokens_details or _NO_DETAILS
    return Usage(
        input_tokens=reported.input_tokens + written + cached,
        output_tokens=reported.output_tokens,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=0 if creation is None else creation.ephemeral_1h_input_tokens or 0,
        reasoning_tokens=outputs.thinking_tokens or 0,
    )


def _consistent(usage: Usage) -> bool:
    return (
        usage.cached_tokens + usage.cache_write_tokens <= usage.input_tokens
        and usage.cache_write_1h_tokens <= usage.cache_write_tokens
        and usage.input_audio_tokens <= usage.input_tokens
        and usage.reasoning_tokens <= usage.output_tokens
        and usage.output_audio_tokens <= usage.output_tokens
    )
