"""Idempotency keys of usage: one key and amount is one charge, whatever is lost; another amount is an error."""

import asyncio
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tests.billing.conftest import DAY_US, NOW_US, Shop, make_family, make_key
from tollkeeper import BillingCache, Charged, IdempotencyConflict, InvalidInput, KeyChange
from tollkeeper.domain.admission import CounterRef
from tollkeeper.domain.entries import (
    Applied,
    AppliedStatus,
    Entry,
    EntryKind,
    Origin,
    Used,
    issued_again,
    usage_entry,
)
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.policy import Policy
from tollkeeper.domain.ports import SpendTotals
from tollkeeper.domain.recovery import Looked
from tollkeeper.governance import used_keys
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.governance.store import Snapshot, Store


async def test_one_key_is_one_charge(cache: BillingCache) -> None:
    """In sequence, at once, and beside charges without a key; each API key has idempotency keys of its own."""
    key, other = await make_key(cache), await make_key(cache, name="other")
    assert await cache.add_usage(key, "0.5", idempotency_key="invoice 1") is Charged.NOW
    again = [cache.add_usage(key, Decimal("0.500"), idempotency_key="invoice 1") for _ in range(20)]
    assert set(await asyncio.gather(*again)) == {Charged.BEFORE}
    fresh = [cache.add_usage(key, 1, idempotency_key="ü\udc80\0{}") for _ in range(20)]
    assert sorted(await asyncio.gather(*fresh)) == [Charged.BEFORE] * 19 + [Charged.NOW]
    assert await cache.add_usage(other, "0.25", idempotency_key="invoice 1") is Charged.NOW
    await cache.add_usage(key, "0.5")
    assert await cache.get_monthly_spending(key) == 2
    assert await cache.get_monthly_spending(other) == Decimal("0.25")


async def test_another_amount_is_an_error(shop: Shop, cache: BillingCache) -> None:
    """Nothing is charged, by whichever process it comes; the message says the amount that the key stands for."""
    key = await make_key(cache)
    await cache.add_usage(key, "0.5", idempotency_key="a")
    peer = cache if shop.redis is None else await shop.open("b")
    for billing in (cache, peer):
        with pytest.raises(IdempotencyConflict, match=r"'a' was used for 0.50 USD, not 0.51: give each charge a key"):
            await billing.add_usage(key, "0.51", idempotency_key="a")
    assert await cache.get_monthly_spending(key) == Decimal("0.5")


@pytest.mark.parametrize("bad", ["", "x" * 256, 7, b"x"])
async def test_keys_that_cannot_be(cache: BillingCache, bad: object) -> None:
    key = await make_key(cache)
    with pytest.raises(InvalidInput, match="idempotency_key: give a str of 1 to 255 characters"):
        await cache.add_usage(key, 1, idempotency_key=bad)  # type: ignore[arg-type]
    assert await cache.get_monthly_spending(key) == 0


async def test_a_key_is_remembered_for_a_day(shop: Shop, cache: BillingCache) -> None:
    """To the last microsecond, by the store's clock; then it may stand for something else."""
    key = await make_key(cache)
    await cache.add_usage(key, 1, idempotency_key="a")
    shop.set_clock(NOW_US + DAY_US - 1)
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.BEFORE
    shop.set_clock(NOW_US + DAY_US)
    assert await cache.add_usage(key, 2, idempotency_key="a") is Charged.NOW
    assert await cache.get_monthly_spending(key) == 3


@pytest.mark.parametrize("synced", [True, False])
async def test_a_lost_store_remembers(shop: Shop, cache: BillingCache, synced: bool) -> None:
    """From the database what is synced, from the outbox what is not; the second asker may be another process."""
    key = await make_key(cache)
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.NOW
    if synced:
        await cache.sync()
    shop.forget(cache)
    peer = cache if shop.redis is None else await shop.open("b")
    await peer.add_usage(key, 1, idempotency_key="a")
    await cache.add_usage(key, 1, idempotency_key="a")
    with pytest.raises(IdempotencyConflict):
        await peer.add_usage(key, 2, idempotency_key="a")
    for billing in (cache, peer):
        assert await billing._accounting.ledger.flush(5)
    assert await cache.get_monthly_spending(key) == 1
    await peer.sync()
    await cache.sync()
    shop.forget(cache)
    assert await peer.get_spending(key, 2100, 1) == 1


