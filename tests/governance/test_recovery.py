"""Promise 3 through the loss of Redis: budgets are admitted under only when every producer has told what it knows."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.governance.parts import Clock, Parts, budget, one_key
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer, wait_until
from tollkeeper.domain.admission import Denial, Grant, LimitKind
from tollkeeper.domain.entries import Dispatch
from tollkeeper.domain.errors import Recovering, StoreUnavailable, Unavailable
from tollkeeper.domain.policy import Policy
from tollkeeper.domain.recovery import Ready
from tollkeeper.domain.usage import Usage
from tollkeeper.storage.database import Database


@pytest.fixture
def clock() -> Clock:
    """The real time: Redis has its own clock."""
    return Clock(time.time_ns() // 1000)


@pytest.fixture
def saving_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Killed and started again it is as it was at its last SAVE."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


async def patiently(parts: Parts, attempt: str, *, hold: int) -> Grant | Denial:
    """Ask until there is a decision."""
    for _ in range(50):
        try:
            return await parts.admit(one_key("org_a", budget(1000)), attempt, hold=hold)
        except Unavailable:
            await asyncio.sleep(0.02)
    raise AssertionError("no decision")


@pytest.mark.parametrize("loss", ["flushed", "restarted"])
async def test_an_idle_producer_is_waited_for(
    tmp_path: Path, own_redis: RedisServer, clock: Clock, loss: str
) -> None:
    """One gateway has money in flight and unsynced spend, and nothing to do. Redis loses all; the other gateway's
    next admission must count both, though only the idle one knows of them."""
    busy = await Parts.start(tmp_path, own_redis.url, clock)
    idle = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await busy.spend(who, "first.1", hold=10, cost=0)
    await idle.spend(who, "unsynced.1", hold=100, cost=100)
    flying = await idle.admit(who, "flying.1", hold=600)
    assert isinstance(flying, Grant)
    idle.ledger.dispatched(flying)
    assert await idle.ledger.flush(5) and await busy.ledger.flush(5)
    if loss == "flushed":
        own_redis.command("FLUSHALL")
    else:
        own_redis.kill()
        own_redis.start()
    assert isinstance(await patiently(busy, "over.1", hold=301), Denial)
    fits = await patiently(busy, "fits.1", hold=300)
    assert isinstance(fits, Grant)
    busy.ledger.void(fits)
    idle.ledger.settle(flying, 50, Usage())
    for parts in (busy, idle):
        await parts.stop()


async def test_who_is_not_on_the_list_is_waited_for(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """Redis loses all while a gateway cannot ask the database who is there: it knows of no other, and yet its next
    admission counts what another holds."""
    busy = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await busy.spend(who, "first.1", hold=10, cost=0)
    assert await busy.ledger._recovery.gates._open.named(busy.ledger.producer) == [busy.ledger.producer]
    idle = await Parts.start(tmp_path, own_redis.url, clock)
    flying = await idle.admit(who, "flying.1", hold=700)
    assert isinstance(flying, Grant)
    idle.ledger.dispatched(flying)
    assert await busy.ledger.flush(5)
    away = await Database.open("postgresql://nobody@127.0.0.1:1/nowhere", timeout_s=0.2)
    busy.ledger._recovery.gates._open._spend = away.spend
    own_redis.command("FLUSHALL")
    assert isinstance(await patiently(busy, "over.1", hold=301), Denial)
    fits = await patiently(busy, "fits.1", hold=300)
    assert isinstance(fits, Grant)
    for parts, grant in ((busy, fits), (idle, flying)):
        parts.ledger.void(grant)
        await parts.stop()
    await away.close()


async def test_a_dead_producer_is_waited_for_until_the_grace_has_passed(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """A producer that is neither closed nor back: requests under a budget fail in time and say why, others go on;
    after the grace they go on as well."""
    parts = await Parts.start(tmp_path, own_redis.url, clock, grace_s=2.5)
    who, unlimited = one_key("org_a", budget(1000)), one_key("org_a", Policy())
    await parts.spend(who, "first.1", hold=10, cost=5)
    await parts.ledger.flush(5)
    await parts.sync.sync_once()
    await parts.database.spend.enrol_producer("p_dead", clock())
    own_redis.command("FLUSHALL")
    with pytest.raises(Recovering, match="waits for p_dead"):
        await parts.admit(who, "early.1", hold=1)
    free = await parts.admit(unlimited, "free.1", hold=1)
    assert isinstance(free, Grant)
    parts.ledger.void(free)
    later = await patiently(parts, "later.1", hold=995)
    assert isinstance(later, Grant)
    parts.ledger.void(later)
    await parts.stop()


async def test_a_root_that_waits_says_so_again(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """Redis dies once more and forgets who waits: the others still hear of it, and none waits for the whole grace."""
    parts = await Parts.start(tmp_path, own_redis.url, clock, grace_s=60)
    await parts.spend(one_key("org_a", budget(1000)), "first.1", hold=10, cost=5)
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    await parts.database.spend.enrol_producer("p_dead", clock())
    own_redis.command("FLUSHALL")
    with pytest.raises(Recovering, match="waits for p_dead"):
        await parts.admit(one_key("org_a", budget(1000)), "early.1", hold=1)
    assert own_redis.command("DEL", "recovering") == b":1\r\n"
    waits = lambda: own_redis.command("ZSCORE", "recovering", "org_a") != b"$-1\r\n"  # noqa: E731
    await asyncio.to_thread(wait_until, waits, "the root says again that it waits", 60)
    await parts.stop()


async def test_a_closed_or_resting_producer_is_not_waited_for(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await parts.spend(who, "first.1", hold=10, cost=5)
    await parts.ledger.flush(5)
    await parts.sync.sync_once()
    for producer in ("p_closed", "p_resting"):
        await parts.database.spend.enrol_producer(producer, clock())
    await parts.database.spend.retire_producer("p_closed", clock())
    await parts.database.spend.rest_producer("p_resting", clock())
    own_redis.command("FLUSHALL")
    grant = await parts.admit(who, "next.1", hold=995)
    assert isinstance(grant, Grant)
    parts.ledger.void(grant)
    await parts.stop()
    reopened = await Parts.start(tmp_path, own_redis.url, clock)
    assert parts.ledger.producer in await reopened.database.spend.open_producers(), "it is not at rest any more"
    await reopened.stop()


async def test_a_producer_that_stopped_with_all_in_the_database_is_at_rest(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    await parts.spend(one_key("org_a", budget(1000)), "first.1", hold=10, cost=5)
    spend = parts.database.spend
    assert await spend.open_producers() == [parts.ledger.producer]
    assert await parts.ledger.flush(5)
    await parts.closer.stop()
    await parts.sync.stop()
    await parts.ledger.stop()
    assert await spend.open_producers() == []
    await parts.store.stop()
    await parts.database.close()


async def test_a_root_that_was_never_used_waits_for_nobody(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """Nothing of it can be lost: its first request goes through at once, whoever is dead."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    await parts.database.spend.enrol_producer("p_dead", clock())
    await parts.spend(one_key("org_new", budget(1000)), "first.1", hold=10, cost=5)
    await parts.stop()


