"""Money as integers: nano-dollars (1e-9 USD) for amounts, pico-dollars (1e-12 USD) per token for prices.

`Decimal` appears only at the edges, here and in `tariff.py`; `float` is refused everywhere. A counter stays below
2^53 because Redis scripts calculate in doubles, which are exact up to there: 9.007 million USD.
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import ceil
from typing import Final

from tollkeeper.domain.errors import InvalidInput

NANO_PER_USD: Final = 10**9
PICO_PER_NANO: Final = 1000
_NANO_PER_CENT: Final = 10**7
NANO_MAX: Final = 2**53 - 1

_JSON_NUMBER: Final = re.compile(rb"(?:0|[1-9]\d{0,30})(?:\.\d{1,60})?(?:[eE][+-]?\d{1,2})?")
"""With as many digits as no provider writes: a longer one is garbage, and costs nothing to refuse."""


class MoneyError(InvalidInput):
    """An amount that cannot be taken; the message says why and what to write instead."""


def nano_from_usd(amount: Decimal | str | int, *, what: str = "amount") -> int:
    """Exact conversion to nano-dollars.

    Raises MoneyError for floats (they have already lost digits), for more than nine decimals, for negative,
    infinite or unreadable amounts, and above `NANO_MAX`.
    """
    if isinstance(amount, bool | float) or not isinstance(amount, Decimal | str | int):
        raise MoneyError(f'{what}: write a Decimal, a string like "12.50" or an int, not {type(amount).__name__}')
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise MoneyError(f'{what}: {amount!r} is not an amount in USD; write it like "12.50"') from None
    if not value.is_finite() or value < 0:
        raise MoneyError(f"{what}: {amount} must be zero or more, and finite")
    if value > Decimal(NANO_MAX) / NANO_PER_USD:
        raise MoneyError(f"{what}: {amount} USD is above the largest amount, {usd(NANO_MAX)} USD")
    nano = value * NANO_PER_USD
    if nano != nano.to_integral_value():
        raise MoneyError(f"{what}: {amount} has more than nine decimals; the smallest amount is 0.000000001 USD")
    return int(nano)


def nano_from_json(text: bytes, nano_max: int) -> int | None:
    """A JSON number in USD, or a string with one inside, → nano-dollars, rounded up; exact, never through a float.

    None if it is no such number, negative, or above `nano_max`.
    """
    number = text[1:-1] if text[:1] == text[-1:] == b'"' else text
    if not _JSON_NUMBER.fullmatch(number):
        return None
    nano = ceil(Fraction(number.decode()) * NANO_PER_USD)
    return nano if nano <= nano_max else None


def usd_from_nano(nano: int) -> Decimal:
    """The same amount in USD, exact."""
    return Decimal(nano).scaleb(-9)


def usd(nano: int) -> str:
    """`1234500000` → `"1.2345"`: plain digits, no exponent, at least two decimals."""
    if nano < 0:
        return f"-{usd(-nano)}"
    if nano % _NANO_PER_CENT:
        digits = str(nano).zfill(10)
        return f"{digits[:-9]}.{digits[-9:]}".rstrip("0")
    return f"{nano // NANO_PER_USD}.{nano % NANO_PER_USD // _NANO_PER_CENT:02d}"
