"""Promise 6: what a ledger admits while Redis is away is what its operator chose, inside the stated bound, and Redis
knows of it afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.governance.parts import Clock, Parts, budget, one_key
from tests.servers.redis import RedisCluster, RedisServer
from tollkeeper.domain.admission import Denial, Grant, LimitKind
from tollkeeper.domain.entries import Dispatch
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.outage import OutageMode, OutageModes
from tollkeeper.domain.policy import Policy, Principal, TokenBucket, Unit, Window
from tollkeeper.domain.usage import Usage

BOUNDED = OutageModes()
OPEN = OutageModes(OutageMode.OPEN, OutageMode.OPEN)
CLOSED = OutageModes(OutageMode.CLOSED, OutageMode.CLOSED)
USAGE = Usage(input_tokens=5, output_tokens=5)


def limited(rpm: int) -> Principal:
    return one_key("org_a", Policy(windows=(Window(Unit.REQUESTS, rpm),)))


@asynccontextmanager
async def ledgers(folder: Path, redis: RedisServer, number: int, modes: OutageModes) -> AsyncIterator[list[Parts]]:
    """That many instances on one Redis and one database, each of which has counted the others."""
    clock = Clock(time.time_ns() // 1000)
    started = [await Parts.start(folder, redis.url, clock, modes) for _ in range(number)]
    spend = started[0].database.spend
    while len(await spend.live_producers(0)) < number:
        await asyncio.sleep(0.01)
    for parts in started:
        parts.ledger.outage.count(await spend.live_producers(0))
    assert sorted(parts.ledger.outage.fleet.rank for parts in started) == list(range(number))
    try:
        yield started
    finally:
        for parts in started:
            await parts.stop()


async def burst(
    parts: Parts, who: Principal, number: int, name: str, *, hold: int = 10, cost: int | None = None
) -> list[Grant]:
    """Ask that often, settle what is admitted (with `cost`); the rest must be refused, not fail."""
    admitted = []
    for n in range(number):
        decision = await parts.admit(who, f"{name}{n}-{parts.ledger.producer}.1", hold=hold, tokens=10)
        if isinstance(decision, Grant):
            admitted.append(decision)
            parts.ledger.dispatched(decision)
            if cost is not None:
                parts.ledger.settle(decision, cost, USAGE)
    return admitted


async def until(true: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.01)


async def back(started: list[Parts]) -> None:
    """Wait until nothing is decided alone any more."""
    for parts in started:
        await until(lambda parts=parts: parts.ledger.outage.degraded is None)  # type: ignore[misc]


async def test_instances_share_what_is_left_and_tell_redis(tmp_path: Path, own_redis: RedisServer) -> None:
    """44 of 100 were used: four instances admit the other 56 between them, though Redis is gone. It restarts empty
    and admits nothing more in that window: it is told what it had forgotten, and what was admitted without it."""
    who = limited(100)
    async with ledgers(tmp_path, own_redis, 4, BOUNDED) as started:
        for number in (10, 1):  # the second time each learns what the others have used, but for at most 3
            before = [await burst(parts, who, number, f"before{number}", cost=1) for parts in started]
        assert before[-1][0].reply.logs[0].requests == 44
        own_redis.kill()
        alone = [len(await burst(parts, who, 100, f"alone{n}", cost=1)) for n, parts in enumerate(started)]
        assert 56 <= sum(alone) <= 56 + 3 and max(alone) <= 15
        own_redis.forget()
        own_redis.start()
        await back(started)
        after = [len(await burst(parts, who, 100, f"after{n}", cost=1)) for n, parts in enumerate(started)]
        assert sum(after) <= 3, "the last sums may be those of an instance that had seen less"
        for parts in started:
            assert await parts.ledger.flush(5)
        spent = {s.kind: s.used for s in await started[0].ledger.limits(who)}
        assert spent[LimitKind.REQUESTS] >= 100


async def test_a_limit_just_filled_is_not_filled_again(tmp_path: Path, own_redis: RedisServer) -> None:
    """Neither during the outage nor by a Redis that comes back empty."""
    who = limited(20)
    async with ledgers(tmp_path, own_redis, 2, BOUNDED) as started:
        assert len(await burst(started[0], who, 50, "fill", cost=1)) == 20
        assert len(await burst(started[1], who, 1, "look", cost=1)) == 0
        own_redis.kill()
        for n, parts in enumerate(started):
            denial = await parts.admit(who, f"more{n}.1", hold=1)
            assert isinstance(denial, Denial) and denial.reply.degraded == "limits"
            assert denial.refusal.wait_us and not denial.refusal.never
            assert await burst(parts, who, 30, f"alone{n}", cost=1) == []
        own_redis.forget()
        own_redis.start()
        await back(started)
        for n, parts in enumerate(started):
            assert await burst(parts, who, 30, f"after{n}", cost=1) == []


async def test_tokens_and_slots_are_shared(tmp_path: Path, own_redis: RedisServer) -> None:
    """Unused tokens come back to the share; a slot is free when its attempt ends; Redis learns of slots in use."""
    who = one_key("org_a", Policy(windows=(Window(Unit.TOKENS, 400),), concurrency=4))
    async with ledgers(tmp_path, own_redis, 2, BOUNDED) as started:
        first = started[0]
        own_redis.kill()
        held = [await first.admit(who, f"a{n}.1", hold=1, tokens=100) for n in range(3)]
        assert [isinstance(each, Grant) for each in held] == [True, True, False]
        assert isinstance(held[2], Denial)
        for grant in held[:2]:
            assert isinstance(grant, Grant)
            first.ledger.dispatched(grant)
        assert isinstance(held[0], Grant) and isinstance(held[1], Grant)
        first.ledger.settle(held[0], 1, USAGE)
        again = await first.admit(who, "b.1", hold=1, tokens=90)
        assert isinstance(again, Grant) and again.reply.slots == (2,)
        assert isinstance(await first.admit(who, "c.1", hold=1, tokens=1), Denial)
        own_redis.forget()
        own_redis.start()
        await back(started)
        (grant,) = await burst(first, who, 1, "after")
        assert grant.reply.slots == (3,) and grant.reply.logs[0].tokens == 10 + 100 + 90 + 10
        for each in (held[1], again, grant):
            assert isinstance(each, Grant)
            first.ledger.settle(each, 1, USAGE)
        (grant,) = await burst(first, who, 1, "free", cost=1)
        assert grant.reply.slots == (1,)


async def test_a_bucket_just_used_up_gives_nothing_more(tmp_path: Path, own_redis: RedisServer) -> None:
    """Shares of a bucket start empty: alone nobody admits before something has flowed in. A Redis that comes back
    empty has the whole burst again: that is the bound, and it is stated."""
    who = one_key("org_a", Policy(buckets=(TokenBucket(Unit.REQUESTS, 1, 5),)))
    async with ledgers(tmp_path, own_redis, 2, BOUNDED) as started:
        assert len(await burst(started[0], who, 9, "fill", cost=1)) == 5
        own_redis.kill()
        for n, parts in enumerate(started):
            denial = await parts.admit(who, f"more{n}.1", hold=1)
            assert isinstance(denial, Denial) and denial.reply.degraded == "limits"
            assert denial.refusal.kind is LimitKind.REQUESTS and not denial.refusal.never
            assert denial.refusal.wait_us is not None and 0 < denial.refusal.wait_us <= 60_000_000
            assert await burst(parts, who, 9, f"alone{n}", cost=1) == []
        own_redis.forget()
        own_redis.start()
        await back(started)
        after = [len(await burst(parts, who, 9, f"after{n}", cost=1)) for n, parts in enumerate(started)]
        assert after == [5, 0]


async def test_open_buckets_let_everything_through(tmp_path: Path, own_redis: RedisServer) -> None:
    """Nothing is taken, nothing is told to Redis, and an end leaves the store's bucket as it is."""
    who = one_key("org_a", Policy(buckets=(TokenBucket(Unit.REQUESTS, 1, 5),)))
    async with ledgers(tmp_path, own_redis, 1, OPEN) as (parts,):
        assert len(await burst(parts, who, 5, "fill", cost=1)) == 5
        own_redis.kill()
        assert len(await burst(parts, who, 20, "alone", cost=1)) == 20
        (late,) = await burst(parts, who, 1, "late")
        own_redis.forget()
        own_redis.start()
        await back([parts])
        parts.ledger.settle(late, 1, USAGE)
        assert len(await burst(parts, who, 9, "after", cost=1)) == 5


