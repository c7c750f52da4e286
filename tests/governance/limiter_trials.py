"""Random schedules for the limiters, and oracles that remember everything and do nothing clever."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from tollkeeper.domain.limits import LimitResult
from tollkeeper.governance.limit_stores import LimitStore
from tollkeeper.governance.limiters import SlidingWindowLimiter, TokenBucketLimiter

START_US = 4_101_900_000_123_456
"""Far in the future, so that expiry by Redis' own clock takes nothing away."""
Move = tuple[Any, ...]

waits = st.one_of(
    st.sampled_from([0, 1, 37, 9_999, 10_000, 400_000, 999_999, 6_000_000, 59_990_000, 60_000_000, 120_000_000]),
    st.integers(0, 70_000_000),
)
backs = st.sampled_from([1, 500_000, 1_000_000, 1_000_001, 1_020_000, 90_000_000])
window_moves = st.one_of(
    st.tuples(st.just("wait"), waits),
    st.tuples(st.just("back"), backs),
    st.tuples(st.just("ask"), st.integers(1, 12), st.integers(1, 10)),
    st.tuples(st.just("ask"), st.integers(1, 12), st.integers(1, 10)),
    st.tuples(st.just("ask"), st.sampled_from([1000, 2**40 - 1]), st.sampled_from([1, 900, 2**39])),
    st.tuples(st.just("again"), st.integers(1, 12), st.integers(1, 4), st.sampled_from("ab")),
    st.tuples(st.just("usage")),
    st.tuples(st.just("reset")),
)


def bucket_moves(fastest: int) -> st.SearchStrategy[Move]:
    """`fastest`: up to which of RATES. Redis forgets a bucket by its own clock, which tests cannot set: there, only
    buckets that need more than a second to fill."""
    which = st.integers(0, fastest)
    return st.one_of(
        st.tuples(st.just("wait"), waits),
        st.tuples(st.just("back"), backs),
        st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 10)),
        st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 10)),
        st.tuples(st.just("ask"), which, st.sampled_from([1, 7, 1000, 10**8])),
        st.tuples(st.just("again"), which, st.integers(1, 4), st.sampled_from("ab")),
        st.tuples(st.just("usage"), which),
        st.tuples(st.just("reset")),
    )


RATES = [(1, 1), (7, 3), (60, 20), (61, 1000), (10**9, 150_000_000)]
"""(rate, burst): burst below and above the rate, and the largest."""


