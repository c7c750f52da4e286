"""What is known of models: prices, limits and names, from the offline price data and the settings.

The home of genai-prices. Each (provider, model) is resolved once into integers and kept; a lookup after that is one
dictionary read. Nothing here ever goes to the network: the data are those of the installed version. Which provider
serves a name is not decided here but in `routing.py`.

Where a price has parts that no usage report tells apart (image output at its own price, say) and they are dearer
than what they would be charged as, the model counts as unpriced: charging it would be a guess below the truth.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Final

import genai_prices
import msgspec
from genai_prices.data import providers as price_data
from genai_prices.data_snapshot import DataSnapshot, find_provider_by_id
from genai_prices.types import (
    ConditionalPrice,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import ModelInfo as PricedModel

from tollkeeper.domain.bound import Bound, Content, bound
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.money import NANO_PER_USD, pico_per_token
from tollkeeper.domain.pricing import Price, Rates, Tier, bound_nano, rates
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings

MODELS_MAX: Final = 4096
"""Resolved models kept; above it the oldest are resolved again when asked for."""
SOURCE: Final = f"genai-prices {genai_prices.__version__}"
FOREVER_US: Final = 2**62

IMAGE_TOKENS_MAX: Final[Mapping[str, int]] = {"openai": 48_169, "anthropic": 5_000}
"""The most one image is charged as, unless configured. OpenAI: gpt-4o-mini's 2,833 + 5,667 for each of 8 tiles, the
worst of its "Images and vision" guide (other models at most 1,445 by tiles). Anthropic: about width × height / 750
after scaling to its largest edge, less than 5,000 for every model of its "Vision" guide."""

STORED_MARGIN: Final = (5, 4)
"""Context windows in the price data are rounded (1,000,000 for 1,047,576), so a stored conversation is taken to be a
quarter larger. They never tighten a bound by bytes; a configured window does, and is taken as it is."""

OUTPUT_DEFAULT: Final = 4096
"""Injected into a request without an output limit if nothing is known of the model: every current model takes it."""
OUTPUT_LIMITS: Final[tuple[tuple[str, int], ...]] = (
    # From OpenAI's model pages: the most tokens of one answer. The first match counts.
    (r"gpt-5[\w.]*-chat|gpt-5-chat|gpt-chat", 16_384),
    (r"gpt-5", 128_000),
    (r"gpt-4\.1", 32_768),
    (r"gpt-4o-2024-05-13", 4_096),
    (r"gpt-4o", 16_384),
    (r"o1-mini", 65_536),
    (r"o1-preview", 32_768),
    (r"o[134]", 100_000),
    (r"gpt-4-turbo|gpt-4-\d+-preview|gpt-3\.5", 4_096),
    (r"gpt-4", 4_096),
)

MEASURED: Final[Mapping[str, str]] = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "output_reasoning_mtok": "reasoning",
}
"""Price keys whose tokens a usage report tells apart → the kind's name in `Rates`."""
NOT_TOKENS: Final = ("_kcount", "_hours", "_kpages", "_mchars", "_gpixels")
"""Prices of what is not tokens: server tools, whose requests have no bound, and other products."""
CACHED_AUDIO: Final = "cache_audio_"
"""Audio is charged in full beside the cached tokens, so its own cache prices are never above what is charged."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model at one provider.

    `price` is None if unknown, and `unpriced` says why. `unbounded`: why the cost of every request has no bound, if
    so. `context_window`, `max_output_tokens`: configured, so certain. `stored_tokens_max`: the most a stored
    conversation can hold, if known. `output_default`: the limit to inject into a request that states none.
    `valid_until_us`: when the price changes by itself.
    """

    price: Price | None
    image_tokens_max: int
    output_default: int
    context_window: int | None = None
    max_output_tokens: int | None = None
    stored_tokens_max: int | None = None
    unpriced: str | None = None
    unbounded: str | None = None
    valid_until_us: int = FOREVER_US

    def bound(self, content: Content, *, max_output: int, choices: int) -> Bound:
        """The upper bounds of a request's tokens at this model, each choice limited to `max_output`."""
        result = bound(
            content,
            max_output=max_output,
            choices=choices,
            image_tokens_max=self.image_tokens_max,
            context_window=self.context_window,
            stored_tokens_max=self.stored_tokens_max,
            max_output_tokens=self.max_output_tokens,
        )
        if self.unbounded is None or result.unbounded is not None:
            return result
        return Bound(result.input_tokens, result.output_tokens, self.unbounded)

    def hold_nano(self, content: Content, tokens: Bound) -> int | None:
        """The most a request can cost in nano-dollars; None without a price. Only true of bounded requests."""
        if self.price is None:
            return None
        return bound_nano(
            self.price,
            tokens.input_tokens,
            tokens.output_tokens,
            cache_write=content.cache_write,
            cache_write_1h=content.cache_write_1h,
        )


