"""The library's limiters: on Redis and in memory they answer the same, equal to oracles that do nothing clever."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.governance.limiter_trials import (
    START_US,
    BucketTrial,
    Make,
    Move,
    WindowTrial,
    bucket_moves,
    window_moves,
)
from tests.governance.runner import PlainRunner
from tests.servers.redis import RedisServer
from tollkeeper.domain.errors import InvalidInput, StoreUnavailable
from tollkeeper.domain.limits import LimitResult
from tollkeeper.domain.names import key_part
from tollkeeper.governance.limit_stores import LimitStore, MemoryLimits, RedisLimits
from tollkeeper.governance.limiters import SlidingWindowLimiter, TokenBucketLimiter

ids = itertools.count()


@pytest.fixture
async def runner(redis_server: RedisServer) -> AsyncIterator[PlainRunner]:
    made = PlainRunner(redis_server.url)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, runner: PlainRunner) -> LimitStore:
    return MemoryLimits() if request.param == "memory" else RedisLimits(runner)


def fresh(name: str = "id") -> str:
    return f"{name}{next(ids)}"


async def test_window_in_words(store: LimitStore) -> None:
    limiter = SlidingWindowLimiter(store)
    name = fresh()
    first = await limiter.allow(name, 3)
    assert first and first.allowed and (first.limit, first.remaining, first.retry_after) == (3, 2, 0.0)
    assert await limiter.allow_n(name, 3, 2)
    assert await limiter.get_current_usage(name) == 3
    refused = await limiter.allow(name, 3)
    assert not refused and refused.remaining == 0 and not refused.never
    assert refused.retry_after is not None and 59 < refused.retry_after <= refused.reset_after <= 60.01
    assert (await limiter.allow(name, 4)).remaining == 0
    assert await limiter.get_current_usage(fresh()) == 0
    await limiter.reset(name)
    assert await limiter.get_current_usage(name) == 0
    again = await limiter.allow_n(name, 3, 3)
    assert again and again.reset_after_us > 0


async def test_bucket_in_words(store: LimitStore) -> None:
    limiter = TokenBucketLimiter(store)
    name = fresh()
    assert await limiter.get_remaining_tokens(name, 60, 10) == 10
    first = await limiter.allow(name, 60, 10, cost=4)
    assert first and (first.limit, first.remaining) == (10, 6) and 3.9 < first.reset_after <= 4
    refused = await limiter.allow(name, 60, 10, cost=7)
    assert not refused and refused.remaining == 6
    assert refused.retry_after is not None and 0.9 < refused.retry_after <= 1
    assert await limiter.get_remaining_tokens(name, 60, 10) == 6
    await limiter.reset(name)
    assert await limiter.get_remaining_tokens(name, 60, 10) == 10


async def test_a_weight_above_the_limit_is_never_allowed(store: LimitStore) -> None:
    """A different answer from *wait*, and nothing is counted, however large the weight."""
    window, bucket, name = SlidingWindowLimiter(store), TokenBucketLimiter(store), fresh()
    for weight in (6, 2**41, 10**30):
        for result in (
            await window.allow_n(name, 5, weight),
            await bucket.allow(name, 60, 5, cost=weight),
        ):
            assert result == LimitResult(False, 5, 5, None, 0, never=True) and result.retry_after is None
    assert await window.get_current_usage(name) == 0
    assert await window.allow_n(name, 5, 5) and await bucket.allow(name, 60, 5, cost=5)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "7", None, 2**40])
async def test_bad_numbers_are_refused(store: LimitStore, bad: Any) -> None:
    window, bucket = SlidingWindowLimiter(store), TokenBucketLimiter(store)
    with pytest.raises(InvalidInput, match="limit must be"):
        await window.allow("a", bad)
    with pytest.raises(InvalidInput, match="rate must be"):
        await bucket.allow("a", bad, 5)
    with pytest.raises(InvalidInput, match="burst must be"):
        await bucket.get_remaining_tokens("a", 5, bad)
    if bad != 2**40:  # a weight may be as large as you like; it is only never allowed
        with pytest.raises(ValueError, match="n must be a positive int"):
            await window.allow_n("a", 5, bad)
        with pytest.raises(ValueError, match="cost must be a positive int"):
            await bucket.allow("a", 5, 5, cost=bad)


async def test_other_bad_input_is_refused(store: LimitStore) -> None:
    window, bucket = SlidingWindowLimiter(store), TokenBucketLimiter(store)
    for bad in (17, None, b"17", 1.5, ("a",)):
        with pytest.raises(InvalidInput, match="key_id must be a str"):
            await window.allow(bad, 1)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="key_id must be a str"):
            await bucket.reset(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="request_id must be a str"):
        await window.allow("a", 1, request_id=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="more than 100 years"):
        await bucket.allow("a", 1, 150_000_000)
    for seconds in (0, -1, 0.0001, 1e9, float("nan"), float("inf"), True, "60"):
        with pytest.raises(InvalidInput, match="window must be"):
            SlidingWindowLimiter(store, window=seconds)  # type: ignore[arg-type]
    for prefix in ("", "a{b}", "a b", "ä", "x" * 65, None):
        with pytest.raises(InvalidInput, match="prefix"):
            TokenBucketLimiter(store, prefix=prefix)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="deadline"):
        SlidingWindowLimiter(store, deadline=0)


AWKWARD = [
    "",
    "%",
    "#",
    "a}b{c",
    "a:b",
    "a:60000000",
    "a\nb",
    "a\0b",
    "a\0",
    "é",
    "e\u0301",
    "\ud800",
    " ",
    "%7B",
    "{",
    "x" * 10_240,
]


async def test_awkward_ids_are_kept_apart(store: LimitStore) -> None:
    """Braces, colons, newlines, NUL, unicode, 10 kB: each id has a window and a bucket of its own."""
    mark = fresh()
    window, bucket = SlidingWindowLimiter(store, prefix=mark), TokenBucketLimiter(store, prefix=mark)
    for name in AWKWARD:
        assert await window.allow(name, 1), name
        assert await bucket.allow(name, 1, 1), name
        assert not await window.allow(name, 1), name
        assert not await bucket.allow(name, 1, 1), name


async def test_awkward_request_ids_are_kept_apart(store: LimitStore) -> None:
    """Each counts once, and is no other's repetition."""
    window, bucket, name = SlidingWindowLimiter(store), TokenBucketLimiter(store), fresh()
    for number, request in enumerate(AWKWARD, 1):
        for _ in range(2):
            assert (await window.allow(name, 100, request_id=request)).remaining == 100 - number, request
            assert (await bucket.allow(name, 1, 100, request_id=request)).remaining == 100 - number, request


text = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)  # surrogates included
near = st.text("a%#{}:\n\0 7Bé", max_size=5)


@settings(max_examples=500, deadline=None)
@given(st.lists(text | near | st.text("ab", min_size=198, max_size=203), min_size=2, max_size=30, unique=True))
def test_key_parts_are_injective(texts: list[str]) -> None:
    """Different ids have different parts, none longer than 200 characters, none with a brace, colon or space; and no
    part of an id with what follows it in a key can be read as another id's."""
    parts = [key_part(t) for t in texts]
    assert len(set(parts)) == len(texts)
    for part in parts:
        assert 0 < len(part) <= 200 and part.isascii() and part.isprintable() and not set(part) & set("{}: ")


async def test_a_repeated_request_counts_once(store: LimitStore) -> None:
    """By request id: allowed once is allowed again and not counted; a refusal is decided anew."""
    window, bucket, name = SlidingWindowLimiter(store), TokenBucketLimiter(store), fresh()
    for _ in range(3):
        result = await window.allow_n(name, 5, 4, request_id="r:1")
        assert result and result.remaining == 1
        assert (await bucket.allow(name, 1, 5, cost=4, request_id="r:1")).remaining == 1
    for _ in range(2):
        assert not await window.allow_n(name, 5, 2, request_id="r:2")
        assert not await bucket.allow(name, 1, 5, cost=2, request_id="r:2")
    assert await window.allow_n(fresh(), 5, 4, request_id="r:1"), "ids of different keys are different"
    await window.reset(name)
    await bucket.reset(name)
    assert await window.allow_n(name, 5, 2, request_id="r:2")
    assert await bucket.allow(name, 1, 5, cost=2, request_id="r:2")


class Lossy:
    """A client whose replies get lost, and that is away in the end."""

    def __init__(self, runner: PlainRunner, *, lost: int, away: int = 0) -> None:
        self.runner, self.lost, self.away = runner, lost, away

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any], **how: Any) -> Any:
        if self.lost == 0 and self.away:
            raise StoreUnavailable("away", sent=False)
        answer = await self.runner.run(script, keys, args)
        if self.lost and not how.get("idempotent"):
            self.lost -= 1
            raise StoreUnavailable("lost", sent=True)
        return answer


