"""Bounds and usage of what is sold by other units than tokens: images, audio, characters, searches.

A model may be sold by tokens or by such units; both bounds are held. What neither the request nor the configuration
bounds carries a reason, as everywhere. It knows nothing of HTTP or of how answers are read.
"""

from typing import Final

import msgspec

from tollkeeper.domain.bound import Bound
from tollkeeper.domain.pricing import Price, Rates, bound_nano, rates
from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.gateway.catalog import ModelInfo
from tollkeeper.gateway.dialects import Call, Endpoint, Sold

PARTIAL_IMAGE_TOKENS: Final = 100
"""OpenAI, documented ("Image generation", streaming): each partial image costs 100 output tokens more."""
FREE: Final = Price(rates(input=0, output=0), version="free of charge", source="free of charge")
ZERO: Final[Rates] = FREE.base
OTHER: Final = "?"
"""A size or quality that no configured price names."""
NO_PRICE: Final = Price(ZERO, kinds=frozenset())


def priced(info: ModelInfo, endpoint: Endpoint) -> ModelInfo:
    """What is known of the model at an endpoint: without its price if that is not of what the endpoint sells."""
    if endpoint.free or endpoint.name == "batch_create":
        return msgspec.structs.replace(info, price=FREE, reported_max_nano=None, unbounded=None, searches=False)
    price = info.price
    if price is None or "tokens" in price.kinds or any(kind in price.kinds for kind in endpoint.fees):
        return info
    kinds = " or ".join(("tokens", *endpoint.fees))
    known = ", ".join(sorted(price.kinds)) or "nothing"
    return msgspec.structs.replace(info, price=None, unpriced=f"its price is by {known}, not by {kinds}")


def drawn(info: ModelInfo, size: str, quality: str) -> ModelInfo:
    """What is known of a model for images of a size and quality, each empty if it is not told.

    The first configured price that fits counts; what is not told may be any, and counts as the dearest. Where none
    fits, what was known before.
    """
    info = info.undrawn or info
    sizes = (size,) if size else (OTHER, *{its.size for its in info.image_prices})
    qualities = (quality,) if quality else (OTHER, *{its.quality for its in info.image_prices})
    costs = [cost for s in sizes for q in qualities if (cost := _image_nano(info, s, q)) is not None]
    most = max(costs, default=None)
    price = info.price or NO_PRICE
    if most is None:
        return info
    priced_so = msgspec.structs.replace(
        price,
        per_image=most * price.per_nano,
        kinds=price.kinds | {"image"},
        version=f"{price.version} images {size or 'any'} {quality or 'any'}",
    )
    return msgspec.structs.replace(info, price=priced_so, undrawn=info)


def _image_nano(info: ModelInfo, size: str, quality: str) -> int | None:
    for its in info.image_prices:
        if its.size in ("", size) and its.quality in ("", quality):
            return its.cost_nano
    price = info.price
    return None if price is None or "image" not in price.kinds else -(-price.per_image // price.per_nano)


def how_to_price(endpoint: Endpoint) -> str:
    """The settings that an operator can write, for an error."""
    fees = [f"per_{kind}_usd" for kind in endpoint.fees if kind != "request"]
    return " or ".join(("input_usd and output_usd", *(fees or [f"per_{kind}_usd" for kind in endpoint.fees])))


def bound_of(call: Call, info: ModelInfo) -> tuple[Bound, Usage]:
    """The most tokens of a call, and the most of everything else."""
    sold, price = call.sold, info.price
    assert sold is not None
    if call.endpoint.free or price is None or sold.batch_nano is not None:
        return Bound(0, 0), NO_USAGE
    tokens = info.bound(call.content, max_output=0, choices=1)
    if "tokens" not in price.kinds:
        tokens = Bound(0, 0, tokens.unbounded)
    elif price.base != ZERO or price.tiers:
        tokens = _tokens(call, sold, info, tokens)
    most = Usage(images=sold.images, characters=sold.characters, searches=sold.searches)
    if sold.listens and "audio_hour" in price.kinds:
        audio_ms = sold.audio_ms if sold.audio_ms is not None else info.audio_ms_max
        if audio_ms is None:
            reason = (
                "how long a compressed recording lasts is not known before it is read: send an uncompressed WAV, or "
                f'have an operator set audio_seconds_max under models."{call.model}"'
            )
            return Bound(tokens.input_tokens, tokens.output_tokens, tokens.unbounded or reason), most
        most = msgspec.structs.replace(most, audio_ms=audio_ms)
    return tokens, most


def _tokens(call: Call, sold: Sold, info: ModelInfo, known: Bound) -> Bound:
    """With the output, for which there is no limit to ask for, and the input that is heard."""
    inputs, output, reason = known.input_tokens, 0, known.unbounded
    where = f'models."{call.model}"'
    if sold.images:
        if info.output_image_tokens_max is None:
            reason = reason or f"the most tokens of an image are not known: set output_image_tokens_max under {where}"
        else:
            each = info.output_image_tokens_max + sold.partial_images * PARTIAL_IMAGE_TOKENS
            output = each * sold.images
    elif sold.listens or sold.characters:
        if info.max_output_tokens is None:
            reason = reason or f"the most tokens of its answer are not known: set max_output_tokens under {where}"
        else:
            output = info.max_output_tokens
    if sold.listens:
        if info.context_window is None:
            reason = reason or f"the most tokens it can listen to are not known: set context_window under {where}"
        else:
            inputs = info.context_window
    return Bound(inputs, output, reason)


def hold_nano(call: Call, info: ModelInfo) -> int:
    """The most that a call can cost; 0 without a price. Only true of bounded calls."""
    assert call.sold is not None
    if call.sold.batch_nano is not None:
        return call.sold.batch_nano
    if info.price is None:
        return 0
    tokens, most = bound_of(call, info)
    assert call.sold is not None
    return bound_nano(
        info.price,
        tokens.input_tokens,
        tokens.output_tokens,
        images=call.content.images > 0,
        audio=call.sold.listens or call.sold.characters > 0,
        most=most,
    )


def metered(call: Call, told: Usage | None, price: Price | None) -> Usage | None:
    """What is charged: what the answer told, or what the request itself says; None if neither is what is sold."""
    assert call.sold is not None
    if call.sold.batch_nano is not None:
        return None  # what it uses is still to come
    counted = call.sold.counted
    usage = told if told is not None else counted
    if usage is None or price is None:
        return usage
    if counted is not None:
        usage = msgspec.structs.replace(
            usage, audio_ms=usage.audio_ms or counted.audio_ms, characters=usage.characters or counted.characters
        )
    return usage if _sells(price, usage) else None


def _sells(price: Price, usage: Usage) -> bool:
    """Whether the price is of something that was told."""
    quantities = {
        "tokens": usage.total_tokens,
        "image": usage.images,
        "audio_hour": usage.audio_ms,
        "million_characters": usage.characters,
        "search": usage.searches,
        "request": 1,
    }
    free = "tokens" in price.kinds and price.base == ZERO and not price.tiers
    return free or any(quantities.get(kind) for kind in price.kinds)
