"""What clients are told: one status per fault, bodies and headers as their SDKs expect them."""

import json

import pytest

from tollkeeper.domain.admission import LimitKind, LimitState, Refusal
from tollkeeper.domain.errors import Fault
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import MINUTE_US, ScopeKind
from tollkeeper.gateway.dialects import (
    error_body,
    error_event,
    error_status,
    limit_headers,
    refusal_fault,
    refusal_headers,
    refusal_message,
)
from tollkeeper.gateway.dialects.fault import STATUS, duration

KEY, TEAM = ScopeKind.KEY, ScopeKind.TEAM
REQUESTS, TOKENS, SLOTS, BUDGET = LimitKind.REQUESTS, LimitKind.TOKENS, LimitKind.CONCURRENCY, LimitKind.BUDGET
NOW_US = 1_795_000_000_000_000


def test_every_fault_has_a_status() -> None:
    """A fault without one would be a crash where an error should be told."""
    assert set(STATUS) == set(Fault)
    expected = {
        Fault.BUDGET: 429, Fault.NEVER_FITS: 400, Fault.BAD_KEY: 401, Fault.MODEL_FORBIDDEN: 403,
        Fault.UNKNOWN_MODEL: 404, Fault.TOO_LARGE: 413, Fault.STORE_AWAY: 503, Fault.UPSTREAM_TIMEOUT: 504,
    }  # fmt: skip
    assert {fault: error_status(fault) for fault in expected} == expected


def test_openai_errors() -> None:
    """message, type, param and code, always all four."""
    body = json.loads(error_body("openai", Fault.INVALID, "no", "n"))
    assert body == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "invalid_request"}
    }
    quota = json.loads(error_body("openai", Fault.BUDGET, "out"))["error"]
    assert (quota["type"], quota["code"], quota["param"]) == ("insufficient_quota", "insufficient_quota", None)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.BAD_KEY, "authentication_error"),
        (Fault.MODEL_FORBIDDEN, "permission_error"),
        (Fault.UNKNOWN_MODEL, "not_found_error"),
        (Fault.RATE_LIMIT, "rate_limit_error"),
        (Fault.MALFORMED, "invalid_request_error"),
        (Fault.TOO_LARGE, "request_too_large"),
        (Fault.INTERNAL, "api_error"),
        (Fault.UPSTREAM_DOWN, "api_error"),
        (Fault.OVERLOADED, "overloaded_error"),
        (Fault.UPSTREAM_TIMEOUT, "timeout_error"),
    ],
)
def test_anthropic_errors(fault: Fault, kind: str) -> None:
    """Anthropic's own types, and the request's id."""
    body = json.loads(error_body("anthropic", fault, "no", request_id="req_1"))
    assert body == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req_1"}


def test_errors_inside_a_stream_are_events() -> None:
    """A line feed in a message stays inside its event."""
    assert error_event("anthropic", Fault.INTERNAL, "a\nb").startswith(b'event: error\ndata: {"type":"error"')
    event = error_event("openai", Fault.INTERNAL, "a\nb")
    assert event.startswith(b'data: {"error":')
    assert event.count(b"\n") == 2


def state(kind: LimitKind, limit: int, used: int, reset_us: int | None = 0, window_us: int = MINUTE_US) -> LimitState:
    return LimitState(kind, KEY, limit, used, reset_us, None if kind is BUDGET else window_us)


