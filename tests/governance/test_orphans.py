"""Promise 4 without the disk of a gateway, and with one taken for dead: charged once, and truly in the end."""

import asyncio
import itertools
import shutil
import time
from pathlib import Path

import pytest

from tests.governance.parts import Clock, Parts, abandon, budget, one_key
from tests.servers.redis import RedisServer
from tollkeeper.domain.admission import Denial, Grant, LimitKind
from tollkeeper.domain.charges import Charge
from tollkeeper.domain.entries import Dispatch, Origin, is_buried
from tollkeeper.domain.policy import Policy, Principal
from tollkeeper.domain.usage import Usage

WHO = one_key("org_a", budget(1000), Policy())


@pytest.fixture
def clock() -> Clock:
    """The real time: Redis has its own clock."""
    return Clock(time.time_ns() // 1000)


async def spent(parts: Parts, who: Principal = WHO) -> tuple[int, int]:
    """Spent and held of the budget."""
    (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.BUDGET]
    return state.used - state.held, state.held


async def close_orphans(parts: Parts) -> list[str]:
    """All that are due."""
    closed = []
    while (orphan := await parts.orphans.close_one()) is not None:
        closed.append(orphan)
    return closed


async def test_an_orphan_is_closed_by_a_peer(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """A gateway dies with its disk: what it held is presumed, listed with the database, and its hold is gone."""
    dead, peer = [await Parts.start(tmp_path, own_redis.url, clock) for _ in range(2)]
    await dead.spend(WHO, "done.1", hold=50, cost=20)
    flying = await dead.admit(WHO, "flying.1", hold=300)
    assert isinstance(flying, Grant)
    dead.ledger.dispatched(flying)
    assert await dead.ledger.flush(5)
    await abandon(dead)
    shutil.rmtree(dead.ledger._outbox.folder)
    assert await close_orphans(peer) == [], "it was seen a moment ago"
    clock.now_us += 601_000_000
    await peer.ledger._beat()
    assert await close_orphans(peer) == [dead.ledger.producer]
    assert await spent(peer) == (320, 0)
    await peer.sync.sync_once()
    assert set((await peer.spent("org_a")).values()) == {320}
    (listed,) = await peer.database.spend.listed(status="presumed")
    assert (listed.attempt, listed.charge.cost_nano, listed.presumed_nano) == ("flying.1", 300, 300)
    assert peer.ledger.producer in await peer.database.spend.open_producers()
    assert dead.ledger.producer not in await peer.database.spend.open_producers()
    await dead.database.close()
    await peer.stop()


async def test_an_orphan_that_comes_back_goes_on_under_a_new_name(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """A gateway that only lost the database is closed while it lives. It notices at its next step; what it held was
    presumed, and its true costs replace that, each once: entries refused after the close, too."""
    lost, peer = [await Parts.start(tmp_path, own_redis.url, clock) for _ in range(2)]
    await lost.spend(WHO, "before.1", hold=50, cost=20)
    grants = [await lost.admit(WHO, f"flying{n}.1", hold=100) for n in range(3)]
    for grant in grants:
        assert isinstance(grant, Grant)
        lost.ledger.dispatched(grant)
    assert await lost.ledger.flush(5)
    clock.now_us += 601_000_000
    await peer.ledger._beat()
    assert await close_orphans(peer) == [lost.ledger.producer]
    old = lost.ledger.producer
    assert await spent(peer) == (320, 0)
    assert isinstance(grants[0], Grant) and isinstance(grants[1], Grant) and isinstance(grants[2], Grant)
    lost.ledger.settle(grants[0], 7, Usage(input_tokens=3))  # refused: it is buried
    for _ in range(200):
        if lost.ledger.producer != old:
            break
        await asyncio.sleep(0.01)
    assert lost.ledger.producer != old
    lost.ledger.settle(grants[1], 11, Usage(input_tokens=4))
    lost.ledger.void(grants[2])
    more = await lost.admit(WHO, "more.1", hold=10)
    assert isinstance(more, Grant) and more.demand.producer == lost.ledger.producer
    lost.ledger.dispatched(more)
    lost.ledger.settle(more, 2, Usage())
    assert await lost.ledger.flush(10)
    assert await spent(peer) == (20 + 7 + 11 + 0 + 2, 0)
    await lost.sync.sync_once()
    assert set((await peer.spent("org_a")).values()) == {40}
    listed = {c.attempt: c for c in await peer.database.spend.listed()}
    assert {a: (c.charge.status, c.charge.cost_nano) for a, c in listed.items()} == {
        "flying0.1": ("settled", 7),
        "flying1.1": ("settled", 11),
        "flying2.1": ("settled", 0),
    }
    for parts in (peer, lost):
        await parts.stop()


async def test_the_disk_of_an_orphan_turns_up(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """It was closed without its disk; a later start finds the outbox: entries that never arrived count, the rest not
    again, and what it never settled stays as it was presumed."""
    dead, peer = [await Parts.start(tmp_path, own_redis.url, clock) for _ in range(2)]
    await dead.spend(WHO, "arrived.1", hold=50, cost=20)
    flying, unsent = [await dead.admit(WHO, f"{name}.1", hold=100) for name in ("flying", "unsent")]
    assert isinstance(flying, Grant) and isinstance(unsent, Grant)
    for grant in (flying, unsent):
        dead.ledger.dispatched(grant)
    assert await dead.ledger.flush(5)
    dead.ledger._recovery.state("org_a").holds_back = True
    dead.ledger.settle(unsent, 3, Usage())  # on its disk only
    await abandon(dead)
    clock.now_us += 601_000_000
    await peer.ledger._beat()
    assert await close_orphans(peer) == [dead.ledger.producer]
    assert await spent(peer) == (20 + 100 + 100, 0)
    finder = await Parts.start(tmp_path, own_redis.url, clock)
    assert finder.closer.open == 0
    assert await spent(peer) == (20 + 100 + 3, 0)
    await dead.database.close()
    for parts in (finder, peer):
        await parts.stop()


async def test_holds_of_a_closed_producer_that_are_there_again(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """It was closed when Redis had lost what it held; a Redis that went back in time has it again: presumed once."""
    dead, peer = [await Parts.start(tmp_path, own_redis.url, clock) for _ in range(2)]
    await dead.spend(WHO, "done.1", hold=50, cost=20)
    flying = await dead.admit(WHO, "flying.1", hold=300)
    assert isinstance(flying, Grant)
    dead.ledger.dispatched(flying)
    assert await dead.ledger.flush(5)
    await abandon(dead)
    shutil.rmtree(dead.ledger._outbox.folder)
    await peer.database.spend.retire_producer(dead.ledger.producer, clock())
    assert await peer.orphans.sweep("org_a") == 1
    assert await peer.ledger.flush(5)
    assert await peer.orphans.sweep("org_a") == 0
    assert await spent(peer) == (320, 0)
    await dead.database.close()
    await peer.stop()


async def test_what_cannot_be_placed_is_listed(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """A hold of an orphan that got further in a memory that was lost: nobody can tell if it settled. Nothing is
    charged, it is counted and listed, and an operator can say what it cost."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    dead = await Parts.start(tmp_path, own_redis.url, clock)
    await dead.spend(WHO, "done.1", hold=50, cost=20)
    assert await dead.ledger.flush(5)
    (settled,) = dead.ledger._outbox.entries_above("org_a", 0)
    parts.ledger.bury("org_a", dead.ledger.producer)
    lost = Dispatch("lost.1", 300, settled.counters, (), ())
    parts.ledger.presume_for("org_a", lost, Origin(dead.ledger.producer, 0, held=True))
    assert await parts.ledger.flush(5)
    assert await spent(parts) == (20, 0)
    await parts.sync.sync_once()
    (listed,) = await parts.database.spend.listed(status="quarantined")
    assert (listed.attempt, listed.charge.cost_nano) == ("?lost.1", 300)
    assert "tollkeeper_entries_quarantined_total 1" in parts.metrics.exposition().decode()
    parts.ledger.correct("org_a", "lost.1", Charge(0, 250, 1, 0, 0, 0, listed.charge.known), "the provider's bill")
    assert await parts.ledger.flush(5)
    assert await spent(parts) == (270, 0)
    for each in (dead, parts):
        await each.stop()


async def test_no_order_undoes_a_correction(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """A gateway that was taken for dead comes back with the truth: before or after an operator's word on what was
    presumed, with the database knowing the first of them or not, and with all of Redis lost in between or not."""
    lost, peer = [await Parts.start(tmp_path, own_redis.url, clock) for _ in range(2)]
    cases = list(itertools.product(("truth", "correction"), (False, True), (False, True)))
    grants = []
    for n in range(len(cases)):
        grant = await lost.admit(one_key(f"org_{n}", budget(1000), Policy()), f"flying{n}.1", hold=300)
        assert isinstance(grant, Grant)
        lost.ledger.dispatched(grant)
        grants.append(grant)
    assert await lost.ledger.flush(60)
    clock.now_us += 601_000_000
    await peer.ledger._beat()
    assert await close_orphans(peer) == [lost.ledger.producer]
    await peer.sync.sync_once()
    for n, (first, known, flushed) in enumerate(cases):
        root, who = f"org_{n}", one_key(f"org_{n}", budget(1000), Policy())
        (presumed,) = await peer.database.spend.listed(attempt=f"flying{n}.1")
        assert (presumed.charge.status, presumed.charge.cost_nano) == ("presumed", 300)
        for step in (first, "correction" if first == "truth" else "truth"):
            if step == "truth":
                lost.ledger.settle(grants[n], 7, Usage(input_tokens=3))
            else:
                word = Charge(0, 250, 1, 5, 6, 0, presumed.charge.known)
                peer.ledger.correct(root, presumed.attempt, word, "the provider's bill")
            await arrived(lost, peer, root)
            if step == first == "truth":
                assert await spent(peer, who) == (7, 0)
            if step == first and known:
                await lost.sync.sync_once()
                await peer.sync.sync_once()
            if step == first and flushed:
                own_redis.command("FLUSHALL")
        for parts in (lost, peer, lost):
            await arrived(lost, peer, root)
            await parts.sync.sync_once()
        assert await spent(peer, who) == (250, 0), cases[n]
        assert set((await peer.spent(root)).values()) == {250}, cases[n]
        (listed,) = await peer.database.spend.listed(attempt=presumed.attempt)
        assert (listed.charge.status, listed.charge.cost_nano, listed.presumed_nano) == ("corrected", 250, 300)
    for parts in (peer, lost):
        await parts.stop()


async def arrived(lost: Parts, peer: Parts, root: str) -> None:
    """All that both have of a root is in Redis, as after their next heartbeats."""
    for parts in (lost, peer):
        assert await parts.ledger.flush(60)
        await asyncio.wait_for(parts.ledger._recover_soon(root), 60)


async def test_corrections(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """presumed < settled < corrected: an operator's word replaces a presumed charge, a later word that, and a truth
    that comes afterwards does not undo it; each in the periods of the admission, through the loss of Redis."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    grant = await parts.admit(WHO, "unknown.1", hold=100)
    assert isinstance(grant, Grant)
    parts.ledger.dispatched(grant)
    parts.ledger.settle(grant, 100, Usage(), presumed=True)
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    (listed,) = await parts.database.spend.listed()
    for cost in (40, 60):
        clock.now_us += 1
        corrected = Charge(0, cost, 1, 5, 6, 0, listed.charge.known)
        parts.ledger.correct(listed.root, listed.attempt, corrected, "the provider's bill")
        assert await parts.ledger.flush(5)
        assert await spent(parts) == (cost, 0)
    own_redis.command("FLUSHALL")
    assert isinstance(await parts.admit(WHO, "over.1", hold=941), Denial)
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    (listed,) = await parts.database.spend.listed(status="corrected")
    assert (listed.charge.cost_nano, listed.presumed_nano) == (60, 100)
    assert listed.charge.what_is_known().note == "the provider's bill"
    late = Charge(0, 55, 1, 0, 0, 0, listed.charge.known)
    clock.now_us -= 10  # an earlier word that comes late
    parts.ledger.correct(listed.root, listed.attempt, late, "")
    assert await parts.ledger.flush(5)
    assert await spent(parts) == (60, 0)
    await parts.stop()


async def test_marks_of_long_closed_producers_are_dropped(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """A week after its close: in the database and in Redis, and no snapshot brings them back."""
    dead, peer = [await Parts.start(tmp_path, own_redis.url, clock) for _ in range(2)]
    await dead.spend(WHO, "done.1", hold=50, cost=20)
    assert await dead.ledger.flush(5)
    await abandon(dead)
    shutil.rmtree(dead.ledger._outbox.folder)
    clock.now_us += 601_000_000
    await peer.ledger._beat()
    assert await close_orphans(peer) == [dead.ledger.producer]
    marks = await peer.store.marks("org_a") or {}
    assert is_buried(marks[dead.ledger.producer])
    stale = await peer.store.snapshot("org_a")
    assert stale is not None
    clock.now_us += 8 * 86_400_000_000
    await peer.ledger._beat()
    assert await peer.sync._whole(clock(), first=True)
    await peer.sync.sync_once()
    assert dead.ledger.producer not in (await peer.store.marks("org_a") or {})
    await peer.database.spend.save(stale.content, clock())  # a worker that was late by a week
    assert dead.ledger.producer not in (await peer.database.spend.load("org_a")).marks
    assert await spent(peer) == (20, 0)
    await peer.spend(WHO, "goes-on.1", hold=10, cost=1)
    await dead.database.close()
    await peer.stop()
