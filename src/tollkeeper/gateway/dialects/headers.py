"""Response headers that tell clients of limits, waits and money, spelled as their SDKs read them."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from tollkeeper.domain.admission import Checks, LimitKind, LimitState, Refusal, Reply, limit_states
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
_REQUESTS, _TOKENS = (
    {dialect: tuple([f"{n.decode()}: " for n in _NAMES[dialect, kind]]) for dialect in ("openai", "anthropic")}
    for kind in (LimitKind.REQUESTS, LimitKind.TOKENS)
)
"""The same as they begin a line."""


def limit_lines(dialect: Dialect, checks: Checks, reply: Reply, tokens: int = 0) -> str:
    """What `limit_headers` says of an admitted request, as lines of the response's head.

    `tokens`: what its settlement added since. Every answer carries it, so the logs, which most keys have, are looked
    at without making a state of each.
    """
    if checks.buckets:
        return _limit_lines_in_general(dialect, checks, reply, tokens)
    logs, shown, lines = reply.logs, checks.shown, ""
    told_us, told = -1, ""
    if shown.requests:
        limit, left, reset_us = -1, 0, 0
        for index, its_limit in shown.requests:
            state = logs[index]
            its_left = its_limit - state.requests
            if limit < 0 or its_left < left or (its_left == left and its_limit < limit):
                limit, left, reset_us = its_limit, its_left, state.empty_in_us
        told_us, told = reset_us, _reset_text(dialect, reset_us, reply.now_us)
        of_limit, of_left, of_reset = _REQUESTS[dialect]
        lines = f"{of_limit}{limit}\r\n{of_left}{left if left > 0 else 0}\r\n{of_reset}{told}\r\n"
    if shown.tokens:
        limit, left, reset_us = -1, 0, 0
        for index, its_limit in shown.tokens:
            state = logs[index]
            its_left = its_limit - state.tokens
            if limit < 0 or its_left < left or (its_left == left and its_limit < limit):
                limit, left, reset_us = its_limit, its_left, state.empty_in_us
        if reset_us != told_us:
            told = _reset_text(dialect, reset_us, reply.now_us)
        left -= tokens
        of_limit, of_left, of_reset = _TOKENS[dialect]
        lines += f"{of_limit}{limit}\r\n{of_left}{left if left > 0 else 0}\r\n{of_reset}{told}\r\n"
    return lines


def _limit_lines_in_general(dialect: Dialect, checks: Checks, reply: Reply, tokens: int) -> str:
    states = [
        msgspec.structs.replace(state, used=state.used + tokens) if state.kind is LimitKind.TOKENS else state
        for state in limit_states(checks, reply)
    ]
    return lines_of(limit_headers(dialect, states, reply.now_us))


def lines_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Header fields as lines of a response's head. Raises ValueError for what would not stay in its line."""
    lines = [f"{name.decode('ascii')}: {value.decode('ascii')}\r\n" for name, value in headers]
    text = "".join(lines)
    if not text.count("\n") == text.count("\r") == len(lines) or "\0" in text:
        raise ValueError("a line break or NUL in a response's header")
    return text


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
                headers.append((reset, _reset_text(dialect, tightest.reset_us, now_us).encode()))
    return headers


def _tighter(one: LimitState | None, other: LimitState) -> LimitState:
    if one is None:
        return other
    if (one.window_us == MINUTE_US) != (other.window_us == MINUTE_US):
        return one if one.window_us == MINUTE_US else other
    left, right = one.limit - one.used, other.limit - other.used
    return one if left < right or (left == right and one.limit <= other.limit) else other


def _reset_text(dialect: Dialect, reset_us: int, now_us: int) -> str:
    if dialect == "openai":
        return duration(reset_us)
    seconds = -(-(now_us + reset_us) // US_PER_S)
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()}Z"


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


def money_lines(cost_nano: int | None, checks: Checks, reply: Reply, charged_nano: int = 0) -> str:
    """The cost in USD if it is known, and the least that is left of any budget (holds count as spent).

    `charged_nano`: what settlement made of the hold, less the hold.
    """
    lines = "" if cost_nano is None else f"x-tollkeeper-cost-usd: {usd(cost_nano)}\r\n"
    least: int | None = None
    for index, budget_nano in checks.shown.budgets:
        money = reply.counters[index]
        left = budget_nano - money.spent - money.held
        if least is None or left < least:
            least = left
    if least is not None:
        lines += f"x-tollkeeper-budget-remaining-usd: {usd(max(0, least - charged_nano))}\r\n"
    return lines
