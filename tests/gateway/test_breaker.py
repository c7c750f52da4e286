"""The circuit breaker, on a clock that is passed in."""

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.gateway.breaker import Breaker, BreakerRules, BreakerState

S = 1_000_000
RULES = BreakerRules(failures=3, failure_ratio=0.5, requests_min=10, window_us=60 * S, cooldown_us=30 * S)


def opened(now_us: int = 0) -> Breaker:
    breaker = Breaker(RULES)
    for _ in range(3):
        breaker.failed(now_us, probe=breaker.begin(now_us))
    assert breaker.state(now_us) is BreakerState.OPEN
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(RULES)
    for ok in (False, False, True, False, False):
        probe = breaker.begin(0)
        if ok:
            breaker.succeeded(0, probe=probe)
        else:
            breaker.failed(0, probe=probe)
        assert breaker.lets(0)
    breaker.failed(0, probe=breaker.begin(0))
    assert not breaker.lets(0)


def test_a_share_of_failures_opens_it_only_among_enough_requests_of_one_window() -> None:
    for gap_us, opens in ((S, True), (20 * S, False)):
        breaker = Breaker(RULES)
        for number in range(10):
            now_us = number * gap_us
            breaker.begin(now_us)
            if number % 2:
                breaker.failed(now_us)
            else:
                breaker.succeeded(now_us)
        assert breaker.lets(9 * gap_us) is not opens


def test_after_the_cooldown_one_request_tries_it() -> None:
    breaker = opened()
    assert not breaker.lets(30 * S - 1)
    assert breaker.state(30 * S) is BreakerState.HALF_OPEN and breaker.lets(30 * S)
    assert breaker.begin(30 * S), "the probe"
    assert not breaker.lets(30 * S) and not breaker.begin(30 * S), "and nobody else"
    breaker.succeeded(31 * S)
    assert not breaker.lets(31 * S), "the word of a request that is no probe"
    breaker.succeeded(31 * S, probe=True)
    assert breaker.state(31 * S) is BreakerState.CLOSED


def test_a_failed_probe_opens_it_again_and_a_lost_one_lets_the_next() -> None:
    breaker = opened()
    assert breaker.begin(30 * S)
    breaker.abandoned(probe=True)
    assert breaker.begin(31 * S)
    breaker.failed(32 * S, probe=True)
    assert not breaker.lets(62 * S - 1) and breaker.lets(62 * S)


def test_a_provider_may_ask_for_its_own_pause() -> None:
    breaker = Breaker(RULES)
    breaker.failed(0, probe=breaker.begin(0), cool_us=5 * S)
    assert not breaker.lets(5 * S - 1) and breaker.lets(5 * S)
    breaker.failed(S, cool_us=10 * S)
    assert not breaker.lets(11 * S - 1), "the longer one counts"
    breaker.failed(2 * S, cool_us=S)
    assert not breaker.lets(11 * S - 1)


@given(st.lists(st.tuples(st.integers(0, 40 * S), st.sampled_from("sfac")), max_size=60))
def test_at_most_one_probe_at_a_time_and_never_shut_for_ever(steps: list[tuple[int, str]]) -> None:
    """Whatever happens: while it is not closed at most one request is a probe, and with none out it lets one in
    after the cooldown."""
    breaker, now_us, probe_out = Breaker(RULES), 0, False
    for gap_us, step in steps:
        now_us += gap_us
        if step == "c":
            if breaker.begin(now_us):
                assert not probe_out
                probe_out = True
            continue
        if step == "s":
            breaker.succeeded(now_us, probe=probe_out)
        elif step == "f":
            breaker.failed(now_us, probe=probe_out)
        else:
            breaker.abandoned(probe=probe_out)
        probe_out = False
        assert breaker.lets(now_us + RULES.cooldown_us)
