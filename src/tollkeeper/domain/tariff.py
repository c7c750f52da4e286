"""Price lists as people write them, in USD and exact, and their one conversion into the integers of `pricing.py`.

A tariff has the same kinds whether it comes from price data or from the configuration. A provider's discount or
surcharge is applied here, before anything is an integer, and so costs no exactness.
"""

from collections.abc import Mapping
from decimal import Decimal, localcontext
from fractions import Fraction
from math import lcm
from typing import Final

import msgspec

from tollkeeper.domain.money import PICO_PER_NANO
from tollkeeper.domain.pricing import FEES, Price, Rates, Tier, rates

PICO_PER_USD: Final = 10**12
TOKENS: Final = 10**6
"""Token prices are written per million."""
DIGITS: Final = 100
"""Of an amount with its multiplier: more than any has."""

Amounts = Mapping[str, Decimal]


class Tariff(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of one model at one time. Kinds are named as in `Rates`; those left out fall back as written there.

    `tokens`: USD per million tokens; empty if it sells none. `tiers`: (start, the whole table above it), ascending.
    `fees`: USD for each of the kinds of `FEES`. `served`: the tariff of each service tier that has prices of its own.
    """

    tokens: Amounts
    tiers: tuple[tuple[int, Amounts], ...] = ()
    fees: Amounts = {}
    served: Mapping[str, "Tariff"] = {}
    version: str
    source: str


def price_of(tariff: Tariff) -> Price:
    """The tariff as integers, in the coarsest unit that holds all its amounts: pico-dollars, if it can be."""
    tables = [_pico(tariff.tokens, TOKENS), *(_pico(table, TOKENS) for _, table in tariff.tiers)]
    fees = {FEES[kind][0]: Fraction(usd) * PICO_PER_USD / FEES[kind][1] for kind, usd in tariff.fees.items()}
    finer = lcm(*(amount.denominator for table in (*tables, fees) for amount in table.values()))
    base, *above = (_rates(table, finer) for table in tables)
    return Price(
        base,
        tuple(Tier(start, at) for (start, _), at in zip(tariff.tiers, above, strict=True)),
        **{field: int(amount * finer) for field, amount in fees.items()},
        kinds=frozenset((*tariff.fees, *(("tokens",) if tariff.tokens else ()))),
        per_nano=PICO_PER_NANO * finer,
        served={name: price_of(its) for name, its in tariff.served.items()},
        version=tariff.version,
        source=tariff.source,
    )


def overlaid(tariff: Tariff, tokens: Amounts, fees: Amounts, *, version: str, source: str) -> Tariff:
    """The tariff with some kinds replaced, in every tier and service tier."""
    return Tariff(
        tokens={**tariff.tokens, **tokens},
        tiers=tuple((start, {**table, **tokens}) for start, table in tariff.tiers),
        fees={**tariff.fees, **fees},
        served={
            name: overlaid(its, tokens, fees, version=f"{version} {name}", source=source)
            for name, its in tariff.served.items()
        },
        version=version,
        source=source,
    )


def scaled(tariff: Tariff, multiplier: Decimal) -> Tariff:
    """The tariff with every amount multiplied, exactly; its version says so."""

    def times(amounts: Amounts) -> dict[str, Decimal]:
        return {kind: usd * multiplier for kind, usd in amounts.items()}

    with localcontext(prec=DIGITS):
        return Tariff(
            tokens=times(tariff.tokens),
            tiers=tuple((start, times(table)) for start, table in tariff.tiers),
            fees=times(tariff.fees),
            served={name: scaled(its, multiplier) for name, its in tariff.served.items()},
            version=f"{tariff.version} × {multiplier}",
            source=f"{tariff.source} × {multiplier}",
        )


def usd_per_million(price: Price, rate: int) -> Decimal:
    """A rate as people read it, exact."""
    return _decimal(Fraction(rate * TOKENS, price.per_nano * 10**9))


def usd_per_use(price: Price, kind: str) -> Decimal:
    """A fee in USD as people write it, exact."""
    field, units = FEES[kind]
    return _decimal(Fraction(getattr(price, field) * units, price.per_nano * 10**9))


def _decimal(value: Fraction) -> Decimal:
    # The denominators are products of 2 and 5, since every amount came from a decimal.
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    return Decimal(int(value * 10**digits)).scaleb(-digits)


def _pico(amounts: Amounts, per: int) -> dict[str, Fraction]:
    return {kind: Fraction(usd) * PICO_PER_USD / per for kind, usd in amounts.items()}


def _rates(table: Mapping[str, Fraction], finer: int) -> Rates:
    return rates(**{"input": 0, "output": 0, **{kind: int(amount * finer) for kind, amount in table.items()}})
