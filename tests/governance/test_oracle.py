"""Promise 1, without the twin: admission through scripts and memory against plain lists of what was admitted.

The oracles know no runs, sums, indexes or levels: each remembers every admission with its time and its weight,
changes the weight when the request is settled, and adds everything up again for every decision.
"""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.governance.lua_redis import LuaRedis
from tests.governance.script_trials import LuaPair, play
from tests.governance.test_twin import Pair, principal
from tollkeeper.domain.admission import Grant, Status, checks_for
from tollkeeper.domain.entries import Entry, dispatch_of, settle_entry, void_entry
from tollkeeper.domain.policy import Policy, TokenBucket, Unit, Window
from tollkeeper.domain.usage import Usage

JUMP_US = 1_000_000


class Admitted:
    """A request that was let through, and what is known of its weight. `true_us`: by a clock that nobody sets."""

    def __init__(self, number: int, true_us: int, tokens: int) -> None:
        self.number, self.true_us, self.weights = number, true_us, {Unit.REQUESTS: 1, Unit.TOKENS: tokens}


class WindowOracle:
    """One window: everything admitted, with stamps rounded up to window/6000."""

    def __init__(self, window: Window) -> None:
        self.window, self.tick_us = window, max(1, window.window_us // 6000)
        self.stamps: list[tuple[int, Admitted]] = []

    def _rounded(self, now_us: int) -> int:
        return -(-now_us // self.tick_us) * self.tick_us

    def look(self, now_us: int) -> None:
        """Somebody asks: a clock that was set back is noticed, and what has left the window is forgotten."""
        if self.stamps and self.stamps[-1][0] > self._rounded(now_us) + JUMP_US:  # the clock was set back
            back = self.stamps[-1][0] - self._rounded(now_us)
            self.stamps = [(stamp - back, request) for stamp, request in self.stamps]
        self.stamps = [s for s in self.stamps if s[0] + self.window.window_us > now_us]

    def fits(self, now_us: int, weights: dict[Unit, int]) -> bool:
        """Whether the limit holds if this is let through now."""
        inside = [request for stamp, request in self.stamps if stamp + self.window.window_us > now_us]
        counted = sum(request.weights[self.window.unit] for request in inside)
        return counted + weights[self.window.unit] <= self.window.limit

    def add(self, now_us: int, request: Admitted) -> None:
        """It was let through."""
        newest = self.stamps[-1][0] if self.stamps else 0
        self.stamps.append((max(self._rounded(now_us), newest), request))


class BucketOracle:
    """One bucket: in every interval that ends now, at most its burst and what has flowed in meanwhile.

    Nothing flows in again for a time that was there before: a clock that was set back has to come to where the last
    was let through. If that is more than a second away, whoever asks next moves all times back by the distance.
    """

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        self.requests: list[Admitted] = []
        self.stamps: list[tuple[int, Admitted]] = []
        """Those that have taken something, since the bucket was full."""

    def _later(self, now_us: int) -> int:
        return max(now_us, self.stamps[-1][0]) if self.stamps else now_us

    def look(self, now_us: int) -> None:
        """Somebody asks: a clock that was set back is noticed; a full bucket is like one that nobody has asked."""
        if self._holds(self.stamps, now_us, self.bucket.burst):
            self.stamps = []
        elif self.stamps[-1][0] > now_us + JUMP_US:
            back = self.stamps[-1][0] - now_us
            self.stamps = [(stamp - back, request) for stamp, request in self.stamps]

    def fits(self, now_us: int, weights: dict[Unit, int]) -> bool:
        """Whether the bound holds for all intervals that end now if this is let through."""
        return self._holds(self.stamps, self._later(now_us), weights[self.bucket.unit])

    def fits_in_truth(self, true_us: int, weights: dict[Unit, int]) -> bool:
        """The same by the clock that nobody sets."""
        requests = [(request.true_us, request) for request in self.requests]
        return self._holds(requests, true_us, weights[self.bucket.unit])

    def _holds(self, requests: list[tuple[int, Admitted]], now_us: int, weight: int) -> bool:
        unit, burst, rate = self.bucket.unit, self.bucket.burst, self.bucket.rate
        total = weight
        for at_us, request in reversed(requests):
            total += request.weights[unit]
            if (total - burst) * 60_000_000 > rate * (now_us - at_us):
                return False
        return weight <= burst

    def add(self, now_us: int, request: Admitted) -> None:
        """It was let through; one that takes nothing leaves no trace."""
        self.requests.append(request)
        if request.weights[self.bucket.unit]:
            self.stamps.append((self._later(now_us), request))


class Trial:
    """Drives scripts and memory, which must agree, and asks the oracles about every decision."""

    def __init__(self, pair: Pair, key: Policy, organisation: Policy) -> None:
        self.pair = pair
        self.policies = (key, organisation)
        self.reset()
        self.corrected = False
        self.true_us = pair.now_us
        self.open: list[tuple[Admitted, Grant]] = []
        self.admitted = self.refused = 0

    def reset(self) -> None:
        self.windows = [WindowOracle(w) for policy in self.policies for w in policy.windows]
        self.buckets = [BucketOracle(b) for policy in self.policies for b in dict.fromkeys(policy.buckets)]

    @property
    def oracles(self) -> list[WindowOracle | BucketOracle]:
        return [*self.windows, *self.buckets]

    async def on_wait(self, us: int) -> None:
        self.pair.now_us += us
        self.true_us += us

    async def on_back(self, us: int) -> None:
        self.pair.now_us -= us

    async def on_reset(self) -> None:
        checks = checks_for(self.pair.who, self.pair.now_us)
        names = [c.name for c in checks.logs], [s.name for s in checks.slots], [b.name for b in checks.buckets]
        await self.pair.both(lambda store: store.reset(self.pair.root, *names))
        self.reset()
        await self.on_wait(1)

    async def on_admit(self, tokens: int) -> None:
        self.pair.attempts += 1
        now_us, weights = self.pair.now_us, {Unit.REQUESTS: 1, Unit.TOKENS: tokens}
        reply, checks, demand = await self.pair.admit(f"a{self.pair.attempts}.1", tokens, 1)
        for oracle in self.oracles:
            oracle.look(now_us)
        windows = all(oracle.fits(now_us, weights) for oracle in self.windows)
        buckets = all(oracle.fits(now_us, weights) for oracle in self.buckets)
        admitted = reply.status is Status.ADMITTED
        if self.corrected and self.buckets:  # tokens that came back are never too many, but may be too few
            truth = all(oracle.fits_in_truth(self.true_us, weights) for oracle in self.buckets)
            assert not admitted or (windows and truth)
            assert windows or not admitted
        else:
            assert admitted is (windows and buckets)
        if admitted:
            request = Admitted(self.pair.attempts, self.true_us, tokens)
            for oracle in self.oracles:
                oracle.add(now_us, request)
            self.open.append((request, Grant(demand, checks, reply)))
        elif not self.corrected and reply.refusal is not None and reply.refusal.wait_us is not None:
            later_us = now_us + reply.refusal.wait_us
            assert all(oracle.fits(later_us, weights) for oracle in self.oracles)
            assert not all(oracle.fits(later_us - 1, weights) for oracle in self.oracles)

    async def end(self, entry: Entry) -> None:
        if (await self.pair.apply(entry)).status == "ok":
            self.pair.number += 1

    async def on_settle(self, which: int, tokens: int) -> None:
        if self.open:
            request, grant = self.open.pop(which % len(self.open))
            delta = tokens - request.weights[Unit.TOKENS]
            request.weights[Unit.TOKENS] = tokens
            self.corrected = self.corrected or delta != 0
            await self.end(settle_entry(self.pair.number + 1, dispatch_of(grant), 1, Usage(tokens), delta))

    async def on_void(self, which: int) -> None:
        if self.open:
            request, grant = self.open.pop(which % len(self.open))
            await self.end(void_entry(self.pair.number + 1, dispatch_of(grant), 1, request.weights[Unit.TOKENS]))
            request.weights = {Unit.REQUESTS: 0, Unit.TOKENS: 0}
            self.corrected = True


windows = st.builds(
    Window, st.sampled_from(Unit), st.integers(1, 40), st.sampled_from([60_000_000, 6_000_000, 7_000_001])
)
buckets = st.builds(
    TokenBucket, st.sampled_from(Unit), st.sampled_from([1, 60, 6_000, 100_000]), st.sampled_from([1, 7, 40])
)
waits = st.sampled_from(
    [0, 1, 37, 600, 9_999, 10_000, 700_000, 1_000_000, 6_000_000, 59_990_000, 60_000_000, 86_400_000_000]
)
"""A clock that is set forward is like a wait."""
forwards = st.one_of(
    st.tuples(st.just("wait"), waits),
    st.tuples(st.just("admit"), st.integers(0, 15)),
    st.tuples(st.just("admit"), st.integers(0, 41)),
    st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 45)),
    st.tuples(st.just("void"), st.integers(0, 20)),
)
anywhere = st.one_of(
    forwards, forwards, st.tuples(st.just("back"), st.sampled_from([1, 900_000, 1_020_000, 90_000_000]))
)