async def test_a_lost_store_and_a_new_month(shop: Shop, cache: BillingCache) -> None:
    """Whichever of two processes is charged after a loss, in whichever month, the database says it once."""
    if shop.redis is None:
        pytest.skip("two processes need a shared store")
    key, peer = await make_key(cache), await shop.open("b")
    shop.set_clock(NOW_US + 17 * DAY_US - 1)  # the last µs of January
    await cache.add_usage(key, 1, idempotency_key="a")
    late = await cache._accounting.store.snapshot((await cache._principals.get(key)).root)
    assert late is not None
    shop.forget(cache)
    shop.set_clock(NOW_US + 17 * DAY_US)
    assert await peer.add_usage(key, 1, idempotency_key="a") is Charged.NOW  # all that was known of it is lost
    await cache.add_usage(key, 0)
    assert await cache._accounting.ledger.flush(5)  # the first charge came again, and changed nothing
    assert cache._database is not None
    await cache._database.spend.save(late.content, shop.now_us)  # a sync of before the loss commits only now
    for billing in (cache, peer, cache):
        await billing.add_usage(key, 1, idempotency_key="a")
        await billing.sync()
        assert await billing._accounting.ledger.flush(5)
    await peer.sync()
    total = await cache.get_spending(key, 2100, 1) + await peer.get_spending(key, 2100, 2)
    months = await cache._database.spend.monthly_usage(key=key)
    assert total == 1 and sum(row.cost_nano for row in months) == 10**9


@pytest.mark.parametrize("before", ["told", "told by an heir", "told again"])
async def test_another_amount_is_an_error_after_a_loss(shop: Shop, cache: BillingCache, before: str) -> None:
    """The store loses all before the database knows a charge whose caller was told. Whoever asks for another amount
    then, and before the charge has come again: it is what was told that stands."""
    if shop.redis is None:
        pytest.skip("two processes need a shared store")
    key, peer = await make_key(cache), await shop.open("b")
    root = (await cache._principals.get(key)).root
    shop.set_clock(0)  # the real time: an heir's start asks Redis before a test could tell it another
    if before == "told again":
        assert await peer.add_usage(key, 1, idempotency_key="a") is Charged.NOW
        assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.BEFORE
        await shop.crash(peer)
        shutil.rmtree(peer._accounting.ledger._outbox.folder)  # who was charged never comes again
        peer = await shop.open("c")
    else:
        assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.NOW
    assert await cache._accounting.ledger.flush(60)
    if before == "told by an heir":
        await shop.crash(cache)
    shop.forget_all()
    if before != "told":  # somebody does not come for now
        peer._accounting.ledger._timeout_us = 1_000_000
    with suppress(IdempotencyConflict):  # the other came first, or a sync that was under way: the same answer, sooner
        assert await peer.add_usage(key, 2, idempotency_key="a") is Charged.PENDING, "it waits for the other"
    peer._accounting.ledger._timeout_us = 10_000_000
    heir = await shop.open("a") if before == "told by an heir" else cache
    for billing in (peer, heir):
        ledger = billing._accounting.ledger
        await asyncio.wait_for(ledger._recover_soon(root), 60)
        assert await ledger.flush(60)
    for billing in (peer, heir):
        with pytest.raises(IdempotencyConflict, match=r"was used for 1\.00 USD, not 2\.00"):
            await billing.add_usage(key, 2, idempotency_key="a")
    for billing in (peer, heir, peer):
        await billing.sync()
    assert await heir.get_monthly_spending(key) == await peer.get_monthly_spending(key) == 1
    assert heir._database is not None
    (month,) = await heir._database.spend.monthly_usage(key=key)
    assert month.cost_nano == 10**9
    await peer.shutdown()


