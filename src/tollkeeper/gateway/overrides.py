"""Prices from the configuration: which entry counts at a time, and what it puts in place of the price data.

Settings are checked when they are read: entries of a model do not overlap, and amounts are amounts.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Final

import msgspec

from tollkeeper.domain.pricing import FEE_KINDS, TOKEN_KINDS
from tollkeeper.domain.tariff import Amounts, Tariff, overlaid
from tollkeeper.gateway.price_data import FOREVER_US
from tollkeeper.settings import AmountSettings, ModelSettings, PriceSettings, RateSettings

CONFIGURED: Final = "configuration"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, valid from `from_us` until before `until_us`.

    `version` names the entry and, by a digest, its content: an edited entry is another version.
    """

    tokens: Amounts
    fees: Amounts
    tiers: tuple[tuple[int, Amounts], ...] = ()
    served: Mapping[str, Tariff] = {}
    version: str
    from_us: int = -FOREVER_US
    until_us: int = FOREVER_US

    @property
    def whole(self) -> bool:
        """Whether nothing of the price data counts beside it."""
        return "input" in self.tokens and "output" in self.tokens


def overrides_of(name: str, model: ModelSettings) -> tuple[Override, ...]:
    """All entries of a model, in the order of their times."""
    tokens, fees = _tokens(model), _fees(model)
    if tokens or fees:
        where = f"models.{name}"
        return (Override(tokens=tokens, fees=fees, version=_version(where, {"tokens": tokens, "fees": fees})),)
    entries = [_entry(f"models.{name}.prices[{i}]", price) for i, price in enumerate(model.prices)]
    return tuple(sorted(entries, key=lambda entry: entry.from_us))


def in_force(overrides: tuple[Override, ...], now_us: int) -> tuple[Override | None, int, int]:
    """The entry that counts now, and from when until when that stays so."""
    from_us, until_us = -FOREVER_US, FOREVER_US
    for entry in overrides:
        if entry.from_us <= now_us < entry.until_us:
            return entry, entry.from_us, entry.until_us
        if entry.until_us <= now_us:
            from_us = entry.until_us
        else:
            until_us = entry.from_us
            break
    return None, from_us, until_us


def applied(tariff: Tariff | None, entry: Override | None) -> Tariff | None:
    """The tariff with an entry in its place, or over it if the entry has only some kinds."""
    if entry is None:
        return tariff
    if entry.whole:
        return Tariff(
            tokens=entry.tokens,
            tiers=entry.tiers,
            fees=entry.fees,
            served=entry.served,
            version=entry.version,
            source=CONFIGURED,
        )
    if tariff is None:
        if not entry.fees:
            return None
        return Tariff(tokens={}, fees=entry.fees, version=entry.version, source=CONFIGURED)
    if not tariff.tokens:
        entry = msgspec.structs.replace(entry, tokens={})  # parts of a whole that has no price
    return overlaid(
        tariff,
        entry.tokens,
        entry.fees,
        version=f"{tariff.version} + {entry.version}",
        source=f"{tariff.source} + {CONFIGURED}",
    )


def _entry(where: str, price: PriceSettings) -> Override:
    version = _version(where, price)
    return Override(
        tokens=_tokens(price),
        fees=_fees(price),
        tiers=tuple((tier.above_tokens, _tokens(tier)) for tier in price.tiers),
        served={
            name: Tariff(
                tokens=_tokens(its),
                tiers=tuple((tier.above_tokens, _tokens(tier)) for tier in its.tiers),
                fees=_fees(price),
                version=f"{version} {name}",
                source=CONFIGURED,
            )
            for name, its in price.service_tiers.items()
        },
        version=version,
        from_us=-FOREVER_US if price.from_ is None else _us(price.from_),
        until_us=FOREVER_US if price.until is None else _us(price.until),
    )


def _version(where: str, content: object) -> str:
    digest = blake2b(msgspec.json.encode(content, order="sorted", enc_hook=str), digest_size=4).hexdigest()
    return f"{CONFIGURED} {where} {digest}"


def _tokens(settings: RateSettings) -> dict[str, Decimal]:
    return _amounts(settings, {kind: f"{kind}_usd" for kind in TOKEN_KINDS})


def _fees(settings: AmountSettings) -> dict[str, Decimal]:
    return _amounts(settings, {kind: f"per_{kind}_usd" for kind in FEE_KINDS})


def _amounts(settings: RateSettings, fields: Mapping[str, str]) -> dict[str, Decimal]:
    return {kind: Decimal(usd) for kind, field in fields.items() if (usd := getattr(settings, field)) is not None}


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
