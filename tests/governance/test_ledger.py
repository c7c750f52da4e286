"""Promises 3 and 4: spend is charged once, through restarts, crashes and the loss of the store; budgets hold."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.governance.parts import Clock, Parts, abandon, budget, one_key
from tests.servers.redis import RedisServer
from tests.waiting import at_once
from tollkeeper.domain.admission import WEIGHT_MAX, Denial, Grant, LimitKind
from tollkeeper.domain.entries import is_buried
from tollkeeper.domain.errors import OutboxUnavailable, StoreUnavailable
from tollkeeper.domain.policy import Policy, TokenBucket, Unit, Window
from tollkeeper.domain.ports import RootSnapshot
from tollkeeper.domain.usage import Usage
from tollkeeper.governance import outbox as outbox_module
from tollkeeper.governance.store import Snapshot
from tollkeeper.storage.spend import StoredSpend

MONTH = "2026:11"


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Every test here runs on both stores."""
    if request.param == "memory":
        return None
    server: RedisServer = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    return server.url


@pytest.fixture
def clock() -> Clock:
    """The real time: Redis has its own clock, and both must agree on the month."""
    return Clock(time.time_ns() // 1000)


@pytest.fixture
async def parts(tmp_path: Path, url: str | None, clock: Clock) -> AsyncIterator[Parts]:
    made = await Parts.start(tmp_path, url, clock)
    yield made
    await made.stop()


def month() -> str:
    moment = time.gmtime()
    return f"{moment.tm_year}:{moment.tm_mon:02d}"


async def test_spend_reaches_database_exactly(parts: Parts) -> None:
    """Settled requests arrive in `spend` and `monthly_usage_summary`, with their tokens, once."""
    who = one_key("org_a", budget(10**9), Policy())
    for number in range(5):
        await parts.spend(who, f"r{number}.1", hold=1000, cost=100 + number)
    await parts.ledger.flush(5)
    await parts.sync.sync_once()
    await parts.sync.sync_once()
    assert await parts.spent("org_a") == {f"key_1:{month()}": 510, month(): 510}
    (row,) = await parts.database.spend.monthly_usage()
    assert (row.key_id, row.cost_nano, row.requests) == ("key_1", 510, 5)
    assert (row.input_tokens, row.output_tokens, row.cached_tokens) == (150, 60, 25)


async def test_an_entry_that_is_late_in_the_store_is_synced_when_it_comes(parts: Parts) -> None:
    """A sync that runs while an entry is on its way to the store is not the last one for it."""
    who, late = one_key("org_a", budget(10**9)), list[tuple[Any, ...]]()
    await parts.spend(who, "first.1", hold=1000, cost=100)
    apply = parts.store.apply
    parts.store.apply = lambda *call: late.append(call)  # type: ignore[method-assign]
    await parts.spend(who, "late.1", hold=1000, cost=10)
    await parts.sync.sync_once()
    parts.store.apply = apply  # type: ignore[method-assign]
    apply(*late.pop())
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    assert await parts.spent("org_a") == {f"key_1:{month()}": 110}


async def test_many_roots_are_written_together(parts: Parts) -> None:
    """A thousand roots must not cost a thousand transactions one after the other."""
    principals = [one_key(f"org_{number}", budget(10**9)) for number in range(150)]
    for who in principals:
        parts.ledger.charge(who, 7)
    assert await parts.ledger.flush(10)
    save_all, together = parts.database.spend.save_all, list[int]()

    async def counted(snapshots: Sequence[RootSnapshot], now_us: int) -> set[str]:
        together.append(len(snapshots))
        return await save_all(snapshots, now_us)

    parts.database.spend.save_all = counted  # type: ignore[method-assign]
    assert await parts.sync.sync_once() == 150 and sum(together) == 150 and len(together) <= 5
    assert parts.sync._waiting == set()
    for who in principals:
        assert await parts.spent(who.root) == {f"key_1:{month()}": 7}


async def test_roots_that_the_store_does_not_give_keep_none_of_the_others_waiting(parts: Parts) -> None:
    """As when one node of a cluster is away: the rest is written at once, it later."""
    for number in range(100):
        parts.ledger.charge(one_key(f"org_{number}", budget(10**9)), 7)
    assert await parts.ledger.flush(10)
    snapshot = parts.store.snapshot

    async def away(root: str) -> Snapshot | None:
        if root in ("org_7", "org_8"):
            raise StoreUnavailable("its node is away", sent=False)
        return await snapshot(root)

    parts.store.snapshot = away  # type: ignore[method-assign]
    for _ in range(2):  # the first run may end before it comes to all; the next has those that failed last
        with pytest.raises(StoreUnavailable):
            await parts.sync.sync_once()
    assert set(await parts.database.spend.roots()) == {f"org_{n}" for n in range(100)}
    assert parts.sync._waiting == {"org_7", "org_8"}
    assert await parts.spent("org_7") == {} and await parts.spent("org_9") == {f"key_1:{month()}": 7}
    parts.store.snapshot = snapshot  # type: ignore[method-assign]
    assert await parts.sync.sync_once() == 2 and parts.sync._waiting == set()
    assert await parts.spent("org_7") == {f"key_1:{month()}": 7}


async def test_budget_counts_holds(parts: Parts) -> None:
    """Promise 3: spent + held + this hold <= budget at every admission; a settle gives back what was not used."""
    who = one_key("org_a", budget(1000))
    first = await parts.admit(who, "r1.1", hold=600)
    assert isinstance(first, Grant)
    denied = await parts.admit(who, "r2.1", hold=401)
    assert isinstance(denied, Denial) and denied.refusal.kind is LimitKind.BUDGET
    assert denied.refusal.used == 600 and denied.refusal.wait_us is not None and not denied.refusal.never
    parts.ledger.dispatched(first)
    parts.ledger.settle(first, 50, Usage())
    assert isinstance(await parts.admit(who, "r3.1", hold=950), Grant)
    assert isinstance(await parts.admit(who, "r4.1", hold=1), Denial)


async def test_hold_above_budget_never_fits(parts: Parts) -> None:
    denied = await parts.admit(one_key("org_a", budget(1000)), "r1.1", hold=1001)
    assert isinstance(denied, Denial) and denied.refusal.never and denied.refusal.wait_us is None


async def test_void_returns_everything(parts: Parts) -> None:
    """A request that was never sent leaves no trace in windows, slots, holds or spend."""
    who = one_key("org_a", budget(1000, rpm=1, concurrency=1))
    grant = await parts.admit(who, "r1.1", hold=1000)
    assert isinstance(grant, Grant)
    parts.ledger.void(grant)
    again = await parts.admit(who, "r2.1", hold=1000)
    assert isinstance(again, Grant)
    assert again.reply.logs[0].requests == 1 and again.reply.slots == (1,)


async def test_a_weight_that_no_run_can_hold(parts: Parts) -> None:
    """An estimate beyond all measure, where nothing limits it, counts as the largest there is: voided, nothing of it
    stays in the window."""
    who = one_key("org_a", Policy(windows=(Window(Unit.TOKENS, 5, shadow=True),)))
    grant = await parts.admit(who, "r1.1", hold=0, tokens=2**60)
    assert isinstance(grant, Grant) and grant.reply.logs[0].tokens == WEIGHT_MAX
    parts.ledger.void(grant)
    again = await parts.admit(who, "r2.1", hold=0, tokens=5)
    assert isinstance(again, Grant)
    assert again.reply.logs[0].tokens == 5 and not again.reply.shadowed


async def test_slot_is_free_for_the_next_request(parts: Parts) -> None:
    """The settlement is sent before the answer's last byte: a client's next request finds its slot free."""
    who = one_key("org_a", budget(10**9, concurrency=1))
    for number in range(20):
        await parts.spend(who, f"r{number}.1", hold=10, cost=1)


async def test_dead_holder_frees_its_slot_within_30_seconds(tmp_path: Path) -> None:
    """A slot is a lease: the heartbeat of a living process keeps it, silence frees it."""
    clock = Clock(time.time_ns() // 1000)
    parts = await Parts.start(tmp_path, None, clock)
    who = one_key("org_a", budget(10**9, concurrency=1))
    held = await parts.admit(who, "held.1", hold=10)
    assert isinstance(held, Grant)
    for _ in range(5):
        clock.now_us += 20_000_000
        await parts.ledger._renew_leases()
        assert isinstance(await parts.admit(who, "waits.1", hold=10), Denial)
    clock.now_us += 30_000_000
    freed = await parts.admit(who, "freed.1", hold=10)
    assert isinstance(freed, Grant)
    parts.ledger.void(held)
    parts.ledger.void(freed)
    await parts.stop()


async def test_an_attempt_ends_once(parts: Parts) -> None:
    who = one_key("org_a", budget(1000))
    grant = await parts.admit(who, "r1.1", hold=10)
    assert isinstance(grant, Grant)
    parts.ledger.void(grant)
    with pytest.raises(ValueError, match="has ended already"):
        parts.ledger.void(grant)


async def test_limits_are_shown_and_reset(parts: Parts) -> None:
    who = one_key("org_a", budget(1000, rpm=2))
    await parts.spend(who, "r1.1", hold=10, cost=5)
    await parts.spend(who, "r2.1", hold=10, cost=5)
    assert isinstance(await parts.admit(who, "r3.1", hold=10), Denial)
    shown = {state.kind: state.used for state in await parts.ledger.limits(who)}
    assert shown == {LimitKind.REQUESTS: 2, LimitKind.TOKENS: 84, LimitKind.BUDGET: 10}
    await parts.ledger.reset_limits(who)
    assert isinstance(await parts.admit(who, "r4.1", hold=10), Grant)


async def test_clean_stop_goes_on(tmp_path: Path, url: str | None, clock: Clock) -> None:
    """A clean stop leaves an outbox that the next start goes on with: same producer, spend remembered."""
    who, producers = one_key("org_a", budget(1000)), set()
    for run in range(3):
        parts = await Parts.start(tmp_path, url, clock)
        producers.add(parts.ledger.producer)
        await parts.spend(who, f"run{run}.1", hold=100, cost=100)
        await parts.stop()
    parts = await Parts.start(tmp_path, url, clock)
    assert len(producers) == 1
    assert (await parts.spent("org_a"))[f"key_1:{month()}"] == 300
    assert isinstance(await parts.admit(who, "late.1", hold=701), Denial)
    fits = await parts.admit(who, "fits.1", hold=700)
    assert isinstance(fits, Grant)
    parts.ledger.void(fits)
    await parts.stop()


async def test_full_disk_refuses_admissions_and_no_settlement(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is reserved at admission: when no more can be had, nothing is admitted, and what runs still settles."""
    who = one_key("org_a", budget(10**9, rpm=10**6))
    grant = await parts.admit(who, "r0.1", hold=10)
    assert isinstance(grant, Grant)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    admitted = [grant]
    with pytest.raises(OutboxUnavailable, match="No space left"):
        for number in range(1, 5000):
            more = await parts.admit(who, f"r{number}.1", hold=10)
            assert isinstance(more, Grant | Denial)
            if isinstance(more, Grant):
                admitted.append(more)
    assert parts.ledger.outbox_failure is not None
    for each in admitted:
        parts.ledger.dispatched(each)
        parts.ledger.settle(each, 1, Usage())
    assert await parts.ledger.flush(5)
    await parts.sync.sync_once()
    assert (await parts.spent("org_a"))[f"key_1:{month()}"] == len(admitted)


async def test_stop_with_an_admission_in_flight_is_not_clean(tmp_path: Path, url: str | None, clock: Clock) -> None:
    """What was admitted and never ended is released by the next start, though nothing of it is in the outbox."""
    who = one_key("org_a", budget(1000))
    parts = await Parts.start(tmp_path, url, clock)
    assert isinstance(await parts.admit(who, "never.1", hold=1000), Grant)
    await parts.stop()
    parts = await Parts.start(tmp_path, url, clock)
    grant = await parts.admit(who, "next.1", hold=1000)
    assert isinstance(grant, Grant)
    parts.ledger.void(grant)
    await parts.stop()


async def test_cancelled_admission_is_voided(tmp_path: Path, url: str | None, clock: Clock) -> None:
    """A caller that goes away while its admission is under way leaves no hold behind."""
    who = one_key("org_a", budget(1000))
    parts = await Parts.start(tmp_path, url, clock)
    parts.ledger._timeout_us = 200_000
    await parts.spend(who, "warm.1", hold=1, cost=0)
    admissions = [asyncio.create_task(parts.admit(who, f"gone{n}.1", hold=100)) for n in range(5)]
    await asyncio.sleep(0)
    for admission in admissions:
        admission.cancel()
    outcomes = await asyncio.gather(*admissions, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Grant):  # the memory store answers without waiting
            parts.ledger.void(outcome)
    assert await parts.ledger.flush(5)
    (state,) = [s for s in await parts.ledger.limits(who) if s.kind is LimitKind.BUDGET]
    assert (state.used, state.held) == (0, 0)
    await parts.stop()


async def test_outbox_is_forgotten_only_when_the_database_covers_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SEGMENT_BYTES", 16_384)
    parts = await Parts.start(tmp_path, None, clock)
    who = one_key("org_a", budget(10**9, rpm=10**6))
    for number in range(300):
        await parts.spend(who, f"r{number}.1", hold=10, cost=1)
    await parts.ledger.flush(5)
    assert parts.ledger._outbox.bytes_kept > 80_000
    await parts.sync.sync_once()
    assert parts.ledger._outbox.bytes_kept < 20_000
    assert parts.ledger._outbox.uncovered_of("org_a") == 0
    await parts.stop()
    assert [path.name for path in next((tmp_path / "outbox").iterdir()).glob("*.seg")] == []


async def test_lost_redis_is_rebuilt(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """Redis loses everything between two syncs, with requests in flight: spend is rebuilt from database and outbox,
    holds are held again, and the budget is not overspent."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(1000), Policy())
    await parts.spend(who, "synced.1", hold=100, cost=100)
    await parts.ledger.flush(5)
    await parts.sync.sync_once()
    await parts.spend(who, "unsynced.1", hold=100, cost=70)
    flying = await parts.admit(who, "flying.1", hold=500)
    assert isinstance(flying, Grant)
    parts.ledger.dispatched(flying)
    await parts.ledger.flush(5)
    own_redis.command("FLUSHALL")
    assert isinstance(await parts.admit(who, "over.1", hold=331), Denial)
    fits = await parts.admit(who, "fits.1", hold=330)
    assert isinstance(fits, Grant)
    parts.ledger.void(fits)
    parts.ledger.settle(flying, 400, Usage())
    assert await parts.ledger.flush(5)
    await parts.stop()
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    assert await parts.spent("org_a") == {f"key_1:{month()}": 570, month(): 570}
    await parts.stop()


async def test_redis_away_is_noticed_and_nothing_is_lost(
    tmp_path: Path, own_redis: RedisServer, clock: Clock
) -> None:
    """Killed while a request is in flight: admissions fail at once; the settlement waits in the outbox."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(10**6))
    grant = await parts.admit(who, "flying.1", hold=500)
    assert isinstance(grant, Grant)
    parts.ledger.dispatched(grant)
    own_redis.kill()
    with pytest.raises(StoreUnavailable):
        await parts.admit(who, "refused.1", hold=1)
    with pytest.raises(StoreUnavailable):
        await at_once(parts.admit(who, "refused.2", hold=1))
    parts.ledger.settle(grant, 321, Usage())
    own_redis.start()
    assert await parts.ledger.flush(10)
    await parts.sync.sync_once()
    assert (await parts.spent("org_a"))[f"key_1:{month()}"] == 321
    await parts.stop()


async def test_frozen_redis_runs_no_abandoned_admission(tmp_path: Path, own_redis: RedisServer, clock: Clock) -> None:
    """A frozen Redis counts as away within the deadline; woken up, it admits none of what was abandoned."""
    parts = await Parts.start(tmp_path, own_redis.url, clock)
    who = one_key("org_a", budget(10**6))
    await parts.spend(who, "first.1", hold=10, cost=1)
    own_redis.freeze()
    begun = time.monotonic()
    outcomes = await asyncio.gather(
        *(parts.admit(who, f"abandoned{n}.1", hold=1000) for n in range(50)), return_exceptions=True
    )
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert time.monotonic() - begun < 30, "it would have hung as long as Redis does"
    own_redis.thaw()
    for _ in range(200):
        try:
            grant = await parts.admit(who, f"woken{_}.1", hold=10)
            break
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    assert isinstance(grant, Grant)
    assert await parts.ledger.flush(10)
    state = grant.reply.counters[0]
    assert (state.spent, state.held) == (1, 10)
    parts.ledger.void(grant)
    await parts.stop()


@pytest.mark.parametrize("seed", range(4))
async def test_killed_process_is_closed(tmp_path: Path, url: str | None, seed: int) -> None:
    """SIGKILL at a random instant under load: the next start charges each request once: its true cost, or its hold,
    marked presumed, if it was dispatched and never settled. No hold is left behind."""
    rng = random.Random(seed)
    truth: dict[str, tuple[str, int]] = {}
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.governance.crash_child", str(tmp_path), url or "", str(seed)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b"ready")
        await asyncio.sleep(0.1 + rng.random() * 0.4)
        child.kill()
        for line in child.stdout.read().decode().splitlines():
            word, attempt, nano = line.split()
            truth[attempt] = (word, int(nano))
        child.stdout.close()
        child.wait()
    parts = await Parts.start(tmp_path, url, Clock(time.time_ns() // 1000))
    assert parts.closer.open == 0
    (charged,) = (await parts.spent("org_crash")).values()
    settled = sum(nano for word, nano in truth.values() if word == "settled")
    unsure = [nano for word, nano in truth.values() if word != "settled"]
    assert settled <= charged <= settled + 1000 * len(unsure)
    state = {s.kind: s for s in await parts.ledger.limits(one_key("org_crash", budget(10**15)))}
    assert state[LimitKind.BUDGET].held == 0 and state[LimitKind.BUDGET].used == charged
    marks = (await parts.database.spend.load("org_crash")).marks
    assert [is_buried(mark) for mark in sorted(marks.values())[-2:]] == [True, True]
    await parts.stop()


async def test_a_close_brings_nothing_again_that_the_store_has(
    tmp_path: Path, redis_server: RedisServer, clock: Clock
) -> None:
    """A busy gateway that dies leaves thousands of entries that no sync had covered; who closes it has its own
    requests waiting behind what it issues."""
    redis_server.command("FLUSHALL")
    who = one_key("org_a", budget(10**9, rpm=10**6))
    dead = await Parts.start(tmp_path, redis_server.url, clock)
    for number in range(200):
        await dead.spend(who, f"r{number}.1", hold=10, cost=3)
    assert await dead.ledger.flush(5)
    flying = await dead.admit(who, "flying.1", hold=1000)
    assert isinstance(flying, Grant)
    dead.ledger.dispatched(flying)
    await abandon(dead)
    await dead.database.close()
    parts = await Parts.start(tmp_path, redis_server.url, clock)
    assert parts.closer.open == 0
    assert await parts.spent("org_a") == {f"key_1:{month()}": 200 * 3 + 1000}
    marks = await parts.store.marks("org_a")
    assert marks is not None and marks[parts.ledger.producer] == 3, "its burial, the one charge, its end"
    await parts.stop()


async def test_what_is_brought_again_is_looked_up_together(
    tmp_path: Path, url: str | None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has lost what a dead gateway left, or was in its memory: whether each of its attempts was charged
    before is asked of the database a few times, not once for each."""
    who = one_key("org_a", budget(10**9, rpm=10**6))
    dead = await Parts.start(tmp_path, url, clock)
    for number in range(700):
        await dead.spend(who, f"r{number}.1", hold=10, cost=3)
    assert await dead.ledger.flush(5)
    await dead.sync.sync_once()
    for number in range(700, 1_400):
        await dead.spend(who, f"r{number}.1", hold=10, cost=3)
    assert await dead.ledger.flush(5)
    if url is not None:
        await dead.store.client.call("FLUSHALL")  # type: ignore[attr-defined]
    await abandon(dead)
    await dead.database.close()
    asked: list[int] = []
    charges = StoredSpend.charges

    async def counted(self: StoredSpend, root: str, attempts: Sequence[str]) -> Any:
        asked.append(len(attempts))
        return await charges(self, root, attempts)

    monkeypatch.setattr(StoredSpend, "charges", counted)
    parts = await Parts.start(tmp_path, url, clock)
    assert parts.closer.open == 0
    assert await parts.spent("org_a") == {f"key_1:{month()}": 1_400 * 3}
    assert sum(asked) >= 700 and len(asked) <= 4, asked
    await parts.stop()


async def test_token_buckets(tmp_path: Path, url: str | None, clock: Clock) -> None:
    """A bucket refuses with its exact wait; what was not used comes back, an excess is a debt, a void gives all back;
    limits show it and a reset fills it."""
    who = one_key("org_b", Policy(buckets=(TokenBucket(Unit.TOKENS, 60, 100),)))
    parts = await Parts.start(tmp_path, url, clock)

    async def used() -> int:
        assert await parts.ledger.flush(5)
        (state,) = await parts.ledger.limits(who)
        assert (state.kind, state.limit, state.rate, state.window_us) == (LimitKind.TOKENS, 100, 60, None)
        return state.used

    first = await parts.admit(who, "a.1", hold=1, tokens=90)
    refused = await parts.admit(who, "b.1", hold=1, tokens=11)
    never = await parts.admit(who, "c.1", hold=1, tokens=101)
    assert isinstance(first, Grant) and isinstance(refused, Denial) and isinstance(never, Denial)
    assert (refused.refusal.used, refused.refusal.asked, refused.refusal.never) == (90, 11, False)
    assert refused.refusal.wait_us is not None and 0 < refused.refusal.wait_us <= 1_000_000
    assert never.refusal.never and never.refusal.wait_us is None
    parts.ledger.dispatched(first)
    parts.ledger.settle(first, 1, Usage(10))
    assert 8 <= await used() <= 10, "80 came back"
    second = await parts.admit(who, "d.1", hold=1, tokens=20)
    assert isinstance(second, Grant)
    parts.ledger.void(second)
    assert 8 <= await used() <= 10
    third = await parts.admit(who, "e.1", hold=1, tokens=80)
    assert isinstance(third, Grant)
    parts.ledger.dispatched(third)
    parts.ledger.settle(third, 1, Usage(180))
    assert 186 <= await used() <= 190, "a debt"
    await parts.ledger.reset_limits(who)
    assert await used() == 0
    await parts.stop()
