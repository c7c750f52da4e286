"""What may be tried again, and how the budget bounds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.errors import Fault, UpstreamError
from tollkeeper.gateway.retry import (
    RetryBudget,
    Verdict,
    backoff_us,
    is_failure,
    retry_after_us,
    verdict_of_error,
    verdict_of_status,
)


@pytest.mark.parametrize(
    ("status", "should_retry", "verdict", "failure"),
    [
        (400, None, Verdict.FINAL, False),
        (404, "true", Verdict.FINAL, False),
        (408, None, Verdict.AGAIN, True),
        (429, None, Verdict.AGAIN, True),
        (429, "false", Verdict.ELSEWHERE, True),
        (401, None, Verdict.ELSEWHERE, True),
        (403, "true", Verdict.ELSEWHERE, True),
        (500, "true", Verdict.AGAIN, True),
        (529, None, Verdict.AGAIN, True),
        (302, None, Verdict.FINAL, False),
    ],
)
def test_verdicts_of_statuses(status: int, should_retry: str | None, verdict: Verdict, failure: bool) -> None:
    assert verdict_of_status(status, should_retry) is verdict
    assert is_failure(status) is failure


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
def test_what_was_sent_is_the_operators_choice(sent: bool, allowed: bool) -> None:
    error = UpstreamError(Fault.UPSTREAM_DOWN, "gone", sent=sent)
    wanted = Verdict.AGAIN if allowed or not sent else Verdict.FINAL
    assert verdict_of_error(error, retry_unanswered=allowed) is wanted


@pytest.mark.parametrize(
    ("header", "header_ms", "wait_us"),
    [
        ("2", None, 2_000_000),
        ("0.5", None, 500_000),
        ("7", "250", 250_000),
        ("7", "soon", 7_000_000),
        (None, None, 0),
        ("-1", None, 0),
        ("nan", None, 0),
        ("inf", None, 0),
        ("1e300", None, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None, 0),
    ],
)
def test_retry_after(header: str | None, header_ms: str | None, wait_us: int) -> None:
    assert retry_after_us(header, header_ms) == wait_us


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_backoff_is_full_jitter_below_a_doubling_bound(tries: int, random: float) -> None:
    pause_us = backoff_us(tries, random, min_us=250_000, max_us=4_000_000)
    assert 0 <= pause_us <= min(4_000_000, 250_000 * 2 ** min(tries - 1, 20))
    assert backoff_us(1, 0.5, min_us=250_000, max_us=4_000_000) == 125_000
    assert backoff_us(3, 0.5, min_us=250_000, max_us=4_000_000) == 500_000


@given(st.lists(st.booleans(), max_size=300), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 10))
def test_retries_stay_below_their_share(steps: list[bool], ratio: float, burst: int) -> None:
    """In any order of first attempts (True) and asked retries: spent ≤ burst + ratio × first attempts."""
    budget = RetryBudget(ratio, burst)
    spent = first = 0
    for is_first in steps:
        if is_first:
            first += 1
            budget.earn()
        else:
            spent += budget.spend()
        assert spent <= burst + ratio * first + 1e-9
        assert 0 <= budget.balance <= burst