class Catalog:
    """All models of the configured providers. Raises ConfigurationError for a `prices` id that does not exist."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # A snapshot of our own: one that another user of the library installs must not change our prices.
        self._data = DataSnapshot(providers=price_data, from_auto_update=False)
        self._priced = {name: self._provider(name, p) for name, p in settings.providers.items()}
        self._models: dict[tuple[str, str, str], ModelInfo] = {}

    def info(self, provider: str, model: str, upstream_model: str, now_us: int) -> ModelInfo:
        """What is known of a model now.

        `model` is the client's name, by which settings are found; `upstream_model` the provider's, by which prices
        are. Raises KeyError for a provider that is not configured.
        """
        key = (provider, model, upstream_model)
        found = self._models.get(key)
        if found is None or now_us >= found.valid_until_us:
            if len(self._models) >= MODELS_MAX:
                self._models.pop(next(iter(self._models)))
            found = self._models[key] = self._resolve(provider, model, upstream_model, now_us)
        return found

    def model_names(self, provider: str) -> list[str]:
        """Every name known for a provider, sorted: configured ones, and those of the price data that have a price.

        Whether the provider's `models` patterns serve them is for the caller to ask.
        """
        names = {n for n, m in self._settings.models.items() if m.provider in (None, provider)}
        priced = self._priced[provider]
        if priced is not None:
            names.update(m.id for m in priced.models if _has_token_price(m))
        return sorted(names)

    def _provider(self, name: str, provider: ProviderSettings) -> Provider | None:
        if provider.prices is not None:
            found = find_provider_by_id(self._data.providers, provider.prices)
            if found is None:
                known = ", ".join(sorted(p.id for p in self._data.providers))
                raise ConfigurationError(
                    f"providers.{name}.prices: {SOURCE} has no provider {provider.prices!r}; known: {known}"
                )
            return found
        return next((p for p in self._data.providers if re.match(p.api_pattern, provider.base_url)), None)

    def _resolve(self, provider: str, model: str, upstream_model: str, now_us: int) -> ModelInfo:
        settings = self._settings.providers[provider]
        own = self._settings.models.get(model)
        if own is None or own.provider not in (None, provider):
            own = ModelSettings()
        priced = self._priced[provider]
        found = None if priced is None else priced.find_model(upstream_model, all_providers=self._data.providers)
        price, unpriced, until_us = _price_of(priced, found, now_us)
        price = _overridden(price, own)
        window = None if found is None else found.context_window
        stored = own.context_window
        if stored is None and window is not None:
            stored = window * STORED_MARGIN[0] // STORED_MARGIN[1]
        return ModelInfo(
            price=price,
            image_tokens_max=own.image_tokens_max or IMAGE_TOKENS_MAX[settings.dialect],
            output_default=own.max_output_tokens or _output_default(upstream_model),
            context_window=own.context_window,
            max_output_tokens=own.max_output_tokens,
            stored_tokens_max=stored,
            unpriced=None if price is not None else unpriced,
            unbounded=_always_searching(upstream_model),
            valid_until_us=until_us,
        )


def output_limit_field(endpoint: str, provider: ProviderSettings) -> str | None:
    """The field by which an endpoint (its name) takes an output limit at a provider; None: it has no output."""
    if endpoint == "embeddings":
        return None
    if endpoint == "responses":
        return "max_output_tokens"
    if endpoint == "chat":
        at_openai = re.match(r"https://api\.openai\.com(?:[:/]|$)", provider.base_url)
        return provider.output_limit_field or ("max_completion_tokens" if at_openai else "max_tokens")
    return "max_tokens"


def _output_default(model: str) -> int:
    name = model.rpartition("/")[2]
    return next((limit for pattern, limit in OUTPUT_LIMITS if re.match(pattern, name)), OUTPUT_DEFAULT)


def _always_searching(model: str) -> str | None:
    """Search models and deep-research models call paid tools in every request, asked or not."""
    return "the model searches the web at a price of its own" if "search" in model.lower() else None


def _has_token_price(model: PricedModel) -> bool:
    prices = (
        model.prices if isinstance(model.prices, ModelPrice) else model.prices[0].prices if model.prices else None
    )
    return prices is not None and prices.input_mtok is not None


def _price_of(
    provider: Provider | None, model: PricedModel | None, now_us: int
) -> tuple[Price | None, str | None, int]:
    """Price, why there is none, and when this changes."""
    if provider is None:
        return None, "no prices are known for its provider", FOREVER_US
    if model is None:
        return None, f"{SOURCE} does not know it at {provider.id}", FOREVER_US
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_us)
    until_us = FOREVER_US if isinstance(model.prices, ModelPrice) else _next_change_us(model.prices, now)
    prices = model.get_prices(now)
    known = {k: v for k, v in vars(prices).items() if isinstance(v, Decimal | TieredPrices)}
    if "input_mtok" not in known:
        return None, f"{SOURCE} has no price per token for it", until_us
    dearer = _dearer_unmeasured(known)
    if dearer is not None:
        return None, f"usage does not tell apart what it charges as {dearer}", until_us
    starts = sorted({t.start for k, v in known.items() if isinstance(v, TieredPrices) for t in v.tiers})
    per_request = known.get("requests_kcount", Decimal(0))
    assert isinstance(per_request, Decimal)
    price = Price(
        _rates_above(known, None),
        tuple(Tier(start, _rates_above(known, start)) for start in starts),
        per_request_nano=_nano_of_thousand(per_request),
        version=f"{SOURCE} {provider.id}/{model.id}",
        source=SOURCE,
    )
    return price, None, until_us


def _nano_of_thousand(usd_per_thousand: Decimal) -> int:
    return int((usd_per_thousand * NANO_PER_USD / 1000).to_integral_value(ROUND_CEILING))


def _price_above(value: Decimal | TieredPrices, start: int | None) -> Decimal:
    """The price of requests just above a tier's start; None: below every tier."""
    if isinstance(value, Decimal):
        return value
    chosen = value.base
    for tier in value.tiers:
        if start is not None and tier.start <= start:
            chosen = tier.price
    return chosen