uncorrected = st.one_of(
    st.tuples(st.just("wait"), waits),
    st.tuples(st.just("admit"), st.sampled_from([1, 1, 2, 7, 40])),
    st.tuples(st.just("admit"), st.sampled_from([0, 1, 3, 15])),
    st.tuples(st.just("back"), st.sampled_from([1, 900_000, 999_999, 1_000_000, 1_000_001, 1_020_000, 90_000_000])),
)
"""Decisions are compared to the last one, whatever the clock does."""


def schedules(moves: Any, *more: Any) -> Any:
    return st.lists(st.one_of(moves, moves, moves, *more), min_size=5, max_size=60)


async def play_oracle(lua: LuaRedis, key: Policy, organisation: Policy, schedule: list[tuple[Any, ...]]) -> Trial:
    """One schedule under Lua in this process."""
    pair = LuaPair(lua, principal("org_1", key, None, organisation), server_time=False)
    return await play_pair(pair, key, organisation, schedule)


async def play_pair(pair: Pair, key: Policy, organisation: Policy, schedule: list[tuple[Any, ...]]) -> Trial:
    """One schedule through a pair of stores, which ask about these policies."""
    trial = Trial(pair, key, organisation)
    await trial.pair.on_seed(0, 0)
    for kind, *arguments in schedule:
        await getattr(trial, f"on_{kind}")(*arguments)
    return trial


