"""Promise 7: money is integers; what would lose a digit is refused with words that say what to write."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.money import (
    NANO_MAX,
    MoneyError,
    nano_from_json,
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


@given(st.integers(-NANO_MAX, NANO_MAX) | st.integers(-(10**6), 10**6).map(lambda cents: cents * 10**7))
def test_an_amount_is_written_exactly_and_no_longer_than_it_must_be(nano: int) -> None:
    text = usd(nano)
    assert Fraction(text) * 10**9 == nano
    assert len(text.partition(".")[2]) == 2 or not text.endswith("0")


@given(st.decimals(0, 1000, places=15), st.sampled_from(("{:f}", "{:e}", '"{:f}"')))
def test_a_json_number_is_read_exactly_and_rounded_up(amount: Decimal, form: str) -> None:
    """However a provider writes it; a float would lose digits."""
    exact = Fraction(amount) * 10**9
    assert nano_from_json(form.format(amount).encode(), NANO_MAX) == -((-exact) // 1)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"-0.1",
        b"NaN",
        b"1e999",
        b"1e99",
        b"0x1",
        b"1_0",
        b'"',
        b"[1]",
        b"true",
        b"1" * 40,
        b"101",
        b".5",
    ],
)
def test_what_is_no_credible_amount_is_none(text: bytes) -> None:
    """Never an exception, never a huge number, never a negative one."""
    assert nano_from_json(text, 100 * 10**9) is None
    assert nano_from_json(b"100", 100 * 10**9) == 100 * 10**9
    assert nano_from_json(b"1e-99", 1) == 1