def test_limit_headers_show_the_tightest_minute() -> None:
    """Of several minutes the one with the least left; longer windows only where there is no minute."""
    states = [
        state(REQUESTS, 60, 10, 6_500_000),
        state(REQUESTS, 30, 10, 120_000),
        state(REQUESTS, 5, 5, 5, 86_400_000_000),
        state(TOKENS, 10**6, 10**6 + 5, 3_600_000_000, 86_400_000_000),
        state(BUDGET, 5, 5),
    ]
    assert dict(limit_headers("openai", states, NOW_US)) == {
        b"x-ratelimit-limit-requests": b"30",
        b"x-ratelimit-remaining-requests": b"20",
        b"x-ratelimit-reset-requests": b"120ms",
        b"x-ratelimit-limit-tokens": b"1000000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1h0m0s",
    }
    anthropic = dict(limit_headers("anthropic", states[:1], 1_700_000_000_000_001))
    assert anthropic == {
        b"anthropic-ratelimit-requests-limit": b"60",
        b"anthropic-ratelimit-requests-remaining": b"50",
        b"anthropic-ratelimit-requests-reset": b"2023-11-14T22:13:27Z",
    }
    assert limit_headers("openai", [], NOW_US) == []


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (-5, "0s"), (0, "0s"), (1, "1ms"), (120_000, "120ms"), (999_000, "999ms"), (999_001, "1s"), (1_000_000, "1s"),
        (1_000_001, "2s"), (59_000_001, "1m0s"), (119_000_001, "2m0s"), (120_500_000, "2m1s"),
        (360_000_000, "6m0s"), (3_600_000_000, "1h0m0s"),
    ],
)  # fmt: skip
def test_durations_are_rounded_up(us: int, text: str) -> None:
    """Waiting as long as told is always enough."""
    assert duration(us) == text


CASES = [
    (
        Refusal(REQUESTS, KEY, 60, 60, 1, 1_200_001),
        Fault.RATE_LIMIT,
        {b"retry-after": b"2", b"retry-after-ms": b"1201"},
        "Rate limit reached for this API key in requests: limit 60, used 60, requested 1. Please try again in 2s.",
    ),
    (
        Refusal(TOKENS, TEAM, 1000, 0, 5000, None, never=True),
        Fault.NEVER_FITS,
        {b"x-should-retry": b"false"},
        "This request needs 5000 tokens, more than the limit of 1000 tokens of this key's team ever allows. "
        "Make it smaller.",
    ),
    (
        Refusal(SLOTS, KEY, 2, 2, 1, None),
        Fault.CONCURRENCY,
        {},
        "Too many requests in flight for this API key: the limit is 2, 2 are in flight. "
        "Try again when one of them has ended.",
    ),
    (
        Refusal(BUDGET, TEAM, 10 * 10**9, 9_990_000_000, 20_000_000, 7_200_000_000, period=Period.MONTH),
        Fault.BUDGET,
        {b"retry-after": b"7200", b"retry-after-ms": b"7200000", b"x-should-retry": b"false"},
        "This request does not fit into this month's budget of 10.00 USD of this key's team: 9.99 USD are spent or "
        "held for requests in flight, and this request may cost up to 0.02 USD. The budget starts anew in 2h0m0s.",
    ),
    (
        Refusal(BUDGET, KEY, 10, 9, 5, 60_000_000, period=Period.DAY),
        Fault.BUDGET,
        {b"retry-after": b"60", b"retry-after-ms": b"60000"},
        "in 1m0s.",
    ),
    (Refusal(BUDGET, KEY, 10, 9, 5, None, period=Period.TOTAL), Fault.BUDGET, {b"x-should-retry": b"false"}, "USD."),
    (
        Refusal(BUDGET, KEY, 10**9, 0, 2 * 10**9, None, never=True, period=Period.DAY),
        Fault.NEVER_FITS,
        {b"x-should-retry": b"false"},
        "This request may cost 2.00 USD, more than today's budget of 1.00 USD of this API key ever allows. "
        "State a smaller limit of output tokens.",
    ),
]


@pytest.mark.parametrize(("refusal", "fault", "headers", "words"), CASES)
def test_refusals(refusal: Refusal, fault: Fault, headers: dict[bytes, bytes], words: str) -> None:
    """Which limit, its size, what was used and asked, when to try again, and whether to try at all."""
    assert refusal_fault(refusal) is fault
    assert dict(refusal_headers(refusal)) == headers
    assert refusal_message(refusal).endswith(words)