async def test_lost_replies_do_not_reach_the_caller(runner: PlainRunner) -> None:
    """The limiter asks again under its own id, and everything counts once."""
    limiter, name = SlidingWindowLimiter(Lossy(runner, lost=3)), fresh()
    assert (await limiter.allow_n(name, 10, 7)).remaining == 3
    assert (await limiter.allow_n(name, 10, 2)).remaining == 1
    assert await limiter.get_current_usage(name) == 9
    bucket = TokenBucketLimiter(Lossy(runner, lost=3))
    assert (await bucket.allow(name, 1, 10, cost=7)).remaining == 3
    assert (await bucket.allow(name, 1, 10, cost=2)).remaining == 1


async def test_an_ask_that_may_have_run_says_so(runner: PlainRunner) -> None:
    """Without ids, or when Redis stays away after a lost reply."""
    for limiter in (
        SlidingWindowLimiter(Lossy(runner, lost=1), idempotent=False),
        SlidingWindowLimiter(Lossy(runner, lost=1, away=1)),
        SlidingWindowLimiter(Lossy(runner, lost=100), deadline=0.1),
    ):
        with pytest.raises(StoreUnavailable, match="lost") as caught:
            await limiter.allow(fresh(), 10)
        assert caught.value.sent
    with pytest.raises(StoreUnavailable, match="away") as caught:
        await SlidingWindowLimiter(Lossy(runner, lost=0, away=1)).allow(fresh(), 10)
    assert not caught.value.sent


async def test_on_another_store_it_is_the_same_limiter(runner: PlainRunner) -> None:
    """Window, prefix, deadline and whether asks have ids."""
    name = fresh()
    window = SlidingWindowLimiter(MemoryLimits(), window=7, prefix=f"on{name}", deadline=0.1, idempotent=False)
    bucket = TokenBucketLimiter(MemoryLimits(), prefix=f"on{name}", deadline=0.1, idempotent=False)
    assert await window.on(runner).allow(name, 1) and await bucket.on(runner).allow(name, 1, 1)
    keys = await runner.command("KEYS", f"on{name}:*")
    assert sorted(keys) == sorted([f"on{name}:{{{name}}}".encode(), f"on{name}:{{{name}}}:7000000".encode()])
    begun = asyncio.get_running_loop().time()
    for limiter in (
        SlidingWindowLimiter(MemoryLimits(), deadline=0.1).on(Lossy(runner, lost=100)),
        window.on(Lossy(runner, lost=100)),
    ):
        with pytest.raises(StoreUnavailable, match="lost"):
            await limiter.allow(fresh(), 10)
    assert asyncio.get_running_loop().time() - begun < 2


async def test_an_error_of_redis_is_told_at_once(runner: PlainRunner) -> None:
    """A key of another type stays what it is, and is no reason to ask for three seconds."""
    name = fresh()
    await runner.command("HSET", f"tokenbucket:{{{name}}}", "f", "v")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await TokenBucketLimiter(runner, deadline=60).allow(name, 1, 1)


async def test_an_ask_that_arrives_after_its_deadline_changes_nothing(runner: PlainRunner) -> None:
    """What was sent to a frozen Redis has no effect when it wakes."""

    class Frozen(Lossy):
        async def run(self, script: str, keys: Sequence[str], args: Sequence[Any], **how: Any) -> Any:
            if len(keys) > 1:
                await asyncio.sleep(0.06)
            return await self.runner.run(script, keys, args)

    name = fresh()
    with pytest.raises(StoreUnavailable, match="did not decide within"):
        await SlidingWindowLimiter(Frozen(runner, lost=0), deadline=0.05).allow(name, 10)
    bucket = TokenBucketLimiter(Frozen(runner, lost=0), deadline=0.05)
    with pytest.raises(StoreUnavailable, match="did not decide within"):
        await bucket.allow(name, 1, 10)
    assert await SlidingWindowLimiter(runner).get_current_usage(name) == 0
    assert await TokenBucketLimiter(runner).get_remaining_tokens(name, 1, 10) == 10


