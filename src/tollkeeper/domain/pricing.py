"""What tokens cost, in integers: pico-dollars per token, added up and rounded up once per request to nano-dollars.

A model has one table of rates, or several by the size of the input: above a tier's start *all* tokens of the request
are charged at that tier's rates, as genai-prices and the providers do. A kind without a price of its own is charged
as the kind that contains it. This file does not know where prices come from, nor any model.
"""

import msgspec

from tollkeeper.domain.money import PICO_PER_NANO, nano_ceiling
from tollkeeper.domain.usage import Usage


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Pico-dollars per token, with every fallback filled in.

    `cached` is a cache read; `cache_write` a write that lives 5 minutes or as long as the provider's default.
    """

    input: int
    output: int
    cached: int
    cache_write: int
    cache_write_1h: int
    input_audio: int
    output_audio: int
    reasoning: int


def rates(
    *,
    input: int,  # noqa: A002 - the kinds are named as in Usage
    output: int,
    cached: int | None = None,
    cache_write: int | None = None,
    cache_write_1h: int | None = None,
    input_audio: int | None = None,
    output_audio: int | None = None,
    reasoning: int | None = None,
) -> Rates:
    """Rates in pico-dollars per token. What has none falls back: 1 h writes to writes, then to input or output."""
    if cache_write is None:
        cache_write = input
    return Rates(
        input=input,
        output=output,
        cached=input if cached is None else cached,
        cache_write=cache_write,
        cache_write_1h=cache_write if cache_write_1h is None else cache_write_1h,
        input_audio=input if input_audio is None else input_audio,
        output_audio=output if output_audio is None else output_audio,
        reasoning=output if reasoning is None else reasoning,
    )


class Tier(msgspec.Struct, frozen=True):
    """Rates of requests with more than `start` input tokens."""

    start: int
    rates: Rates


class Price(msgspec.Struct, frozen=True):
    """All prices of one model. `tiers` ascend by start. `per_request_nano` is charged once per request.

    `version` is what a record keeps, e.g. `genai-prices 0.2.3 openai/gpt-4o-mini`; `source` says it for people.
    """

    base: Rates
    tiers: tuple[Tier, ...] = ()
    per_request_nano: int = 0
    version: str = "configuration"
    source: str = "configuration"


def rates_at(price: Price, input_tokens: int) -> Rates:
    """The one table that a request with so many input tokens is charged by."""
    chosen = price.base
    for tier in price.tiers:
        if input_tokens <= tier.start:
            break
        chosen = tier.rates
    return chosen


def cost_nano(price: Price, usage: Usage) -> int:
    """The exact cost in nano-dollars, rounded up once.

    Parts that contradict their total are taken so that no token is free and none counts twice: audio output that is
    also reasoning is charged as audio.
    """
    at = rates_at(price, usage.input_tokens) if price.tiers else price.base
    write_1h = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    plain_input = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens - usage.input_audio_tokens
    reasoning = min(usage.reasoning_tokens, max(0, usage.output_tokens - usage.output_audio_tokens))
    plain_output = usage.output_tokens - usage.output_audio_tokens - reasoning
    pico = (
        max(0, plain_input) * at.input
        + usage.cached_tokens * at.cached
        + (usage.cache_write_tokens - write_1h) * at.cache_write
        + write_1h * at.cache_write_1h
        + usage.input_audio_tokens * at.input_audio
        + max(0, plain_output) * at.output
        + reasoning * at.reasoning
        + usage.output_audio_tokens * at.output_audio
    )
    return nano_ceiling(pico + price.per_request_nano * PICO_PER_NANO)


def bound_nano(
    price: Price,
    input_tokens: int,
    output_tokens: int,
    *,
    cache_write: bool = False,
    cache_write_1h: bool = False,
    audio: bool = False,
) -> int:
    """The most that a request can cost, in nano-dollars, if its tokens are at most these.

    Every token at the dearest rate it could have in any tier that so many input tokens can reach. `cache_write`,
    `cache_write_1h` and `audio` say whether such tokens can occur; without them their rates are left out.
    """
    dearest_input = dearest_output = 0
    for at in (price.base, *(tier.rates for tier in price.tiers if input_tokens > tier.start)):
        dearest_input = max(dearest_input, at.input, at.cached)
        dearest_output = max(dearest_output, at.output, at.reasoning)
        if cache_write:
            dearest_input = max(dearest_input, at.cache_write)
        if cache_write_1h:
            dearest_input = max(dearest_input, at.cache_write_1h)
        if audio:
            dearest_input = max(dearest_input, at.input_audio)
            dearest_output = max(dearest_output, at.output_audio)
    pico = input_tokens * dearest_input + output_tokens * dearest_output
    return nano_ceiling(pico + price.per_request_nano * PICO_PER_NANO)
