"""Response headers that tell clients of limits, waits and money, spelled as their SDKs read them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from tollkeeper.domain.admission import LimitKind, LimitState, Refusal
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.policy import MINUTE_US
from tollkeeper.gateway.dialects.base import Dialect
from tollkeeper.gateway.dialects.fault import duration

Headers = list[tuple[bytes, bytes]]

BUDGET_WAIT_MAX_US: Final = 60 * US_PER_S
"""SDKs retry within a minute at most: a budget that starts anew later is not worth a retry."""

_EPOCH: Final = datetime(1970, 1, 1)
"""In UTC; without a zone because the format writes its own."""
_NAMES: Final = {
    ("openai", kind): tuple(f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset"))
    for kind in (LimitKind.REQUESTS, LimitKind.TOKENS)
} | {
    ("anthropic", kind): tuple(
        f"anthropic-ratelimit-{kind}-{what}".encode() for what in ("limit", "remaining", "reset")
    )
    for kind in (LimitKind.REQUESTS, LimitKind.TOKENS)
}


def limit_headers(dialect: Dialect, states: Sequence[LimitState], now_us: int) -> Headers:
    """The tightest limit of requests and of tokens: of one minute if there are such, else of any window."""
    requests: LimitState | None = None
    tokens: LimitState | None = None
    for state in states:
        if state.kind is LimitKind.REQUESTS:
            requests = _tighter(requests, state)
        elif state.kind is LimitKind.TOKENS:
            tokens = _tighter(tokens, state)
    headers: Headers = []
    for tightest in (requests, tokens):
        if tightest is not None:
            limit, remaining, reset = _NAMES[dialect, tightest.kind]
            headers.append((limit, b"%d" % tightest.limit))
            headers.append((remaining, b"%d" % tightest.remaining))
            if tightest.reset_us is not None:
                headers.append((reset, _reset(dialect, tightest.reset_us, now_us)))
    return headers


def _tighter(one: LimitState | None, other: LimitState) -> LimitState:
    if one is None:
        return other
    if (one.window_us == MINUTE_US) != (other.window_us == MINUTE_US):
        return one if one.window_us == MINUTE_US else other
    left, right = one.limit - one.used, other.limit - other.used
    return one if left < right or (left == right and one.limit <= other.limit) else other


def _reset(dialect: Dialect, reset_us: int, now_us: int) -> bytes:
    if dialect == "openai":
        return duration(reset_us).encode()
    seconds = -(-(now_us + reset_us) // US_PER_S)
    return (_EPOCH + timedelta(seconds=seconds)).isoformat().encode() + b"Z"


def refusal_headers(refusal: Refusal) -> Headers:
    """When to try again, and whether to try at all. A free slot may come at any time: no wait is given for it."""
    headers: Headers = []
    wait_us = refusal.wait_us
    if wait_us is not None and not refusal.never:
        headers.append((b"retry-after", b"%d" % -(-wait_us // US_PER_S)))
        headers.append((b"retry-after-ms", b"%d" % -(-wait_us // 1000)))
    hopeless = refusal.kind is LimitKind.BUDGET and (wait_us is None or wait_us > BUDGET_WAIT_MAX_US)
    if refusal.never or hopeless:
        headers.append((b"x-should-retry", b"false"))
    return headers


def money_headers(cost_nano: int | None, states: Sequence[LimitState]) -> Headers:
    """The cost in USD if it is known, and the least that is left of any budget (holds count as spent)."""
    headers: Headers = []
    if cost_nano is not None:
        headers.append((b"x-tollkeeper-cost-usd", usd(cost_nano).encode()))
    left = [state.remaining for state in states if state.kind is LimitKind.BUDGET]
    if left:
        headers.append((b"x-tollkeeper-budget-remaining-usd", usd(min(left)).encode()))
    return headers
