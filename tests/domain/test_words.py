"""Accounts as plain values: money exact, times in UTC, what is read back is what was written."""

import pytest

from tollkeeper.domain.admission import LimitKind, LimitState
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, ScopeKind, Unit, Window
from tollkeeper.domain.words import instant, limit_words, month_from, policy_words, time_us_from


def test_times_are_read_and_written() -> None:
    """A date is 00:00 UTC; another zone is converted; a time without a zone is ambiguous and refused."""
    assert instant(None) is None
    assert instant(1_795_462_481_999_999) == "2026-11-23T19:34:41Z"
    for text in ("2026-12-31", "2026-12-31T00:00:00Z", "2026-12-31T01:00:00+01:00"):
        assert instant(time_us_from(text, what="t")) == "2026-12-31T00:00:00Z"
    for text in ("soon", "2026-12-31T00:00:00", "2026-13-01", ""):
        with pytest.raises(InvalidInput, match="t: "):
            time_us_from(text, what="t")


def test_months() -> None:
    """As people write them."""
    assert month_from("2026-11") == (2026, 11)
    for text in ("2026", "2026-13", "2026-0", "26-11", "11-2026", "2026-11-01", ""):
        with pytest.raises(InvalidInput, match="write it like"):
            month_from(text)


def test_a_policy_in_words() -> None:
    """Money keeps every digit; windows of other lengths are told apart."""
    policy = Policy((Window(Unit.TOKENS, 5), Window(Unit.REQUESTS, 9, 500_000)), 3, (Budget(1), Budget(10**10)), 7)
    words = policy_words(policy)
    assert (words["rpm"], words["tpm"], words["max_parallel"]) == (None, 5, 3)
    assert words["cost_cap_usd"] == "0.000000007"
    assert words["windows"] == ["requests=9/500ms"]


def test_limits_in_words() -> None:
    """Budgets in USD with what is held, the others as whole numbers; never less than nothing is left."""
    budget = LimitState(LimitKind.BUDGET, ScopeKind.KEY, 5 * 10**9, 6 * 10**9, None, period=Period.TOTAL, held=10**9)
    words = limit_words(budget)
    assert (words["unit"], words["limit"], words["used"], words["remaining"]) == ("usd", "5.00", "6.00", "0.00")
    assert (words["held"], words["period"], words["reset_s"]) == ("1.00", "total", None)
    window = LimitState(LimitKind.TOKENS, ScopeKind.TEAM, 100, 40, 1_500_000, 60_000_000)
    assert limit_words(window) | {"reset_s": 1.5, "window_s": 60, "remaining": "60"} == limit_words(window)
