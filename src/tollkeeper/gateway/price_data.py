"""The built-in price data: the home of genai-prices.

Nothing here ever goes to the network: the data are those of the installed version. Its arithmetic is not used but by
the tests, which hold ours equal to it.

Where a price has parts that no usage report tells apart (video, say) and they are dearer than what they would be
charged as, the model counts as unpriced: charging it would be a guess below the truth.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Final

import genai_prices
import msgspec
from genai_prices.data import providers as price_data
from genai_prices.data_snapshot import DataSnapshot, find_provider_by_id
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from tollkeeper.domain.tariff import Tariff, scaled

SOURCE: Final = f"genai-prices {genai_prices.__version__}"
FOREVER_US: Final = 2**62

TOKEN_KEYS: Final[Mapping[str, str]] = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "cache_audio_read_mtok": "cached_audio",
    "output_audio_mtok": "output_audio",
    "input_image_mtok": "input_image",
    "cache_image_read_mtok": "cached_image",
    "output_image_mtok": "output_image",
    "output_reasoning_mtok": "reasoning",
    "output_citation_mtok": "citation",
}
"""Price keys whose tokens a usage report tells apart → the kind's name in `Rates`."""
FEE_KEYS: Final[Mapping[str, str]] = {
    "requests_kcount": "request",
    "web_searches_kcount": "web_search",
    "storage_searches_kcount": "file_search",
}
"""Prices of a thousand uses → the kind's name in `FEES`."""
UNIT_KEYS: Final[Mapping[str, str]] = {"input_audio_hours": "audio_hour", "input_mchars": "million_characters"}
"""Prices of other units → the kind's name in `FEES`."""
FREE: Final = (("openai", r"(omni|text)-moderation-(latest|stable|\d+|\d{4}-\d\d-\d\d)"),)
"""Models that the data list without a price because they have none: OpenAI documents its moderation as free."""
NOT_TOKENS: Final = ("_kcount", "_hours", "_kpages", "_mchars", "_gpixels")
"""Prices of what is not tokens: other server tools, whose requests have no bound, and other products."""
CONTEXTS: Final = ("service_tier", "processing", "speed")
"""What a request can be served as, as genai-prices' variants call it; the value is the service tier's name here."""
STANDARD: Final = ("default", "standard")
RESIDENT: Final = ("anthropic", "us", Decimal("1.1"))
"""Anthropic, documented ("Pricing", data residency): all tokens of a request whose `inference_geo` is `us` cost 1.1
times as much; models that do not offer it never report it. The data do not have it."""

Known = Mapping[str, Decimal | TieredPrices]


class Listed(msgspec.Struct, frozen=True):
    """What the data say of a model at one time.

    `tariff` is None if it has no usable price, and `unpriced` says why. It holds from `from_us` until before
    `until_us`. `context_window` is rounded in the data.
    """

    tariff: Tariff | None
    unpriced: str | None
    context_window: int | None = None
    from_us: int = -FOREVER_US
    until_us: int = FOREVER_US


class PriceData:
    """All providers of the data."""

    def __init__(self) -> None:
        # A snapshot of our own: one that another user of the library installs must not change our prices.
        self._data = DataSnapshot(providers=price_data, from_auto_update=False)

    @property
    def provider_ids(self) -> list[str]:
        """Sorted."""
        return sorted(p.id for p in self._data.providers)

    def has(self, provider_id: str) -> bool:
        return find_provider_by_id(self._data.providers, provider_id) is not None

    def provider_at(self, base_url: str) -> str | None:
        """The id of the provider at an address."""
        return next((p.id for p in self._data.providers if re.match(p.api_pattern, base_url)), None)

    def model_names(self, provider_id: str) -> list[str]:
        """Every model of a provider that has a price per token."""
        return [m.id for m in self._provider(provider_id).models if _has_token_price(m)]

    def look_up(self, provider_id: str, model: str, now_us: int) -> Listed:
        """What is known of a model at a time (Unix µs)."""
        provider = self._provider(provider_id)
        found = provider.find_model(model, all_providers=self._data.providers)
        if found is None:
            return Listed(None, f"{SOURCE} does not know it at {provider_id}")
        now = _EPOCH + timedelta(microseconds=now_us)
        from_us, until_us = _validity(found, now)
        tariff, unpriced = _tariff(provider, found, now)
        if tariff is None and any(provider_id == its and re.fullmatch(names, model) for its, names in FREE):
            version = f"{SOURCE} {provider.id}/{found.id}"
            tariff, unpriced = Tariff(tokens={}, fees={"request": Decimal(0)}, version=version, source=SOURCE), None
        return Listed(tariff, unpriced, found.context_window, from_us, until_us)

    def _provider(self, provider_id: str) -> Provider:
        found = find_provider_by_id(self._data.providers, provider_id)
        if found is None:
            raise KeyError(provider_id)
        return found


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _has_token_price(model: ModelInfo) -> bool:
    prices = (
        model.prices if isinstance(model.prices, ModelPrice) else model.prices[0].prices if model.prices else None
    )
    return prices is not None and prices.input_mtok is not None


