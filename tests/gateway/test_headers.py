"""The lines in an answer's head that tell limits and money: written in one go, equal to what the states say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tollkeeper.domain.admission import (
    BucketCheck,
    BucketState,
    Checks,
    CounterCheck,
    CounterState,
    LimitKind,
    LogCheck,
    LogState,
    Reply,
    Status,
    limit_states,
)
from tollkeeper.domain.money import usd
from tollkeeper.domain.periods import Period, span_at
from tollkeeper.domain.policy import MINUTE_US, ScopeKind, Unit
from tollkeeper.gateway.dialects import Dialect, limit_headers, limit_lines, lines_of, money_lines

KEY, TOKENS, BUDGET = ScopeKind.KEY, LimitKind.TOKENS, LimitKind.BUDGET
DIALECTS: tuple[Dialect, ...] = ("openai", "anthropic")
NOW_US = 1_795_000_000_000_000
WINDOWS_US = (1_000_000, MINUTE_US, 3_600_000_000)
amounts = st.integers(0, 10**13)
limits = st.none() | st.integers(1, 1000)
_logs = st.builds(LogCheck, st.just("w"), st.just(KEY), st.sampled_from(WINDOWS_US), limits, limits, limits, limits)
_buckets = st.builds(
    BucketCheck,
    st.just("b"),
    st.just(KEY),
    st.sampled_from(Unit),
    st.just(60),
    st.integers(1, 1000),
    shadow=st.booleans(),
)
_counters = st.builds(
    CounterCheck,
    st.just("c"),
    st.just(KEY),
    st.just(span_at(Period.MONTH, NOW_US)),
    st.none() | amounts,
    st.none() | amounts,
)
_log_states = st.builds(
    LogState, st.just(1), st.just(1), st.integers(0, 1200), st.integers(0, 1200), st.integers(0, 10**10)
)
_bucket_states = st.builds(
    BucketState, st.just(1), st.just(0), st.integers(0, 10**11), st.just(0), st.integers(0, 10**10)
)
_counter_states = st.builds(CounterState, amounts, amounts)


@st.composite
def _told(draw: st.DrawFn) -> tuple[Checks, Reply]:
    """Checks of a request, and what the store said to each."""
    logs, counters = draw(st.lists(_logs, max_size=4)), draw(st.lists(_counters, max_size=4))
    buckets = draw(st.just([]) | st.lists(_buckets, max_size=4))
    checks = Checks("org", tuple(logs), (), tuple(counters), 0, 1, buckets=tuple(buckets))
    reply = Reply(
        Status.ADMITTED,
        NOW_US,
        tuple([draw(_log_states) for _ in logs]),
        counters=tuple([draw(_counter_states) for _ in counters]),
        buckets=tuple([draw(_bucket_states) for _ in buckets]),
    )
    return checks, reply


@given(_told(), st.sampled_from(DIALECTS), st.integers(-100, 100), st.none() | amounts, st.integers(-1000, 1000))
def test_an_answers_lines_tell_the_tightest_of_all_states(
    told: tuple[Checks, Reply], dialect: Dialect, tokens: int, cost_nano: int | None, charged_nano: int
) -> None:
    """They are written without a state of each limit, and equal those that are."""
    checks, reply = told
    states = [
        replace(s, used=s.used + {TOKENS: tokens, BUDGET: charged_nano}.get(s.kind, 0))
        for s in limit_states(checks, reply)
    ]
    assert limit_lines(dialect, checks, reply, tokens) == lines_of(limit_headers(dialect, states, NOW_US))
    budgets = [s.remaining for s in states if s.kind is BUDGET]
    expected = [] if cost_nano is None else [(b"x-tollkeeper-cost-usd", usd(cost_nano).encode())]
    expected += [(b"x-tollkeeper-budget-remaining-usd", usd(min(budgets)).encode())] if budgets else []
    assert money_lines(cost_nano, checks, reply, charged_nano) == lines_of(expected)


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
def test_a_header_stays_in_its_line(value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        lines_of([(b"x-request-id", value)])


def test_money_lines() -> None:
    """The cost if known, and the least left of any budget."""
    span = span_at(Period.MONTH, NOW_US)
    counters = (
        CounterCheck("a", KEY, span, 10**9),
        CounterCheck("b", KEY, span, 5 * 10**8),
        CounterCheck("c", KEY, span, None),
    )
    checks = Checks("org", (), (), counters, 0, 1)
    reply = Reply(
        Status.ADMITTED, NOW_US, counters=(CounterState(1, 0), CounterState(4 * 10**7, 6 * 10**7), CounterState(9, 9))
    )
    assert money_lines(1_500, checks, reply) == (
        "x-tollkeeper-cost-usd: 0.0000015\r\nx-tollkeeper-budget-remaining-usd: 0.40\r\n"
    )
    assert money_lines(None, checks, reply, 5 * 10**8) == "x-tollkeeper-budget-remaining-usd: 0.00\r\n"
    assert money_lines(None, Checks("org", (), (), (), 0, 1), Reply(Status.ADMITTED, NOW_US)) == ""