async def test_a_promoted_replica_is_not_trusted_before_all_have_sent_again(
    tmp_path: Path, saving_redis: RedisServer, clock: Clock
) -> None:
    """Memory that moved back without being empty: another life of the server, with an older state, takes no budget
    until what it lacks is there, even from a producer that sees nothing missing."""
    busy = await Parts.start(tmp_path, saving_redis.url, clock)
    idle = await Parts.start(tmp_path, saving_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await busy.spend(who, "first.1", hold=10, cost=0)
    assert await busy.ledger.flush(5)
    saving_redis.command("SAVE")
    flying = await idle.admit(who, "flying.1", hold=900)  # after the save: the next life has never heard of it
    assert isinstance(flying, Grant)
    idle.ledger.dispatched(flying)
    saving_redis.kill()
    saving_redis.start()
    decision = await patiently(busy, "over.1", hold=101)
    assert isinstance(decision, Denial), decision
    idle.ledger.settle(flying, 50, Usage())
    for parts in (busy, idle):
        await parts.stop()


async def test_an_older_state_is_seeded_though_its_producers_are_gone(
    tmp_path: Path, saving_redis: RedisServer, clock: Clock
) -> None:
    """Memory that moved back lacks what only the database knows: the producer has stopped, its outbox is empty. Who
    asks first, and never had to do with that root, must not admit on the old sums."""
    other = await Parts.start(tmp_path, saving_redis.url, clock)
    ended = await Parts.start(tmp_path, saving_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await ended.spend(who, "first.1", hold=10, cost=10)
    assert await ended.ledger.flush(5)
    saving_redis.command("SAVE")
    await ended.spend(who, "forgotten.1", hold=890, cost=890)
    assert await ended.ledger.flush(5)
    await ended.sync.sync_once()
    await ended.stop()
    saving_redis.kill()
    saving_redis.start()
    decision = await patiently(other, "over.1", hold=101)
    assert isinstance(decision, Denial), decision
    (state,) = [s for s in await other.ledger.limits(who) if s.kind is LimitKind.BUDGET]
    assert (state.used, state.held) == (900, 0)
    await other.stop()


async def test_an_older_state_is_seeded_though_nobody_asks(
    tmp_path: Path, saving_redis: RedisServer, clock: Clock
) -> None:
    """The database has all entries, nothing is under way and no request comes: budgets are told as they are, and no
    hold of before is left."""
    parts = await Parts.start(tmp_path, saving_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await parts.spend(who, "first.1", hold=10, cost=10)
    held = await parts.admit(who, "held.1", hold=500)
    assert isinstance(held, Grant)
    parts.ledger.dispatched(held)
    assert await parts.ledger.flush(5)
    saving_redis.command("SAVE")
    parts.ledger.settle(held, 490, Usage())
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    saving_redis.kill()
    saving_redis.start()
    told = None
    async with asyncio.timeout(60):
        while told != (500, 0):
            with suppress(StoreUnavailable):
                (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.BUDGET]
                told = (state.used, state.held)
            await asyncio.sleep(0.05)
    assert await parts.store.held("org_a") == []
    await parts.stop()


async def test_what_is_covered_amid_a_recovery_is_not_missing(
    tmp_path: Path, saving_redis: RedisServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that read before the loss commits when the database has been compared with already, and the outbox
    forgets the entry before it is sent again: then it comes from the database."""
    monkeypatch.setattr("tollkeeper.governance.outbox.SEGMENT_BYTES", 8192)  # so that it soon forgets
    parts = await Parts.start(tmp_path, saving_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await parts.spend(who, "first.1", hold=10, cost=10)
    assert await parts.ledger.flush(5)
    saving_redis.command("SAVE")
    await parts.spend(who, "forgotten.1", hold=890, cost=890)
    for n in range(40):
        await parts.spend(one_key("org_b", budget(1000)), f"other{n}.1", hold=1, cost=1)
    assert await parts.ledger.flush(5)
    before_the_loss, others = await parts.store.snapshot("org_a"), await parts.store.snapshot("org_b")
    assert before_the_loss is not None and others is not None
    assert await parts.database.spend.save(others.content, clock())
    parts.ledger.covered(others.content)
    saving_redis.kill()
    saving_redis.start()
    marks, asked = parts.store.marks, count(1)

    async def late(root: str) -> Mapping[str, int] | None:
        if next(asked) == 3:  # after the ones that are compared with what was acknowledged, and with the database
            assert await parts.database.spend.save(before_the_loss.content, clock())
            parts.ledger.covered(before_the_loss.content)
        return await marks(root)

    monkeypatch.setattr(parts.store, "marks", late)
    decision = await patiently(parts, "over.1", hold=101)
    assert isinstance(decision, Denial), decision
    (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.BUDGET]
    assert (state.used, state.held) == (900, 0)
    await parts.stop()


async def test_what_is_settled_when_a_recovery_ends_is_sent(
    tmp_path: Path, own_redis: RedisServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that is issued while this producer tells that it has sent all is sent, too, without waiting for
    another one of its root."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(1000))
    await parts.spend(who, "first.1", hold=10, cost=10)
    assert await parts.ledger.flush(5)
    flying = await parts.admit(who, "flying.1", hold=100)
    assert isinstance(flying, Grant)
    parts.ledger.dispatched(flying)
    ready, told = parts.store.ready, asyncio.Event()

    async def settles(root: str, run: str, producer: str) -> Ready:
        if not told.is_set():
            told.set()
            parts.ledger.settle(flying, 50, Usage())
        return await ready(root, run, producer)

    monkeypatch.setattr(parts.store, "ready", settles)
    own_redis.command("FLUSHALL")
    parts.ledger.recover("org_a")
    await told.wait()
    assert await parts.ledger.flush(5)
    await parts.stop()


@pytest.mark.parametrize("loss", ["cut", "flushed"])
async def test_a_recovery_ends_though_requests_keep_coming(
    tmp_path: Path, own_redis: RedisServer, clock: Clock, loss: str
) -> None:
    """Tasks that admit and settle without a pause: there is always an end that was not sent yet. Slots and holds are
    released all the same, and every charge arrives."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(10**12, rpm=10**6, concurrency=3_000))
    seen: Counter[str] = Counter()

    async def requests(name: str) -> None:
        for n in count():
            try:
                grant = await parts.admit(who, f"{name}.{n}.1", hold=100)
            except Unavailable:
                await asyncio.sleep(0.001)
                continue
            if isinstance(grant, Denial):
                seen[grant.refusal.kind.name] += 1
                return
            parts.ledger.dispatched(grant)
            parts.ledger.settle(grant, 7, Usage(input_tokens=30))
            seen["settled"] += 1

    async def settled(more: int) -> None:
        enough = seen["settled"] + more
        async with asyncio.timeout(60):
            while seen["settled"] < enough and set(seen) <= {"settled"}:
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(requests(f"t{number}")) for number in range(64)]
    try:
        await settled(1_000)
        if loss == "cut":
            own_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        else:
            own_redis.command("FLUSHALL")
        await settled(10_000)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert set(seen) == {"settled"}, f"refused, though 64 at most were in flight: {seen}"
    assert await parts.ledger.flush(30)
    await parts.sync.sync_once()
    assert sum((await parts.spent("org_a")).values()) == 7 * seen["settled"]
    await parts.stop()


async def test_what_is_to_be_held_again_and_comes_late_holds_nothing(
    tmp_path: Path, own_redis: RedisServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss a gateway tells what it has in flight. The connection is cut before Redis has that, so it is told
    again; the attempt is settled, and then the first message arrives."""

    def scripts_run() -> int:
        (calls,) = re.findall(rb"cmdstat_evalsha:calls=(\d+)", own_redis.command("INFO", "commandstats"))
        return int(calls)

    who = one_key("org_a", budget(1000))
    async with Proxy(own_redis.socket) as proxy:
        parts = await Parts.start(tmp_path, proxy.url, clock)
        flying = await parts.admit(who, "flying.1", hold=600)
        assert isinstance(flying, Grant)
        parts.ledger.dispatched(flying)
        reassert, told = parts.store.reassert, asyncio.Event()

        async def cut_off(root: str, producer: str, number: int, dispatches: Sequence[Dispatch]) -> bool:
            if told.is_set():
                return await reassert(root, producer, number, dispatches)
            told.set()
            proxy.hold_back()
            telling = asyncio.create_task(reassert(root, producer, number, dispatches))
            while not proxy.kept:
                await asyncio.sleep(0.01)
            proxy.cut()
            return await telling

        monkeypatch.setattr(parts.store, "reassert", cut_off)
        own_redis.command("FLUSHALL")
        parts.ledger.recover("org_a")
        await told.wait()
        await parts.ledger.warm("org_a")
        assert own_redis.command("HLEN", "hold:{org_a}") == b":1\r\n"
        parts.ledger.settle(flying, 50, Usage())
        assert await parts.ledger.flush(60)
        before = scripts_run()
        proxy.release()
        await asyncio.to_thread(wait_until, lambda: scripts_run() > before, "the late message", 60)
        (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.BUDGET]
        assert (state.used, state.held) == (50, 0)
        assert own_redis.command("HLEN", "hold:{org_a}") == b":0\r\n"
        await parts.stop()


@pytest.mark.parametrize("then", ["recovering", "away"])
async def test_an_admission_that_ran_unheard_is_voided(
    tmp_path: Path, own_redis: RedisServer, clock: Clock, then: str
) -> None:
    """Redis admits and its answer is lost; it dies, and what is asked again finds it recovering, or not at all. The
    hold, which it has on its disk, does not stay for ever."""

    def holds() -> bytes:
        return own_redis.command("HLEN", "hold:{org_a}")

    async with Proxy(own_redis.socket) as proxy:
        parts = await Parts.start(tmp_path, proxy.url, clock)
        await parts.spend(one_key("org_a", budget(1000)), "first.1", hold=10, cost=5)
        assert await parts.ledger.flush(5)
        await parts.database.spend.enrol_producer("p_dead", clock())
        proxy.swallowing = True
        asking = asyncio.create_task(parts.admit(one_key("org_a", budget(1000)), "unheard.1", hold=600))
        await asyncio.to_thread(wait_until, lambda: holds() == b":1\r\n", "the hold")
        own_redis.kill()
        proxy.swallowing = False
        proxy.cut()
        if then == "recovering":
            await asyncio.to_thread(own_redis.start)
        with pytest.raises(Recovering if then == "recovering" else StoreUnavailable):
            await asking
        if then == "away":
            await asyncio.to_thread(own_redis.start)
        assert await parts.ledger.flush(10)
        assert holds() == b":0\r\n"
        await parts.stop()


async def test_an_admission_that_comes_late_holds_nothing(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """Its connection is cut before Redis has it, it is repeated, admitted and settled; then the first one arrives."""
    who = one_key("org_a", budget(1000))
    async with Proxy(own_redis.socket) as proxy:
        parts = await Parts.start(tmp_path, proxy.url, clock)
        await parts.spend(who, "first.1", hold=10, cost=5)
        assert await parts.ledger.flush(5)
        proxy.hold_back()
        asking = asyncio.create_task(parts.admit(who, "late.1", hold=600))
        await asyncio.sleep(0.1)
        proxy.cut()
        grant = await asking
        assert isinstance(grant, Grant)
        parts.ledger.settle(grant, 50, Usage())
        while parts.ledger.unacknowledged:
            await asyncio.sleep(0.01)
        proxy.release()
        await asyncio.to_thread(
            wait_until, lambda: own_redis.command("HLEN", "hold:{org_a}") == b":1\r\n", "the late admission"
        )
        assert await parts.ledger.flush(5)
        assert own_redis.command("HLEN", "hold:{org_a}") == b":0\r\n"
        (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.BUDGET]
        assert (state.used, state.held) == (55, 0)
        await parts.stop()
