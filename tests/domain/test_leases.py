"""Leases of concurrency slots, counted without going through them."""

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.tree import Leases

moves = st.one_of(
    st.tuples(st.just("lease"), st.integers(0, 4), st.integers(0, 9)),
    st.tuples(st.just("free"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("drop"), st.just(0), st.just(0)),
    st.tuples(st.just("wait"), st.integers(-12, 12), st.just(0)),
)


@given(st.lists(moves, max_size=40))
def test_they_are_counted_as_if_one_went_through_them(schedule: list[tuple[str, int, int]]) -> None:
    """Whatever begins, ends early, is prolonged or shortened, and wherever the clock is set."""
    now_us, leases, plain = 100, Leases(), dict[str, int]()
    for move, n, more in schedule:
        if move == "lease":
            leases.lease(str(n), now_us + more)
            plain[str(n)] = now_us + more
        elif move == "free":
            leases.pop(str(n), None)
            plain.pop(str(n), None)
        elif move == "drop":
            leases.drop_ended(now_us)
            plain = {attempt: until_us for attempt, until_us in plain.items() if until_us > now_us}
        else:
            now_us += n
        assert leases.count(now_us) == sum(until_us > now_us for until_us in plain.values())
        assert leases == plain
