"""What a request costs, in integers: whole parts of a nano-dollar, added up and rounded up once per request.

A model has one table of rates, or several by the size of the input: above a tier's start *all* tokens of the request
are charged at that tier's rates, as genai-prices and the providers do. A kind without a price of its own is charged
as the kind that contains it. Every token is charged exactly once, whatever a report says of its parts, so that a
bound by the dearest rates holds for any report at all.

Rates are pico-dollars per token; the few prices that are finer make their model's unit finer, so that nothing but the
one ceiling is ever rounded. This file does not know where prices come from, nor any model.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Final

import msgspec

from tollkeeper.domain.money import PICO_PER_NANO
from tollkeeper.domain.usage import NO_USAGE, Usage


class Rates(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Per token, with every fallback filled in.

    `cached` is a cache read; `cache_write` a write that lives 5 minutes or as long as the provider's default.
    """

    input: int
    output: int
    cached: int
    cache_write: int
    cache_write_1h: int
    input_audio: int
    cached_audio: int
    output_audio: int
    input_image: int
    cached_image: int
    output_image: int
    reasoning: int
    citation: int

    @cached_property
    def dearest_of_text(self) -> tuple[int, int]:
        """What a token of input that is text can cost at most, be it written to a cache or not, and one of output."""
        return _dearest_input(self, cache_write=True), _dearest_output(self)


TOKEN_KINDS: Final = Rates.__struct_fields__
FEES: Final[Mapping[str, tuple[str, int]]] = {
    "request": ("per_request", 1),
    "web_search": ("per_web_search", 1),
    "file_search": ("per_file_search", 1),
    "image": ("per_image", 1),
    "search": ("per_search", 1),
    "audio_hour": ("per_audio_ms", 3_600_000),
    "million_characters": ("per_character", 1_000_000),
}
"""Prices of what is not a token, as people write them → the field of `Price`, and how many of its units one has."""
FEE_KINDS: Final = tuple(FEES)
TOKENS_PRICED: Final = frozenset(("tokens",))


def rates(
    *,
    input: int,  # noqa: A002 - the kinds are named as in Usage
    output: int,
    cached: int | None = None,
    cache_write: int | None = None,
    cache_write_1h: int | None = None,
    input_audio: int | None = None,
    cached_audio: int | None = None,
    output_audio: int | None = None,
    input_image: int | None = None,
    cached_image: int | None = None,
    output_image: int | None = None,
    reasoning: int | None = None,
    citation: int | None = None,
) -> Rates:
    """Rates with every kind. What has none falls back: 1 h writes to writes, then to input or output.

    Cached audio and images fall back to the one of their two containers that has a price, the dearer of two.
    """
    if cache_write is None:
        cache_write = input
    return Rates(
        input=input,
        output=output,
        cached=input if cached is None else cached,
        cache_write=cache_write,
        cache_write_1h=cache_write if cache_write_1h is None else cache_write_1h,
        input_audio=input if input_audio is None else input_audio,
        cached_audio=_both(input, cached, input_audio) if cached_audio is None else cached_audio,
        output_audio=output if output_audio is None else output_audio,
        input_image=input if input_image is None else input_image,
        cached_image=_both(input, cached, input_image) if cached_image is None else cached_image,
        output_image=output if output_image is None else output_image,
        reasoning=output if reasoning is None else reasoning,
        citation=output if citation is None else citation,
    )


def _both(plain: int, one: int | None, other: int | None) -> int:
    known = [rate for rate in (one, other) if rate is not None]
    return max(known) if known else plain


class Tier(msgspec.Struct, frozen=True):
    """Rates of requests with more than `start` input tokens."""

    start: int
    rates: Rates