class WindowOracle:
    """Remembers every admission by itself. After a jump of the clock back by more than a second all admissions move
    back by the same distance, so that the newest is now."""

    def __init__(self, window_us: int) -> None:
        self.window_us, self.tick_us = window_us, max(1, window_us // 6000)
        self.admitted: list[tuple[int, int]] = []  # (stamp, weight)

    def stamp(self, now_us: int) -> int:
        return -(-now_us // self.tick_us) * self.tick_us

    def used(self, now_us: int) -> int:
        newest = max((stamp for stamp, _ in self.admitted), default=0)
        if newest > self.stamp(now_us) + 1_000_000:
            back = newest - self.stamp(now_us)
            self.admitted = [(stamp - back, weight) for stamp, weight in self.admitted]
        self.admitted = [(stamp, weight) for stamp, weight in self.admitted if stamp + self.window_us > now_us]
        return sum(weight for _, weight in self.admitted)

    def state(self, now_us: int, limit: int) -> LimitResult:
        used = self.used(now_us)
        reset = max((stamp + self.window_us for stamp, _ in self.admitted), default=now_us) - now_us
        return LimitResult(True, limit, max(0, limit - used), 0, reset)

    def ask(self, now_us: int, limit: int, n: int) -> LimitResult:
        used = self.used(now_us)
        wait: int | None = 0
        allowed = used + n <= limit
        if allowed:
            newest = max((stamp for stamp, _ in self.admitted), default=0)
            self.admitted.append((max(newest, self.stamp(now_us)), n))
        elif n > limit:
            wait = None
        else:
            ends = sorted({stamp + self.window_us for stamp, _ in self.admitted})
            left = [sum(w for s, w in self.admitted if s + self.window_us > end) for end in ends]
            wait = next(end for end, rest in zip(ends, left, strict=True) if rest + n <= limit) - now_us
        state = self.state(now_us, limit)
        return LimitResult(allowed, limit, state.remaining, wait, state.reset_after_us, wait is None)


class BucketOracle:
    """A level that is a fraction, moved along for each µs that has passed."""

    def __init__(self) -> None:
        self.level: Fraction | None = None  # None: full
        self.at_us = self.full_us = 0

    def look(self, now_us: int, rate: int, burst: int) -> tuple[Fraction, int]:
        """The level, and from when on it grows."""
        if self.level is None or now_us >= self.full_us:
            self.level = None
            return Fraction(burst), now_us
        if self.at_us > now_us + 1_000_000:
            self.at_us, self.full_us = now_us, self.full_us - (self.at_us - now_us)
        passed = max(0, now_us - self.at_us)
        return min(Fraction(burst), self.level + Fraction(passed * rate, 60_000_000)), max(now_us, self.at_us)

    def ask(self, now_us: int, rate: int, burst: int, cost: int) -> LimitResult:
        level, since_us = self.look(now_us, rate, burst)

        def until(goal: int) -> int:
            needed = (goal - level) * 60_000_000 / rate
            return 0 if level >= goal else since_us - now_us + -(-needed.numerator // needed.denominator)

        wait = None if cost > burst else until(cost)
        allowed = level >= cost
        if allowed and cost:
            level -= cost
            self.level, self.at_us, self.full_us = level, since_us, now_us + until(burst)
        return LimitResult(allowed, burst, int(level), 0 if allowed else wait, until(burst), cost > burst)


class RequestIds:
    """Request ids by the fake clock. One that is soon forgotten, or was, is not used again."""

    def __init__(self, remember_us: int) -> None:
        self.remember_us = remember_us
        self.until_us: dict[str, int] = {}
        self.round = 0

    def name(self, request: str, now_us: int) -> tuple[str, bool]:
        """The id to use, and whether it was allowed before."""
        if self.until_us.get(f"{request}{self.round}", now_us + 1_000_000) < now_us + 2_000:
            self.round += 1
        name = f"{request}{self.round}"
        return name, name in self.until_us

    def allowed(self, name: str, now_us: int) -> None:
        self.until_us[name] = now_us + self.remember_us


Make = Callable[[Callable[[], int]], LimitStore]


class WindowTrial:
    """Drives any number of stores and the oracle with the same moves."""

    def __init__(self, stores: Sequence[Make], window_us: int, name: str) -> None:
        self.now_us = START_US
        self.limiters = [SlidingWindowLimiter(make(lambda: self.now_us), window=window_us / 1e6) for make in stores]
        self.oracle, self.name = WindowOracle(window_us), name
        self.requests = RequestIds(2 * window_us)

    async def step(self, move: Move) -> None:
        kind, *args = move
        if kind == "wait":
            self.now_us += args[0]
        elif kind == "back":
            self.now_us -= args[0]
        elif kind == "ask":
            await self.ask(*args)
        elif kind == "again":
            await self.again(*args)
        elif kind == "usage":
            used = self.oracle.used(self.now_us)
            for limiter in self.limiters:
                assert await limiter.get_current_usage(self.name) == used
        else:
            self.oracle.admitted.clear()
            for limiter in self.limiters:
                await limiter.reset(self.name)

    async def ask(self, limit: int, n: int, request: str | None = None) -> bool:
        expected = self.oracle.ask(self.now_us, limit, n)
        for limiter in self.limiters:
            assert await limiter.allow_n(self.name, limit, n, request_id=request) == expected
        return expected.allowed

    async def again(self, limit: int, n: int, request: str) -> None:
        name, known = self.requests.name(request, self.now_us)
        if known:
            state = self.oracle.state(self.now_us, limit)
            for limiter in self.limiters:
                assert await limiter.allow_n(self.name, limit, n, request_id=name) == state
        elif await self.ask(limit, n, name):
            self.requests.allowed(name, self.now_us)


class BucketTrial:
    """The same for buckets."""

    def __init__(self, stores: Sequence[Make], name: str) -> None:
        self.now_us = START_US
        self.limiters = [TokenBucketLimiter(make(lambda: self.now_us)) for make in stores]
        self.oracle, self.name = BucketOracle(), name
        self.requests = RequestIds(120_000_000)

    async def step(self, move: Move) -> None:
        kind, *args = move
        if kind == "wait":
            self.now_us += args[0]
        elif kind == "back":
            self.now_us -= args[0]
        elif kind == "ask":
            await self.ask(*args)
        elif kind == "again":
            await self.again(*args)
        elif kind == "usage":
            left = self.oracle.ask(self.now_us, *RATES[args[0]], 0).remaining
            for limiter in self.limiters:
                assert await limiter.get_remaining_tokens(self.name, *RATES[args[0]]) == left
        else:
            self.oracle = BucketOracle()
            for limiter in self.limiters:
                await limiter.reset(self.name)

    async def ask(self, which: int, cost: int, request: str | None = None) -> bool:
        expected = self.oracle.ask(self.now_us, *RATES[which], cost)
        for limiter in self.limiters:
            assert await limiter.allow(self.name, *RATES[which], cost=cost, request_id=request) == expected
        return expected.allowed

    async def again(self, which: int, cost: int, request: str) -> None:
        name, known = self.requests.name(request, self.now_us)
        if known:
            state = self.oracle.ask(self.now_us, *RATES[which], 0)
            for limiter in self.limiters:
                assert await limiter.allow(self.name, *RATES[which], cost=cost, request_id=name) == state
        elif await self.ask(which, cost, name):
            self.requests.allowed(name, self.now_us)
