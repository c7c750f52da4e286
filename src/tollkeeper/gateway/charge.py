"""Step 6, the amount: what an answer costs, by our own price or by the provider's word.

A pure decision. It knows neither how an answer is read nor how a charge is settled.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from tollkeeper.domain.money import nano_from_json
from tollkeeper.domain.pricing import Price, cost_nano
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import ModelInfo
from tollkeeper.gateway.dialects import Part


class CostSource(StrEnum):
    """Where a charge comes from, as the log record says it."""

    PRICE = "price"
    PROVIDER = "provider"
    HOLD = "hold"


class Charge(msgspec.Struct, frozen=True):
    """An amount in nano-dollars. `disbelieved`: the provider's word should have counted, but was absent or absurd.
    `unpriced_tier`: it was served as a service tier without a known price, and charged as the standard, or in part by
    a model without one, and charged as the model that was asked."""

    cost_nano: int
    source: CostSource | None
    disbelieved: bool = False
    unpriced_tier: bool = False


NOTHING: Final = Charge(0, None)


def charge_of(info: ModelInfo, usage: Usage, reported_cost: bytes, *, heard: bool = False) -> Charge:
    """The charge of a usage. `reported_cost`: the JSON text of what the provider says in USD, empty if it says none.
    `heard`: the request had audio, so that a report without audio tokens does not tell them apart.

    Without a price and without a word that is believed it is 0, from no source.
    """
    disbelieved = False
    if info.reported_max_nano is not None:
        told = nano_from_json(reported_cost, info.reported_max_nano)
        if told is not None:
            return Charge(told, CostSource.PROVIDER)
        disbelieved = True
    if info.price is None:
        return Charge(0, None, disbelieved)
    if info.searches and not usage.web_searches:
        usage = msgspec.structs.replace(usage, web_searches=1)
    if heard and not usage.input_audio_tokens and info.price.base.input_audio > info.price.base.input:
        # Gemini's OpenAI dialect: charged as if all had been audio, rather than below the truth.
        usage = msgspec.structs.replace(usage, input_audio_tokens=usage.input_tokens)
    unpriced = usage.service_tier != "" and usage.service_tier not in info.price.served
    return Charge(cost_nano(info.price, usage), CostSource.PRICE, disbelieved, unpriced)


def with_parts(
    charge: Charge, info: ModelInfo, parts: tuple[Part, ...], price_of: Callable[[str], Price | None]
) -> Charge:
    """The charge with what other rounds of the request cost, each at its own model's price.

    The provider's word is of the whole, so nothing is added to it; nor is it where the request itself has no price.
    """
    if charge.source is not CostSource.PRICE or info.price is None:
        return charge
    cost, unpriced = charge.cost_nano, charge.unpriced_tier
    for part in parts:
        price = price_of(part.model) if part.model else info.price
        if price is not None and "tokens" not in price.kinds:
            price = None
        unpriced = unpriced or price is None
        cost += cost_nano(price or info.price, part.usage)
    return msgspec.structs.replace(charge, cost_nano=cost, unpriced_tier=unpriced)


def with_tokens(usage: Usage, parts: tuple[Part, ...]) -> Usage:
    """The usage with the tokens of other rounds: what limits count and records show, never what is priced."""
    for part in parts:
        usage = msgspec.structs.replace(
            usage,
            input_tokens=usage.input_tokens + part.usage.input_tokens,
            output_tokens=usage.output_tokens + part.usage.output_tokens,
            cached_tokens=usage.cached_tokens + part.usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens + part.usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens + part.usage.cache_write_1h_tokens,
            reasoning_tokens=usage.reasoning_tokens + part.usage.reasoning_tokens,
        )
    return usage