class Price(msgspec.Struct, frozen=True):
    """All prices of one model, as whole numbers of 1/`per_nano` nano-dollars. `tiers` ascend by start.

    `per_request` is charged once per request, the others for each use, millisecond or character. `kinds` are the
    fees that have a price, and `tokens` if those have one: what has none costs 0 here, and is the caller's to refuse.
    `served` holds the prices of a request that was served as something else than the standard: `priority`, `flex`,
    `fast`, `batch`.
    `version` is what a record keeps, e.g. `genai-prices 0.2.3 openai/gpt-4o-mini`; `source` says it for people.
    """

    base: Rates
    tiers: tuple[Tier, ...] = ()
    per_request: int = 0
    per_web_search: int = 0
    per_file_search: int = 0
    per_image: int = 0
    per_search: int = 0
    per_audio_ms: int = 0
    per_character: int = 0
    kinds: frozenset[str] = TOKENS_PRICED
    per_nano: int = PICO_PER_NANO
    served: Mapping[str, "Price"] = {}
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

    Parts that contradict their total are cut to it, audio and images first, so that no token is free and none counts
    twice: audio output that is also reasoning is charged as audio. Where images are not told apart from text, output
    is charged at the dearer of the two. A service tier without prices of its own is charged as the standard.
    """
    if usage.service_tier and price.served:
        price = price.served.get(usage.service_tier, price)
    at = rates_at(price, usage.input_tokens) if price.tiers else price.base
    cached = usage.cached_tokens
    left = usage.input_tokens
    total = price.per_request
    if usage.input_audio_tokens:
        heard = min(usage.input_audio_tokens, left)
        replayed = min(usage.cached_audio_tokens, heard, cached)
        total += (heard - replayed) * at.input_audio + replayed * at.cached_audio
        left, cached = left - heard, cached - replayed
    if usage.input_image_tokens:
        seen = min(usage.input_image_tokens, left)
        replayed = min(usage.cached_image_tokens, seen, cached)
        total += (seen - replayed) * at.input_image + replayed * at.cached_image
        left, cached = left - seen, cached - replayed
    if usage.cache_write_tokens:
        written = min(usage.cache_write_tokens, left)
        for_1h = min(usage.cache_write_1h_tokens, written)
        total += (written - for_1h) * at.cache_write + for_1h * at.cache_write_1h
        left -= written
    cached = cached if cached < left else left
    total += cached * at.cached + (left - cached) * at.input
    left = usage.output_tokens
    plain = at.output
    if usage.output_audio_tokens:
        spoken = min(usage.output_audio_tokens, left)
        total += spoken * at.output_audio
        left -= spoken
    if usage.output_image_tokens:
        drawn = min(usage.output_image_tokens, left)
        total += drawn * at.output_image
        left -= drawn
    if usage.reasoning_tokens:
        thought = usage.reasoning_tokens if usage.reasoning_tokens < left else left
        total += thought * at.reasoning
        left -= thought
    if usage.citation_tokens:
        cited = min(usage.citation_tokens, left)
        total += cited * at.citation
        left -= cited
    if usage.output_image_tokens is None and at.output_image > plain:
        plain = at.output_image
    total += left * plain
    if usage.web_searches or usage.file_searches:
        total += usage.web_searches * price.per_web_search + usage.file_searches * price.per_file_search
    if usage.images or usage.audio_ms or usage.characters or usage.searches:
        total += _measured(price, usage)
    return -(-total // price.per_nano)


def _measured(price: Price, usage: Usage) -> int:
    """What is sold by other units than tokens."""
    return (
        usage.images * price.per_image
        + usage.audio_ms * price.per_audio_ms
        + usage.characters * price.per_character
        + usage.searches * price.per_search
    )


def version_of(price: Price, usage: Usage) -> str:
    """Which prices a usage is charged by, as its record keeps it: source, service tier and context tier."""
    tier = usage.service_tier
    charged = price.served.get(tier, price) if tier else price
    version = charged.version
    if not tier and not charged.tiers:
        return version
    if tier and charged is price:
        version = f"{version} (no price as {tier})"
    start = max((t.start for t in charged.tiers if usage.input_tokens > t.start), default=None)
    return version if start is None else f"{version} above {start}"


def bound_nano(
    price: Price,
    input_tokens: int,
    output_tokens: int,
    *,
    cache_write: bool = False,
    cache_write_1h: bool = False,
    images: bool = False,
    audio: bool = False,
    served: tuple[str, ...] = (),
    most: Usage = NO_USAGE,
) -> int:
    """The most that a request can cost, in nano-dollars, if its tokens are at most these and it uses no paid tool.

    Every token at the dearest rate it could have in any tier that so many input tokens can reach, and in any of the
    service tiers `served` besides the standard. The flags say whether such tokens can occur; without them their rates
    are left out. Images in the output are always reckoned with, for models draw them unasked. `most`: upper bounds of
    what is not tokens.
    """
    bound = 0
    for tables in (price, *[price.served[name] for name in served if name in price.served]) if served else (price,):
        if not tables.tiers and cache_write and not (cache_write_1h or images or audio):
            dearest_input, dearest_output = tables.base.dearest_of_text
        else:
            reached = [tables.base, *[tier.rates for tier in tables.tiers if input_tokens > tier.start]]
            dearest_input = max([_dearest_input(at, cache_write, cache_write_1h, images, audio) for at in reached])
            dearest_output = max([_dearest_output(at, audio) for at in reached])
        total = input_tokens * dearest_input + output_tokens * dearest_output + tables.per_request
        if most is not NO_USAGE:
            total += _measured(tables, most)
        nano = -(-total // tables.per_nano)
        bound = nano if nano > bound else bound
    return bound


def _dearest_input(
    at: Rates, cache_write: bool = False, cache_write_1h: bool = False, images: bool = False, audio: bool = False
) -> int:
    dearest = max(at.input, at.cached)
    if cache_write:
        dearest = max(dearest, at.cache_write)
    if cache_write_1h:
        dearest = max(dearest, at.cache_write_1h)
    if images:
        dearest = max(dearest, at.input_image, at.cached_image)
    if audio:
        dearest = max(dearest, at.input_audio, at.cached_audio)
    return dearest


def _dearest_output(at: Rates, audio: bool = False) -> int:
    dearest = max(at.output, at.reasoning, at.citation, at.output_image)
    return max(dearest, at.output_audio) if audio else dearest