async def test_keys_expire(runner: PlainRunner) -> None:
    """A window's key lives for two windows, a bucket's until it is full, a request id's for two windows."""
    name = fresh()
    window, bucket = SlidingWindowLimiter(runner, window=20), TokenBucketLimiter(runner)
    assert await window.allow(name, 1, request_id="r") and await bucket.allow(name, 6, 5, cost=4, request_id="r")
    key = f"ratelimit:{{{name}}}:20000000"
    assert 20_000 < await runner.command("PTTL", key) <= 40_000
    assert 20_000 < await runner.command("PTTL", f"{key}:r") <= 40_000
    assert 20_000 < await runner.command("PTTL", f"tokenbucket:{{{name}}}") <= 40_000
    assert 100_000 < await runner.command("PTTL", f"tokenbucket:{{{name}}}:r") <= 120_000
    name = fresh()
    window = SlidingWindowLimiter(runner, window=0.02)
    assert await window.allow(name, 1) and await bucket.allow(name, 6000, 5, cost=4)
    async with asyncio.timeout(60):
        while await runner.command("EXISTS", f"ratelimit:{{{name}}}:20000", f"tokenbucket:{{{name}}}"):
            await asyncio.sleep(0.01)
    assert await window.allow(name, 1) and await bucket.allow(name, 6000, 5, cost=5)


async def test_the_memory_store_forgets() -> None:
    now_us = START_US
    store = MemoryLimits(lambda: now_us)
    window, bucket = SlidingWindowLimiter(store), TokenBucketLimiter(store)
    for n in range(50):
        await window.allow(str(n), 1, request_id="r")
        await bucket.allow(str(n), 60, 60, request_id="r")
    assert repr(store) == "<MemoryLimits windows=50 buckets=50>"
    now_us += 121_000_000
    store.sweep(now_us)
    assert repr(store) == "<MemoryLimits windows=0 buckets=0>" and not store._requests


relaxed = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(window_us=st.sampled_from([60_000_000, 6_000_000, 5_999_993]), moves=st.lists(window_moves, max_size=60))
def test_windows_equal_brute_force(redis_server: RedisServer, window_us: int, moves: list[Move]) -> None:
    """Any schedule of weights, limits, clock moves, repetitions and resets: Lua on Redis, the twin and the oracle
    give the same result, to the µs."""

    async def run(redis: Make) -> None:
        trial = WindowTrial([MemoryLimits, redis], window_us, fresh())
        for move in moves:
            await trial.step(move)

    on_redis(redis_server, run)


@relaxed
@given(moves=st.lists(bucket_moves(3), max_size=60))
def test_buckets_equal_brute_force(redis_server: RedisServer, moves: list[Move]) -> None:
    """The same for buckets, against a level that is a fraction; burst below and above the rate."""

    async def run(redis: Make) -> None:
        trial = BucketTrial([MemoryLimits, redis], fresh())
        for move in moves:
            await trial.step(move)

    on_redis(redis_server, run)


def on_redis(server: RedisServer, run: Callable[[Make], Awaitable[None]]) -> None:
    async def connected() -> None:
        runner = PlainRunner(server.url)
        await runner.start()
        try:
            await run(lambda now_us: RedisLimits(runner, deadline_s=1e6, time_us=now_us))
        finally:
            await runner.stop()

    asyncio.run(connected())


async def test_fractions_are_never_lost() -> None:
    """A bucket asked a thousand times a second fills as fast as one that is left alone."""
    now_us = START_US
    bucket = TokenBucketLimiter(MemoryLimits(lambda: now_us))
    for name in ("often", "seldom"):
        assert await bucket.allow(name, 61, 10, cost=10)
    taken = 0
    for _ in range(3_000):
        now_us += 997
        taken += (await bucket.allow("often", 61, 10)).allowed
    assert taken == await bucket.get_remaining_tokens("seldom", 61, 10) == 2_991_000 * 61 // 60_000_000 == 3


async def test_concurrent_asks_share_one_limit(store: LimitStore) -> None:
    """Two hundred tasks on one key: exactly the limit is allowed."""
    window, bucket, name = SlidingWindowLimiter(store), TokenBucketLimiter(store), fresh()

    async def four(ask: Callable[[], Awaitable[LimitResult]]) -> list[LimitResult]:
        return [await ask() for _ in range(4)]

    answers = await asyncio.gather(*(four(lambda: window.allow(name, 50)) for _ in range(50)))
    results = list(itertools.chain(*answers))
    assert sum(r.allowed for r in results) == 50
    assert sorted(r.remaining for r in results if r) == list(range(50))
    answers = await asyncio.gather(*(four(lambda: bucket.allow(name, 1, 50)) for _ in range(50)))
    assert sum(r.allowed for r in itertools.chain(*answers)) == 50