async def test_budget_is_shared_and_spend_stays_exact(tmp_path: Path, own_redis: RedisServer) -> None:
    """Each instance spends its part of the headroom, to the nano-dollar; what was spent alone counts at once when
    Redis is back, though it comes back empty, and the database agrees."""
    who = one_key("org_a", budget(1000, rpm=10**6))
    async with ledgers(tmp_path, own_redis, 2, BOUNDED) as started:
        for n in (1, 2):
            for parts in started:
                await burst(parts, who, 1, f"b{n}", hold=50, cost=50)
        own_redis.kill()
        for number, parts in enumerate(started):
            admitted = 0
            with pytest.raises(StoreUnavailable, match="headroom is used up"):
                for n in range(100):
                    admitted += len(await burst(parts, who, 1, f"alone{number}-{n}", hold=10, cost=10))
            assert admitted == (42, 40)[number]  # the first had not seen the last 50 of the other
            denial = await parts.admit(who, f"never{number}.1", hold=1001)
            assert isinstance(denial, Denial) and denial.refusal.never and denial.refusal.limit == 1000
        own_redis.forget()
        own_redis.start()
        await back(started)
        for parts in started:
            assert await parts.ledger.flush(5)
        denial = await started[0].admit(who, "after.1", hold=1)
        assert isinstance(denial, Denial) and denial.refusal.used == 200 + 820
        for parts in started:
            await parts.sync.sync_once()
        assert set((await started[0].spent("org_a")).values()) == {1020}