@pytest.mark.parametrize("who", ["itself", "an heir"])
async def test_what_was_pending_and_loses_is_listed(shop: Shop, cache: BillingCache, who: str) -> None:
    """A charge waits on the disk, its caller heard *pending* and never asks again; another process is charged another
    amount under the key. Nothing is charged by the first, and that can be read; one that wins is not listed."""
    if shop.redis is None:
        pytest.skip("two processes need a shared store")
    key, peer = await make_key(cache), await shop.open("b")
    root = (await cache._principals.get(key)).root
    await cache.add_usage(key, 0)
    assert await cache._accounting.ledger.flush(60)
    ledger, store = cache._accounting.ledger, cache._accounting.store
    apply, ledger._timeout_us = store.apply, 50_000
    store.apply = lambda *call: call[-1](StoreUnavailable("away"))  # type: ignore[method-assign]
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.PENDING
    assert await cache.add_usage(key, 3, idempotency_key="b") is Charged.PENDING
    assert await peer.add_usage(key, 2, idempotency_key="a") is Charged.NOW
    entry = f"?{ledger.producer}#{ledger._outbox.numbers[root] - 1}"
    if who == "itself":
        store.apply = apply  # type: ignore[method-assign]
    else:
        await shop.crash(cache)
        cache = await shop.open("a")
    async with asyncio.timeout(60):
        while len(cache._accounting.ledger._usage.pending):
            await asyncio.sleep(0.05)
    await cache.sync()
    assert cache._database is not None
    (listed,) = await cache._database.spend.listed(status="quarantined")
    assert listed.charge.cost_nano == 10**9 and "stands for 2.00 USD" in listed.charge.what_is_known().note
    assert who != "itself" or listed.attempt == entry
    assert await peer.get_monthly_spending(key) == 5


