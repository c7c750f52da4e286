"""Promise 7: money is integers; what would lose a digit is refused with words that say what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.money import (
    NANO_MAX,
    MoneyError,
    nano_from_usd,
    usd,
    usd_from_nano,
)


@given(st.integers(0, NANO_MAX))
def test_shown_amounts_read_back_exactly(nano: int) -> None:
    assert nano_from_usd(usd(nano)) == nano_from_usd(usd_from_nano(nano)) == nano


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0.1, "not float"),
        (True, "not bool"),
        (None, "not NoneType"),
        ("ten", "is not an amount"),
        ("-1", "zero or more"),
        ("NaN", "finite"),
        ("Infinity", "finite"),
        ("0.0000000001", "more than nine decimals"),
        ("9007199.254740992", "above the largest amount"),
    ],
)
def test_what_loses_digits_is_refused(amount: object, words: str) -> None:
    with pytest.raises(MoneyError, match=words):
        nano_from_usd(amount)  # type: ignore[arg-type]


def test_amounts_are_plain_digits() -> None:
    assert [usd(n) for n in (0, 1, 10**9, 1_234_500_000, -5_000_000)] == [
        "0.00",
        "0.000000001",
        "1.00",
        "1.2345",
        "-0.005",
    ]
