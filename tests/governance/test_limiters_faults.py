"""The limiters on the real client while things break: exact all the same, and no error that asking again avoids."""

import asyncio
import random
import time

import pytest

from tests.servers.proxy import Proxy
from tests.servers.redis import RedisCluster, RedisServer
from tollkeeper import RedisClient, SlidingWindowLimiter, TokenBucketLimiter
from tollkeeper.domain.admission import Demand, Status, checks_for
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.policy import Policy, Principal, Scope, ScopeKind, Unit, Window
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.settings import StoreSettings

LIMIT = 1_000
TASKS = 64
FAULTS = 12


async def test_exact_through_faults(own_redis: RedisServer) -> None:
    """64 tasks ask for twice the limit; scripts are flushed and connections killed: exactly the limit, no error."""
    async with RedisClient(url=own_redis.url) as one, RedisClient(url=own_redis.url) as two:
        limiters = [SlidingWindowLimiter(one), SlidingWindowLimiter(two)]
        buckets = [TokenBucketLimiter(one), TokenBucketLimiter(two)]
        answered = 0

        async def faults() -> None:
            """Each when there were answers since the last: kill after kill is an outage."""
            for number in range(FAULTS):
                while answered < number * 4 * TASKS:
                    await asyncio.sleep(0.001)
                before = one.get_stats().reconnects, two.get_stats().reconnects
                own_redis.command("SCRIPT", "FLUSH")
                own_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                while one.get_stats().reconnects == before[0] or two.get_stats().reconnects == before[1]:
                    await asyncio.sleep(0.001)

        async def task(number: int) -> tuple[int, int]:
            nonlocal answered
            window = bucket = 0
            for _ in range(2 * LIMIT // TASKS):
                window += (await limiters[number % 2].allow("shared", LIMIT)).allowed
                bucket += (await buckets[number % 2].allow("shared", 1, LIMIT)).allowed
                answered += 2
                await asyncio.sleep(random.uniform(0, 0.02))
            return window, bucket

        breaking = asyncio.create_task(faults())
        allowed = await asyncio.gather(*(task(n) for n in range(TASKS)))
        await breaking
        assert one.get_stats().reconnects >= FAULTS
        assert sum(a for a, _ in allowed) == LIMIT == await limiters[0].get_current_usage("shared")
        assert LIMIT <= sum(b for _, b in allowed) <= LIMIT + 1, "one a minute flows in"


async def test_a_slow_reconnection_is_waited_for(own_redis: RedisServer) -> None:
    """Longer than Redis may take to answer: what was not sent, and an admission, have until their own deadline."""
    async with (
        Proxy(own_redis.socket) as proxy,
        RedisClient(url=proxy.url, read_timeout_s=0.1, dial_timeout_s=60) as client,
    ):
        limiter = SlidingWindowLimiter(client, deadline=60)
        store = RedisStore(
            StoreSettings(redis_url=proxy.url, read_timeout_s=0.1, dial_timeout_s=60, admission_timeout_s=60)
        )
        await store.start()
        assert await limiter.allow("k", 3)
        await store.seed("org", "run", {}, {}, lost=False)
        proxy.swallowing = True
        proxy.cut()
        while "up" in (client.state, store.client.state):
            await asyncio.sleep(0)
        who = Principal("key", "k", "org", (Scope(ScopeKind.KEY, "key", Policy(windows=(Window(Unit.TOKENS, 9),))),))
        demand = Demand("a.1", "p", 1, 0, store.now_us() + 60_000_000)
        asked = asyncio.create_task(limiter.allow("k", 3))
        admission = asyncio.create_task(store.admit(checks_for(who, store.now_us()), demand))
        _, waiting = await asyncio.wait((asked, admission), timeout=0.5)
        assert len(waiting) == 2 and {client.state, store.client.state} == {"connecting"}
        proxy.swallowing = False
        proxy.cut()
        result, reply = await asked, await admission
        await store.stop()
    assert result.allowed and result.remaining == 1 and reply.status is Status.ADMITTED


async def test_frozen_redis_runs_nothing_abandoned(own_redis: RedisServer) -> None:
    """Asks that were given up while Redis was frozen have no effect when it wakes, and each ends by its deadline."""
    async with RedisClient(url=own_redis.url, read_timeout_s=0.3, dial_timeout_s=0.3) as client:
        limiter = SlidingWindowLimiter(client, deadline=0.2)
        assert await limiter.allow("k", 100)
        own_redis.freeze()
        async with asyncio.timeout(30):
            results = await asyncio.gather(*(limiter.allow("k", 100) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(r, StoreUnavailable) for r in results)
        own_redis.thaw()
        while client.state != "up":
            await asyncio.sleep(0.01)
        assert await limiter.get_current_usage("k") == 1


async def test_skewed_processes_share_redis_clock(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a client does not matter: one that is a minute off refuses and allows what all others do."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    async with RedisClient(url=own_redis.url) as client:
        limiter = SlidingWindowLimiter(client)
        assert [(await limiter.allow("k", 2)).allowed for _ in range(3)] == [True, True, False]


async def test_on_a_cluster(redis_cluster: RedisCluster) -> None:
    """Keys of one id share a slot, whatever the id: windows, buckets and request ids."""
    async with RedisClient(url=redis_cluster.url) as client:
        window, bucket = SlidingWindowLimiter(client, prefix="c"), TokenBucketLimiter(client, prefix="c")
        for name in ["", "a", "{b}", "c}{", "ü", "x" * 10_000, *map(str, range(30))]:
            for _ in range(2):
                assert await window.allow(name, 2, request_id="one") and await bucket.allow(
                    name, 1, 2, request_id="one"
                )
            assert await window.allow(name, 2) and await bucket.allow(name, 1, 2)
            assert not await window.allow(name, 2) and not await bucket.allow(name, 1, 2)
            await window.reset(name)
            await bucket.reset(name)
            assert await window.get_current_usage(name) == 0 and await bucket.get_remaining_tokens(name, 1, 2) == 2