async def test_headroom_that_nobody_knows_is_closed(tmp_path: Path, own_redis: RedisServer) -> None:
    """A budget whose headroom was last seen more than 10 s before the outage, or never, admits nothing."""
    who = one_key("org_a", budget(1000, rpm=10**6))
    async with ledgers(tmp_path, own_redis, 1, BOUNDED) as (parts,):
        await burst(parts, who, 1, "seen", cost=1)
        parts.store._offset_us += 10_500_000  # type: ignore[attr-defined]
        own_redis.kill()
        with pytest.raises(StoreUnavailable, match="was not known when the outage began"):
            await parts.admit(who, "a.1", hold=1)
        assert len(await burst(parts, limited(5), 1, "limit", cost=1)) == 1
        own_redis.forget()
        own_redis.start()
        await back([parts])


@pytest.mark.parametrize(
    ("modes", "limits", "budgets", "both"),
    [
        (CLOSED, "closed", "closed", "closed"),
        (OPEN, "open", "open", "open"),
        (BOUNDED, "bounded", "bounded", "bounded"),
        (OutageModes(OutageMode.CLOSED, OutageMode.OPEN), "closed", "open", "closed"),
        (OutageModes(OutageMode.OPEN, OutageMode.CLOSED), "open", "closed", "closed"),
        (OutageModes(OutageMode.OPEN, OutageMode.BOUNDED), "open", "bounded", "bounded"),
    ],
)
async def test_each_concern_has_its_mode(
    tmp_path: Path, own_redis: RedisServer, modes: OutageModes, limits: str, budgets: str, both: str
) -> None:
    """For a request that has both concerns the stricter outcome wins; one that has none is served; and whatever was
    admitted is charged exactly."""
    asked = {
        "limits": (one_key("org_l", Policy(windows=(Window(Unit.REQUESTS, 8),))), limits),
        "budgets": (one_key("org_b", Policy(budgets=budget(80).budgets)), budgets),
        "both": (one_key("org_x", budget(80, rpm=8)), both),
        "none": (one_key("org_n", Policy()), "open"),
    }
    async with ledgers(tmp_path, own_redis, 2, modes) as started:
        parts, admitted = started[0], dict.fromkeys(asked, 0)
        for who, _ in asked.values():
            await burst(parts, who, 1, "known", hold=0, cost=0)
        own_redis.kill()
        for name, (who, mode) in asked.items():
            for n in range(20):
                try:
                    admitted[name] += len(await burst(parts, who, 1, f"{name}{n}", hold=10, cost=7))
                except StoreUnavailable:
                    assert mode != "open"
            alone = admitted[name]
            assert alone == {"closed": 0, "open": 20}.get(mode, alone)
            assert mode != "bounded" or 0 < alone <= 5
        own_redis.forget()
        own_redis.start()
        await back(started)
        assert await parts.ledger.flush(5)
        for name, (who, _) in asked.items():
            await parts.sync.sync_once()
            (spent,) = set((await parts.spent(who.root)).values())
            assert spent == 7 * admitted[name]