policies = st.builds(Policy, windows=st.lists(windows, max_size=3).map(tuple))


@settings(max_examples=200, deadline=None)
@given(key=policies, organisation=policies, schedule=schedules(anywhere, st.just(("reset",))))
def test_windows(key: Policy, organisation: Policy, schedule: list[tuple[Any, ...]]) -> None:
    """Several windows of two scopes, settlements, voids, resets, clocks set back: the same decisions."""
    play(None, lambda lua: _nothing(play_oracle(lua, key, organisation, schedule)))


@settings(max_examples=200, deadline=None)
@given(
    key=policies,
    held=st.lists(buckets, min_size=1, max_size=2).map(tuple),
    above=st.lists(buckets, max_size=2).map(tuple),
    schedule=schedules(anywhere, st.just(("reset",))),
)
def test_buckets(
    key: Policy, held: tuple[TokenBucket, ...], above: tuple[TokenBucket, ...], schedule: list[tuple[Any, ...]]
) -> None:
    """The same decisions until the first correction; then never more than the truth allows. Clocks are set, too."""
    key = msgspec.structs.replace(key, buckets=held)
    play(None, lambda lua: _nothing(play_oracle(lua, key, Policy(buckets=above), schedule)))


@settings(max_examples=200, deadline=None)
@given(
    key=st.lists(buckets, min_size=1, max_size=2).map(tuple),
    organisation=st.lists(buckets, max_size=1).map(tuple),
    schedule=st.integers(5, 60).flatmap(lambda n: st.lists(uncorrected, min_size=n, max_size=n)),
)
def test_clocks_of_buckets(
    key: tuple[TokenBucket, ...], organisation: tuple[TokenBucket, ...], schedule: list[tuple[Any, ...]]
) -> None:
    """Clocks that are set back and forward: the same decisions, and the same waits."""
    policies = Policy(buckets=key), Policy(buckets=organisation)
    play(None, lambda lua: _nothing(play_oracle(lua, *policies, schedule)))


def test_unused_tokens_come_back() -> None:
    """In a bucket that is nearly empty all that was not used is there again at once, and an excess is missing."""
    bucket = Policy(buckets=(TokenBucket(Unit.TOKENS, 60, 100),))
    moves: list[tuple[Any, ...]] = [("admit", 50), ("admit", 50), ("admit", 1), ("settle", 0, 10), ("admit", 40)]
    outcomes: list[int] = []

    async def run(lua: LuaRedis) -> None:
        trial = await play_oracle(lua, bucket, Policy(), moves)
        outcomes.append(len(trial.open))
        await trial.on_settle(1, 60)  # 20 more than it had: a debt
        await trial.on_wait(20_999_999)
        await trial.on_admit(1)
        outcomes.append(len(trial.open))
        await trial.on_wait(1)
        await trial.on_admit(1)
        outcomes.append(len(trial.open))

    play(None, run)
    assert outcomes == [2, 1, 2]


async def _nothing(call: Any) -> None:
    await call