def _rates_above(known: Mapping[str, Decimal | TieredPrices], start: int | None) -> Rates:
    kinds = {kind: pico_per_token(_price_above(known[k], start)) for k, kind in MEASURED.items() if k in known}
    return rates(**{"output": 0, **kinds})


def _dearer_unmeasured(known: Mapping[str, Decimal | TieredPrices]) -> str | None:
    """The first price of tokens that no usage report tells apart and that is above what they would be charged as."""
    for key, value in known.items():
        if key in MEASURED or key.endswith(NOT_TOKENS) or key.startswith(CACHED_AUDIO):
            continue
        charged = known.get(_container(key), known["input_mtok"] if not key.startswith("output") else None)
        if charged is None or _largest(value) > _smallest(charged):
            return key
    return None


def _container(key: str) -> str:
    """The measured price key that tokens of an unmeasured one are charged by."""
    if key.startswith("cache_"):
        return "cache_write_mtok" if "write" in key else "cache_read_mtok"
    return "output_mtok" if key.startswith("output") else "input_mtok"


def _largest(value: Decimal | TieredPrices) -> Decimal:
    return value if isinstance(value, Decimal) else max(value.base, *(t.price for t in value.tiers))


def _smallest(value: Decimal | TieredPrices) -> Decimal:
    return value if isinstance(value, Decimal) else min(value.base, *(t.price for t in value.tiers))


def _next_change_us(prices: list[ConditionalPrice], now: datetime) -> int:
    """The next instant at which another of the conditional prices may apply."""
    changes: list[datetime] = []
    for conditional in prices:
        constraint = conditional.constraint
        if isinstance(constraint, StartDateConstraint):
            changes.append(_midnight(constraint.start_date))
        elif isinstance(constraint, TimeOfDateConstraint):
            for moment in (constraint.start_time, constraint.end_time):
                today = datetime.combine(now.date(), moment.replace(tzinfo=moment.tzinfo or UTC))
                changes.extend(today + timedelta(days=days) for days in (-1, 0, 1, 2))
    later = [c for c in changes if c > now]
    if not later:
        return FOREVER_US
    return (min(later) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(0, tzinfo=UTC))


def _overridden(price: Price | None, own: ModelSettings) -> Price | None:
    """The price with what is configured in its place. Both base prices configured: nothing else counts."""
    given = {
        kind: pico_per_token(Decimal(usd))
        for kind, usd in (
            ("input", own.input_usd),
            ("output", own.output_usd),
            ("cached", own.cached_usd),
            ("cache_write", own.cache_write_usd),
            ("cache_write_1h", own.cache_write_1h_usd),
        )
        if usd is not None
    }
    per_request = None if own.per_request_usd is None else Decimal(own.per_request_usd)
    per_request_nano = (
        0 if per_request is None else int((per_request * NANO_PER_USD).to_integral_value(ROUND_CEILING))
    )
    if "input" in given and "output" in given:
        return Price(rates(**given), per_request_nano=per_request_nano)
    if price is None or (not given and per_request is None):
        return price
    return Price(
        msgspec.structs.replace(price.base, **given),
        tuple(Tier(t.start, msgspec.structs.replace(t.rates, **given)) for t in price.tiers),
        per_request_nano=price.per_request_nano if per_request is None else per_request_nano,
        version=f"{price.version} + configuration",
        source=f"{price.source} + configuration",
    )