def _known(prices: ModelPrice) -> Known:
    return {k: v for k, v in vars(prices).items() if isinstance(v, Decimal | TieredPrices)}


def _tariff(provider: Provider, model: ModelInfo, now: datetime) -> tuple[Tariff | None, str | None]:
    """The tariff, or why there is none."""
    known = _known(model.get_prices(now))
    if "input_mtok" not in known:
        return _without_tokens(provider, model, known)
    dearer = _dearer_unmeasured(known)
    if dearer is not None:
        return None, f"usage does not tell apart what it charges as {dearer}"
    version = f"{SOURCE} {provider.id}/{model.id}"
    served: dict[str, Tariff] = {}
    # As calc_price: a model borrowed from another provider has its standard prices only.
    names = _variants(model) if any(model is own for own in provider.models) else ()
    for name in names:
        its = _known(model.get_prices(now, dict.fromkeys(CONTEXTS, name)))
        if its != known and _dearer_unmeasured(its) is None:
            served[name] = _tariff_of(its, f"{version} {name}")
    tariff = _tariff_of(known, version)
    if provider.id == RESIDENT[0]:
        served |= _resident({"": tariff, **served})
    return msgspec.structs.replace(tariff, served=served), None


def _resident(tariffs: Mapping[str, Tariff]) -> dict[str, Tariff]:
    """The same service tiers for requests that stay in one place: `us`, `fast us`."""
    _, place, factor = RESIDENT
    return {
        f"{name} {place}".lstrip(): msgspec.structs.replace(
            scaled(its, factor), fees=its.fees, version=f"{its.version} {place}", source=its.source
        )
        for name, its in tariffs.items()
    }


def _without_tokens(provider: Provider, model: ModelInfo, known: Known) -> tuple[Tariff | None, str | None]:
    """The tariff of what is sold by the hour or by the character."""
    version = f"{SOURCE} {provider.id}/{model.id}"
    fees = _fees(known)
    if not fees.keys() & set(UNIT_KEYS.values()):
        return None, f"{SOURCE} has no price per token for it"
    return Tariff(tokens={}, fees=fees, version=version, source=SOURCE), None


def _fees(known: Known) -> dict[str, Decimal]:
    fees = {kind: _price_above(known[k], None).scaleb(-3) for k, kind in FEE_KEYS.items() if k in known}
    return fees | {kind: _price_above(known[k], None) for k, kind in UNIT_KEYS.items() if k in known}


def _variants(model: ModelInfo) -> list[str]:
    """What the model can be served as, at prices that a single word decides."""
    names = {
        value
        for variant in model.price_variants or ()
        for key, value in variant.when.items()
        if len(variant.when) == 1 and key in CONTEXTS and value not in STANDARD
    }
    return sorted(names)


def _tariff_of(known: Known, version: str) -> Tariff:
    starts = sorted({t.start for v in known.values() if isinstance(v, TieredPrices) for t in v.tiers})
    return Tariff(
        tokens=_table(known, None),
        tiers=tuple((start, _table(known, start)) for start in starts),
        fees=_fees(known),
        version=version,
        source=SOURCE,
    )


def _table(known: Known, start: int | None) -> dict[str, Decimal]:
    return {kind: _price_above(known[k], start) for k, kind in TOKEN_KEYS.items() if k in known}


def _price_above(value: Decimal | TieredPrices, start: int | None) -> Decimal:
    """The price of requests just above a tier's start; None: below every tier."""
    if isinstance(value, Decimal):
        return value
    chosen = value.base
    for tier in value.tiers:
        if start is not None and tier.start <= start:
            chosen = tier.price
    return chosen


def _dearer_unmeasured(known: Known) -> str | None:
    """The first price of tokens that no usage report tells apart and that is above what they would be charged as."""
    for key, value in known.items():
        if key in TOKEN_KEYS or key.endswith(NOT_TOKENS):
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


def _validity(model: ModelInfo, now: datetime) -> tuple[int, int]:
    """The instants around now at which other prices may begin to count; from is included, until is not."""
    conditional = () if isinstance(model.prices, ModelPrice) else model.prices
    constraints = [c.constraint for c in (*conditional, *(model.price_variants or ()))]
    changes = list(_changes(constraints, now))
    earlier, later = [c for c in changes if c <= now], [c for c in changes if c > now]
    return (
        _us(max(earlier)) if earlier else -FOREVER_US,
        _us(min(later)) if later else FOREVER_US,
    )


def _changes(
    constraints: Iterable[StartDateConstraint | TimeOfDateConstraint | None], now: datetime
) -> Iterable[datetime]:
    for constraint in constraints:
        if isinstance(constraint, StartDateConstraint):
            yield _midnight(constraint.start_date)
        elif isinstance(constraint, TimeOfDateConstraint):
            for moment in (constraint.start_time, constraint.end_time):
                today = datetime.combine(now.date(), moment.replace(tzinfo=moment.tzinfo or UTC))
                yield from (today + timedelta(days=days) for days in (-2, -1, 0, 1, 2))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(0, tzinfo=UTC))


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