@pytest.mark.parametrize("then", ["they come", "who brings them dies"])
async def test_many_keys_follow(shop: Shop, cache: BillingCache, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """More keys than are put into an empty store at once: budgets are open before they are there, a key that is used
    meanwhile is looked up, in whichever process, and all are brought once, by whoever is there."""
    if shop.redis is None:
        pytest.skip("two processes need a shared store")
    monkeypatch.setattr(used_keys, "USED_AT_ONCE", 3)
    key, peer = await make_key(cache), await shop.open("b")
    root = (await cache._principals.get(key)).root
    for n in range(8):
        assert await cache.add_usage(key, 1, idempotency_key=f"k{n}") is Charged.NOW
    assert await cache._accounting.ledger.flush(60)
    while (await cache.sync(), await saved_keys(cache, root))[1] < 8:
        await asyncio.wait_for(cache._accounting.ledger._recover_soon(root), 60)  # it had no number yet
    assert await peer.add_usage(key, 1, idempotency_key="of the peer") is Charged.NOW
    stores = [billing._accounting.store for billing in (cache, peer)]
    goes_on, brought = asyncio.Event(), list[int]()
    for store in stores:
        monkeypatch.setattr(store, "bring", halted(store.bring, goes_on, brought))
    shop.forget(cache)
    ledger = cache._accounting.ledger
    await asyncio.wait_for(ledger._recover_soon(root), 60)
    await asyncio.wait_for(peer._accounting.ledger._recover_soon(root), 60)
    await cache.void(await cache.hold(key, 1))
    for billing in (cache, peer, cache):
        assert await billing.add_usage(key, 1, idempotency_key="k0") is Charged.BEFORE
        assert await billing.add_usage(key, 1, idempotency_key="of the peer") is Charged.BEFORE
        with pytest.raises(IdempotencyConflict):
            await billing.add_usage(key, 2, idempotency_key="k1")
    assert await peer.add_usage(key, 1, idempotency_key="new") is Charged.NOW
    assert await cache.add_usage(key, 1, idempotency_key="new") is Charged.BEFORE
    assert not brought
    if then == "who brings them dies":
        monkeypatch.setattr(used_keys, "BRING_LEASE_S", 0.05)
        assert await stores[0].looked_up(root, (await memory_of(stores[0], root)), "x", None) is Looked.KNOWN
        task = ledger._recovery.keys.bringing.get(root)
        assert task is not None
        task.cancel()
    goes_on.set()
    async with asyncio.timeout(60):
        while await stores[1].looked_up(root, await memory_of(stores[1], root), "y", None) is not Looked.ALL_THERE:
            assert await peer.add_usage(key, 1, idempotency_key="k7") is Charged.BEFORE
            await asyncio.sleep(0.02)
    assert sum(brought) >= 8
    for n in range(8):
        assert await peer.add_usage(key, 1, idempotency_key=f"k{n}") is Charged.BEFORE
    assert await peer.get_monthly_spending(key) == 10


async def saved_keys(cache: BillingCache, root: str) -> int:
    assert cache._database is not None
    return len(await cache._database.spend.used(root, 0, limit=100))


async def memory_of(store: Store, root: str) -> str:
    memory = await store.memory(root)
    assert memory is not None
    return memory.run


def halted(bring: Callable[..., Any], goes_on: asyncio.Event, brought: list[int]) -> Callable[..., Any]:
    """Notes how many keys each page brings, once it may."""

    async def call(root: str, run: str, bearer: str, used: Any, *, lease_us: int, last: bool) -> Any:
        await goes_on.wait()
        done = await bring(root, run, bearer, used, lease_us=lease_us, last=last)
        brought.extend([len(used)] if done else [])
        return done

    return call


async def test_a_late_write_of_a_lost_memory(shop: Shop, cache: BillingCache) -> None:
    """Two memories with equal marks, in which another of two processes came first, each in its own month: a sync of
    before the loss that commits only after one of later changes nothing."""
    if shop.redis is None:
        pytest.skip("two processes need a shared store")
    key, peer = await make_key(cache), await shop.open("b")
    root = (await cache._principals.get(key)).root
    for billing in (cache, peer):
        await billing.add_usage(key, 0)
        assert await billing._accounting.ledger.flush(60)
    shop.set_clock(NOW_US + 17 * DAY_US - 1)  # the last µs of January
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.NOW
    shop.set_clock(NOW_US + 17 * DAY_US)
    assert await peer.add_usage(key, 1, idempotency_key="a") is Charged.BEFORE
    assert await peer._accounting.ledger.flush(60)
    late = await cache._accounting.sync._snapshots([root])
    assert isinstance(late[0], Snapshot) and late[0].content.fence == 1
    shop.forget(cache)
    for billing in (peer, cache):  # in this order after the loss
        await asyncio.wait_for(billing._accounting.ledger._recover_soon(root), 60)
    await peer.sync()
    assert peer._database is not None
    marks = (await peer._database.spend.load(root)).marks
    assert marks == late[0].content.marks  # nothing but the number tells them apart
    assert not await peer._database.spend.save(late[0].content, shop.now_us)
    months = {(row.year, row.month): row.cost_nano for row in await peer._database.spend.monthly_usage(key=key)}
    assert months == {(2100, 1): 0, (2100, 2): 10**9}


@pytest.mark.parametrize("comes_first", ["itself", "another"])
async def test_what_the_database_knows_beyond_its_marks(cache: BillingCache, comes_first: str) -> None:
    """A seed may know an idempotency key whose entry is yet to come again: that entry charges, and no other does."""
    store, used = cache._accounting.store, Used(7, NOW_US + DAY_US, "p_1:1")
    await store.remember("org_x", {"d": used})
    assert await store.seed("org_x", "run", {}, {}, lost=False)
    entry = usage_entry(1, "d", 7, (CounterRef("key_1:total", 0, 0),))
    producers = ("p_1", "p_2") if comes_first == "itself" else ("p_2", "p_1")
    for producer in producers:
        assert await cache._accounting.ledger._recovery.apply_one("org_x", producer, entry)
    snapshot = await store.snapshot("org_x")
    assert snapshot is not None and snapshot.content.totals["key_1:total"] == SpendTotals(7, 1)
    assert await store.used("org_x", "d") == used and not snapshot.content.used


@pytest.mark.parametrize("came", [True, False])
async def test_what_is_replaced_is_taken_off_where_it_was_charged(cache: BillingCache, came: bool) -> None:
    """After a loss an entry whose caller was told replaces one whose caller was not. If that is only named by the
    database and yet to come, nothing is taken off for it, and it charges nothing when it comes."""
    store, counters = cache._accounting.store, (CounterRef("key_1:total", 0, 0),)
    await store.remember("org_x", {"d": Used(7, NOW_US + DAY_US, "p_1:1", ("key_1:total",))})
    assert await store.seed("org_x", "run", {}, {}, lost=True)
    gate = await store.gate("org_x", "another", 30_000_000, ["p_3"])
    assert gate is not None and gate.waits == ("p_3",)
    other, told = (
        usage_entry(1, "d", 7, counters),
        msgspec.structs.replace(usage_entry(1, "d", 5, counters), told=True),
    )
    entries = {"p_1": other, "p_2": told} if came else {"p_2": told, "p_1": other}
    for producer, entry in entries.items():
        assert await cache._accounting.ledger._recovery.apply_one("org_x", producer, entry)
    assert (await store.totals("org_x", ["key_1:total"]))["key_1:total"] == SpendTotals(5, 1)
    known = await store.used("org_x", "d")
    assert known is not None and (known.cost_nano, known.by, known.counters) == (5, "p_2:1", ())


async def test_a_crash_after_the_charge_and_a_retry_elsewhere(shop: Shop, cache: BillingCache) -> None:
    """The entry was on disk and never sent; the caller repeats it at the next process, which finds the disk later."""
    key = await make_key(cache)
    await cache.add_usage(key, "0.25")
    assert await cache._accounting.ledger.flush(60)  # else its root may be half loaded when it dies
    cache._accounting.store.apply = lambda *_: None  # type: ignore[method-assign]
    cache._accounting.ledger._timeout_us = 50_000
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.PENDING
    await shop.crash(cache)
    if shop.redis is not None:
        peer = await shop.open("b")
        assert await peer.add_usage(key, 1, idempotency_key="a") is Charged.NOW
    heir = await shop.open("a")
    assert await heir.add_usage(key, 1, idempotency_key="a") is Charged.BEFORE
    assert await heir.get_monthly_spending(key) == Decimal("1.25")
    with pytest.raises(IdempotencyConflict):
        await heir.add_usage(key, "1.1", idempotency_key="a")


async def test_a_lost_reply(cache: BillingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charge went through and nobody heard: what is asked next knows it, and repeating changes nothing."""
    key = await make_key(cache)
    await cache.add_usage(key, 1)
    store = cache._accounting.store
    send = store.apply

    def deaf(root: str, producer: str, entry: Entry, done: object) -> None:
        def answer(applied: Applied | StoreUnavailable) -> None:
            assert isinstance(applied, Applied) and applied.status is AppliedStatus.OK
            done(StoreUnavailable("the reply was lost"))  # type: ignore[operator]

        send(root, producer, entry, answer)

    monkeypatch.setattr(store, "apply", deaf)
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.NOW
    monkeypatch.setattr(store, "apply", send)
    assert await cache.add_usage(key, 1, idempotency_key="a") is Charged.BEFORE
    assert await cache.get_monthly_spending(key) == 2


async def test_two_processes_through_losses(shop: Shop, cache: BillingCache) -> None:
    """Hundreds of repetitions by two processes, with losses, syncs and a key that moves: every key counts once."""
    two = cache if shop.redis is None else await shop.open("b")
    family = await make_family(cache, Policy(), Policy(), Policy())
    blue = await cache.accounts.create_team("blue", family.organisation)
    rng = random.Random(11)
    amounts = {f"charge {n}": rng.randrange(1, 10**9) for n in range(60)}
    calls = [name for name in amounts for _ in range(5)]
    rng.shuffle(calls)
    for start in range(0, len(calls), 25):
        outcomes = await asyncio.gather(
            *(
                rng.choice((cache, two)).add_usage(
                    family.key, Decimal(amounts[name]).scaleb(-9), idempotency_key=name
                )
                for name in calls[start : start + 25]
            )
        )
        assert set(outcomes) <= set(Charged)
        fate = rng.random()
        if fate < 0.3:
            shop.forget(cache)
        elif fate < 0.6:
            await rng.choice((cache, two)).sync()
        elif fate < 0.75:
            await cache.accounts.update_key(family.key, KeyChange(team=rng.choice((family.team, blue.id))))
            await cache.refresh()
    for billing in (cache, two, cache, two):
        await billing.add_usage(family.key, 0)
        assert await billing._accounting.ledger.flush(10)
        await billing.sync()
    assert await cache.get_monthly_spending(family.key) == Decimal(sum(amounts.values())).scaleb(-9)
    assert cache._database is not None
    totals = (await cache._database.spend.load(family.organisation)).totals
    in_teams = sum(t.cost_nano for name, t in totals.items() if name.startswith("team_"))
    assert in_teams == totals["2100:01"].cost_nano == sum(amounts.values())


async def test_a_crash_and_a_restart_after_the_key_was_forgotten(
    shop: Shop, cache: BillingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store applied and no sync took is issued again by the next start; the store knows its number still."""
    key = await make_key(cache)
    await cache.add_usage(key, 1, idempotency_key="a")
    assert await cache._accounting.ledger.flush(5)
    await shop.crash(cache)
    shop.set_clock(NOW_US + DAY_US + 1)
    start = RedisStore.start

    async def started_then(store: RedisStore) -> None:
        store.time_us = shop.now_us  # what is left of the dead is issued again before `open` returns
        await start(store)

    monkeypatch.setattr(RedisStore, "start", started_then)
    again = await shop.open()
    assert await again._accounting.ledger.flush(5)
    await again.sync()
    assert await again.get_spending(key, 2100, 1) == 1
    assert again._database is not None
    assert [row.cost_nano for row in await again._database.spend.monthly_usage(key=key)] == [10**9]
    if shop.redis is not None:  # memory was lost with the process: there the key is remembered from now on
        assert await again.add_usage(key, 1, idempotency_key="a") is Charged.NOW


def test_usage_of_a_producer_that_nobody_remembers_is_only_listed() -> None:
    """Its key is forgotten as well: whether it was charged cannot be told."""
    entry = usage_entry(3, "d", 7, (CounterRef("key_1:total", 0, 0),))
    listed = issued_again(entry, "p_old", {"p_old"})
    assert listed is not None and listed.kind is EntryKind.LATE
    assert (listed.attempt, listed.rank, listed.origins) == ("p_old#3", 0, ())
    placed = issued_again(entry, "p_old", set())
    assert placed is not None and (placed.kind, placed.origins) == (EntryKind.USAGE, (Origin("p_old", 3),))


@pytest.mark.parametrize("more", [0, 1])
async def test_many_keys_come_back_in_pages(
    shop: Shop, cache: BillingCache, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """All of them, however many pages they fill."""
    monkeypatch.setattr(used_keys, "USED_AT_ONCE", 4)
    key, names = await make_key(cache), [f"charge {n}" for n in range(12 + more)]
    await asyncio.gather(*(cache.add_usage(key, 1, idempotency_key=name) for name in names))
    await cache.sync()
    shop.forget(cache)
    again = [await cache.add_usage(key, 1, idempotency_key=name) for name in names]
    assert again == [Charged.BEFORE] * len(names)
    assert await cache.get_monthly_spending(key) == len(names)
