"""Promises 2 to 4 on a Redis whose memory is full: it admits nothing, but whatever was admitted is charged, released
and saved, and a tree that was lost is loaded. So the memory that requests hold comes back."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.governance.log_trials import QueuePair
from tests.governance.parts import Clock, Parts, budget, one_key
from tests.governance.test_twin import START_US, Pair, principal
from tests.servers.redis import RedisServer
from tollkeeper.domain.admission import CounterRef, Demand, Grant, checks_for
from tollkeeper.domain.entries import Used, presume_entry, quarantined, usage_entry
from tollkeeper.domain.errors import StoreDamaged, StoreUnavailable
from tollkeeper.domain.log_queue import Chunk
from tollkeeper.domain.outage import OutageModes
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, TokenBucket, Unit, Window
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.usage import Usage
from tollkeeper.governance import RedisStore
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.governance.store import SeedTotals
from tollkeeper.settings import StoreSettings

ROOT = "org_1"
POLICY = Policy(
    windows=(Window(Unit.TOKENS, 1_000),),
    buckets=(TokenBucket(Unit.TOKENS, 60, 1_000),),
    budgets=(Budget(10**6, Period.MONTH), Budget(10**6, Period.TOTAL)),
    concurrency=50,
)


@pytest.fixture
async def pair(own_redis: RedisServer) -> AsyncIterator[Pair]:
    """A tree with requests in flight, one of them of a producer that will die, when memory gets full."""
    redis = RedisStore(StoreSettings(redis_url=own_redis.url))
    await redis.start()
    made = Pair(redis, principal(ROOT, POLICY, None, POLICY))
    await made.on_seed(0, 7)
    for number in range(6):
        await made.on_admit(10, number)
    checks, demand = checks_for(made.who, made.now_us), Demand("orphan.1", "p_2", 10, 50, made.now_us + 1)
    await made.both(lambda store: store.admit(checks, demand))
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    yield made
    await redis.stop()


async def test_it_admits_nothing(pair: Pair) -> None:
    """Another request would need memory: the store says so, and holds nothing for it."""
    before = await pair.redis.held(ROOT)
    with pytest.raises(StoreUnavailable, match="OOM") as refused:
        await pair.admit("one.more", 1, 1)
    assert not isinstance(refused.value, StoreDamaged)
    assert await pair.redis.held(ROOT) == before


async def test_what_was_admitted_ends_and_is_saved(pair: Pair) -> None:
    """Entries of every kind, some with a counter or a record that must be brought back first, and the sync's calls:
    each answer is that of the twin, whose memory is never full."""
    await pair.on_settle(0, 5, 20)
    await pair.on_void(0)
    await pair.on_presume(0)
    await pair.on_rank(0, 2, 6, False, None)  # its record is unknown, and recalled
    assert pair.entries[-1].rank == 2
    await pair.on_snapshot(clear=True)
    _, dispatch = pair.grants.pop()
    assert (await pair.apply(quarantined(presume_entry(pair.number + 1, dispatch), "p_1", "why"))).status == "ok"
    late = CounterRef("key_1:2020:01", START_US - 1, START_US + 10**12)
    entry = usage_entry(pair.number + 2, "digest", 4, (*dispatch.counters, late))
    assert (await pair.apply(entry)).absent == late.name
    ended = SeedTotals(late.expires_us, SpendTotals(100, 1, 2, 3, 4))
    await pair.both(lambda store: store.restore(ROOT, late.name, ended))
    assert (await pair.apply(entry)).status == "ok"
    pair.number += 2
    for release in (False, True):
        await pair.on_close(2, release)
    assert "orphan.1" not in {held.attempt for held in await pair.redis.held(ROOT)}
    await pair.on_fence(3, life=False)
    await pair.on_snapshot(clear=True)
    await pair.on_held()


async def test_a_lost_tree_is_loaded(pair: Pair) -> None:
    """With what the database knows of idempotency keys; who is waited for holds again what is in flight, and charges
    it."""
    grants = list(pair.grants)
    used = {"digest": Used(3, START_US + 10**9, "p_9:1")}
    await pair.both(lambda store: store.remember(ROOT, used))
    await pair.on_seed(1, 9)
    assert not await pair.redis.held(ROOT), "another memory"
    await pair.on_gate(3, 700_000, new_life=True)
    pair.grants = grants
    await pair.on_reassert()
    assert len(await pair.redis.held(ROOT)) == len(grants)
    await pair.on_settle(0, 5, 20)
    await pair.on_ready(2, right=True)
    await pair.on_ready(1, right=True)
    await pair.both(lambda store: store.used(ROOT, "digest"))
    await pair.on_snapshot(clear=True)
    assert pair.entries[-1].cost_nano == 5


async def test_spend_reaches_the_database(tmp_path: Path, own_redis: RedisServer) -> None:
    """A whole gateway: what is in flight when memory gets full is settled, synced, and held no longer."""
    parts = await Parts.start(tmp_path, own_redis.url, Clock(time.time_ns() // 1000), OutageModes())
    who = one_key("org_a", budget(1000))
    grant = await parts.admit(who, "one.1", hold=200)
    assert isinstance(grant, Grant)
    parts.ledger.dispatched(grant)
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    assert isinstance(await parts.admit(who, "alone.1", hold=1), Grant), "decided alone"
    parts.ledger.settle(grant, 50, Usage())
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    assert set((await parts.spent("org_a")).values()) == {50}
    assert await parts.store.held("org_a") == []
    own_redis.command("CONFIG", "SET", "maxmemory", "0")
    await parts.stop()


async def test_logs_are_shipped(own_redis: RedisServer) -> None:
    """No record comes into a queue, but those that are there go out, also of a shipper that died, or are let go."""
    async with RedisClient(url=own_redis.url) as client:
        queue = QueuePair(client)
        for move in [("put", "gw-a", [b"x" * 10] * 4, 0, True)] * 3 + [("lease", 2, 90, 5)]:
            await queue.step(move)
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await queue.redis.put(Chunk("gw-a", 13, (b"one more",)))
        await queue.step(("renew", 0, 5))
        await queue.step(("wait", 5))
        await queue.step(("lease", 9, 90, 1_000))
        await queue.step(("ack", 0))
        await queue.step(("lease", 3, 90, 1_000))
        await queue.step(("take", 2))
        await queue.step(("clear", 2))
        assert (await queue.redis.stats()).delivered == 2