async def test_a_frozen_redis_counts_as_away(tmp_path: Path, own_redis: RedisServer) -> None:
    """Requests under way wait for the deadline and are then decided alone; the next ones do not wait at all. Woken
    up, Redis keeps none of the admissions that it was asked for, but those that were made without it."""
    who = limited(100)
    async with ledgers(tmp_path, own_redis, 1, BOUNDED) as (parts,):
        await burst(parts, who, 10, "before", cost=1)
        own_redis.freeze()
        under_way = await asyncio.gather(*(parts.admit(who, f"w{n}.1", hold=10, tokens=10) for n in range(20)))
        grants = [grant for grant in under_way if isinstance(grant, Grant)]
        assert len(grants) == 20 and all(grant.reply.degraded == "limits" for grant in grants)
        begun = time.process_time()
        grants += await burst(parts, who, 30, "alone")
        assert time.process_time() - begun < 0.5
        assert len(grants) == 50
        own_redis.thaw()
        await back([parts])
        (grant,) = await burst(parts, who, 1, "after")
        for each in (*grants, grant):
            parts.ledger.settle(each, 1, USAGE)
        assert await parts.ledger.flush(5)
        (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.REQUESTS]
        assert state.used == 61


async def test_a_push_that_was_lost_is_pushed_once(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis got the push, its reply did not arrive: it is sent again under its id and counts once, and what was
    admitted in between is pushed under another."""
    who = limited(100)
    async with ledgers(tmp_path, own_redis, 1, BOUNDED) as (parts,):
        await burst(parts, who, 5, "before", cost=1)
        own_redis.kill()
        assert len(await burst(parts, who, 20, "alone", cost=1)) == 20
        push = parts.store.push
        lost: list[bool] = []

        async def lose_first(*arguments: object) -> bool:
            answer = await push(*arguments)  # type: ignore[arg-type]
            if not lost:
                lost.append(answer)
                await burst(parts, who, 0, "none")
                raise StoreUnavailable("its reply was lost")
            return answer

        monkeypatch.setattr(parts.store, "push", lose_first)
        own_redis.start()
        await until(lambda: bool(lost))
        await until(lambda: parts.ledger.outage.degraded is not None)
        await burst(parts, who, 3, "between", cost=1)
        await back([parts])
        assert lost == [True]
        (grant,) = await burst(parts, who, 1, "after", cost=1)
        assert grant.reply.logs[0].requests == 5 + 20 + 3 + 1


async def test_a_redis_that_takes_no_writes_counts_as_away(tmp_path: Path, own_redis: RedisServer) -> None:
    """It answers pings, but is out of memory: the probe writes, too, so the breaker stays open until it is mended."""
    who = limited(20)
    async with ledgers(tmp_path, own_redis, 1, BOUNDED) as (parts,):
        assert len(await burst(parts, who, 5, "before", cost=1)) == 5
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        assert len(await burst(parts, who, 5, "alone", cost=1)) == 5
        await asyncio.sleep(0.6)
        assert parts.ledger.outage.state != "closed"
        assert len(await burst(parts, who, 20, "more", cost=1)) == 10
        own_redis.command("CONFIG", "SET", "maxmemory", "0")
        await back([parts])
        assert await burst(parts, who, 5, "after", cost=1) == []


async def test_a_server_of_a_cluster_is_away_alone(tmp_path: Path, redis_cluster: RedisCluster) -> None:
    """Organisations on the other servers are decided by Redis as ever."""
    policy = Policy(windows=(Window(Unit.REQUESTS, 10),))
    parts = await Parts.start(tmp_path, redis_cluster.url, Clock(time.time_ns() // 1000), BOUNDED)
    try:
        roots = {parts.store.server(f"org_{n}"): f"org_{n}" for n in range(100)}
        assert len(roots) == 3
        asked = {server: one_key(root, policy) for server, root in roots.items()}
        for who in asked.values():
            assert len(await burst(parts, who, 2, "before", cost=1)) == 2
        dead = redis_cluster.servers[0]
        dead.kill()
        for server, who in asked.items():
            decision = await parts.admit(who, "during.1", hold=1)
            assert isinstance(decision, Grant)
            assert decision.reply.degraded == ("limits" if server.endswith(f":{dead.port}") else "")
            parts.ledger.void(decision)
        dead.start()
        redis_cluster.settle()
        await back([parts])
    finally:
        if redis_cluster.servers[0].process is None:
            redis_cluster.servers[0].start()
        redis_cluster.settle()
        await parts.stop()


async def test_what_is_admitted_during_a_slow_way_back_is_told_too(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that has waited too long for the way back is decided alone; Redis learns of its weight, hold and slot
    before it is asked again."""
    who = one_key("org_a", budget(1000, rpm=100, concurrency=50))
    async with ledgers(tmp_path, own_redis, 1, BOUNDED) as (parts,):
        await burst(parts, who, 1, "before", hold=10, cost=10)
        own_redis.kill()
        first = await burst(parts, who, 2, "alone", hold=100)
        push, gate, arrived = parts.store.push, asyncio.Event(), asyncio.Event()

        async def slow(*arguments: object) -> bool:
            arrived.set()
            await gate.wait()
            return await push(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(parts.store, "push", slow)
        own_redis.forget()
        own_redis.start()
        await arrived.wait()
        parts.ledger._timeout_us = 10_000
        second = await burst(parts, who, 1, "impatient", hold=100)
        parts.ledger._timeout_us = 1_000_000
        assert second[0].reply.degraded
        gate.set()
        await back([parts])
        (last,) = await burst(parts, who, 1, "after", hold=100)
        assert last.reply.logs[0].requests == 5 and last.reply.slots == (4,)
        assert last.reply.counters[0].held == 400
        for grant in (*first, *second, last):
            parts.ledger.settle(grant, 50, USAGE)
        assert await parts.ledger.flush(5)
        assert {s.kind: s.used for s in await parts.ledger.limits(who)}[LimitKind.BUDGET] == 210


async def test_a_flushed_redis_does_not_fill_a_limit_again(tmp_path: Path, own_redis: RedisServer) -> None:
    """Nobody noticed an outage: the organisation is loaded anew, and its windows are as they were last seen."""
    who = limited(20)
    async with ledgers(tmp_path, own_redis, 1, BOUNDED) as (parts,):
        assert len(await burst(parts, who, 30, "fill", cost=1)) == 20
        own_redis.command("FLUSHALL")
        assert await burst(parts, who, 30, "again", cost=1) == []


async def test_two_outages_in_one_window_share_one_share(tmp_path: Path, own_redis: RedisServer) -> None:
    """What was admitted alone in the first outage is not admitted again in the second, though nothing was asked of
    Redis in between."""
    who = limited(40)
    async with ledgers(tmp_path, own_redis, 2, BOUNDED) as started:
        parts = started[0]
        for number in range(2):
            own_redis.kill()
            admitted = await burst(parts, who, 40, f"alone{number}", cost=1)
            assert len(admitted) == (20, 0)[number]
            own_redis.forget()
            own_redis.start()
            await back(started)


async def test_a_way_back_that_fails_leaves_nothing_on_its_way(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis fails again while it is told what was admitted alone. What was to be held again is not told later, when
    it may have been settled: such a hold would stay for ever."""
    async with ledgers(tmp_path, own_redis, 1, OPEN) as (parts,):
        outage, store, told = parts.ledger.outage, parts.store, list[str]()
        (grant,) = await burst(parts, limited(5), 1, "flying")
        await until(lambda: not parts.ledger._recovery.state("org_a").recovery)
        claim, reassert = store.claim, store.reassert

        async def failing(*args: object) -> None:
            monkeypatch.setattr(store, "claim", claim)
            told.append("failed")
            raise StoreUnavailable("gone again", sent=True)

        async def slow(root: str, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
            while "failed" not in told:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            held = await reassert(root, producer, number, dispatches)
            told.append("held")
            return held

        monkeypatch.setattr(store, "claim", failing)
        monkeypatch.setattr(store, "reassert", slow)
        with pytest.raises(StoreUnavailable):
            await outage._reassert("org_a", 0, (grant,))
        assert told == ["failed", "held"]
        parts.ledger.settle(grant, 5, USAGE)
        assert await parts.ledger.flush(10)
        assert own_redis.command("HLEN", "hold:{org_a}") == b":0\r\n"
