"""What a model costs and how its requests are bounded, in plain words: for operators, not for requests."""

from collections.abc import Iterable
from typing import Any

from tollkeeper.domain.pricing import FEE_KINDS, TOKEN_KINDS, Price, Rates
from tollkeeper.domain.tariff import usd_per_million, usd_per_use
from tollkeeper.domain.words import instant
from tollkeeper.gateway.catalog import ModelInfo
from tollkeeper.gateway.price_data import FOREVER_US
from tollkeeper.gateway.routing import Route


def price_sheet(route: Route, info: ModelInfo, at_us: int) -> dict[str, Any]:
    """Everything known of a model at a time (Unix µs), as JSON knows values. Amounts are exact, as strings.

    `prices` has one table for each service tier and each size of the input; empty if no price is known, which
    `unpriced` then explains.
    """
    price = info.price
    return {
        "provider": route.provider,
        "model": route.model,
        "upstream_model": route.upstream_model,
        "at": moment(at_us),
        "source": None if price is None else price.source,
        "unpriced": info.unpriced,
        "valid_from": moment(info.valid_from_us),
        "valid_until": moment(info.valid_until_us),
        "context_window": info.context_window,
        "context_window_listed": info.listed_window,
        "max_output_tokens": info.max_output_tokens,
        "output_limit_injected": info.output_default,
        "image_tokens_max": info.image_tokens_max,
        "unbounded": info.unbounded,
        "reported_cost_trusted": info.reported_max_nano is not None,
        "prices": [] if price is None else list(_tables(price)),
        "usd_per_use": {} if price is None else _fees(price),
    }


def _tables(price: Price) -> Iterable[dict[str, Any]]:
    if "tokens" in price.kinds:
        yield from _of_tier(price, None)
    for name, served in price.served.items():
        yield from _of_tier(served, name)


def _of_tier(price: Price, name: str | None) -> Iterable[dict[str, Any]]:
    for above, at in ((None, price.base), *((tier.start, tier.rates) for tier in price.tiers)):
        yield {
            "service_tier": name,
            "above_input_tokens": above,
            "version": price.version if above is None else f"{price.version} above {above}",
            "usd_per_million_tokens": _rates(price, at),
        }


def _rates(price: Price, at: Rates) -> dict[str, str]:
    return {kind: _text(usd_per_million(price, getattr(at, kind))) for kind in TOKEN_KINDS}


def _fees(price: Price) -> dict[str, str]:
    return {kind: _text(usd_per_use(price, kind)) for kind in FEE_KINDS if kind in price.kinds}


def _text(amount: object) -> str:
    return f"{amount:f}"


def moment(us: int) -> str | None:
    """A time in UTC; None for ever."""
    return None if abs(us) >= FOREVER_US else instant(us)
