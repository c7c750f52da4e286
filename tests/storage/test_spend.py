"""The contract of `SpendLedger`: what is stored is always one true state, and never an older one than before."""

import asyncio
import itertools
import random
import time
from collections.abc import Mapping

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers.postgres import PostgresServer
from tests.storage.conftest import SHARED, Opener
from tollkeeper.domain.accounts import MonthlyUsage, NewKey
from tollkeeper.domain.errors import NotFound
from tollkeeper.domain.ports import RootSnapshot, SpendTotals
from tollkeeper.storage import spend
from tollkeeper.storage.database import Database

ROOT = "org_acme"
NOW = 1_795_000_000_000_000
LARGEST = 2**53 - 1
COUNTERS = (
    "key_a:2026:11",
    "key_a:2026:12",
    "key_b:2026:11",
    "team_t:2026:11",
    "2026:11",
    "key_a:2026:11:23",
    "total",
)
_roots = itertools.count()


def totals(cost: int) -> SpendTotals:
    return SpendTotals(cost, cost + 1, cost + 2, cost + 3, cost + 4)


def snapshot(marks: Mapping[str, int], costs: Mapping[str, int], root: str = ROOT) -> RootSnapshot:
    return RootSnapshot(root, marks, {name: totals(cost) for name, cost in costs.items()})


async def test_a_memory_is_numbered_once_older_saves_have_ended(database: Database) -> None:
    """Or one that has read the old number would write after the new one is known."""
    assert isinstance(database.spend, spend.StoredSpend)
    async with database.spend._transactions.write() as transaction:
        await spend._lock(transaction, [ROOT])
        numbering = asyncio.create_task(database.spend.fence([ROOT]))
        _, waiting = await asyncio.wait([numbering], timeout=0.3)
        assert waiting
    assert await numbering == {ROOT: 1}


async def test_what_is_saved_is_loaded(database: Database) -> None:
    saved = snapshot({"p1": 7, "p2": LARGEST}, {name: n * 10**6 for n, name in enumerate(COUNTERS)})
    assert await database.spend.save(saved, NOW)
    assert await database.spend.load(ROOT) == saved
    assert await database.spend.roots() == [ROOT]


async def test_an_unknown_root_is_empty(database: Database) -> None:
    assert await database.spend.load("org_none") == RootSnapshot("org_none", {}, {})
    assert await database.spend.roots() == []


async def test_totals_are_absolute_and_others_stay(database: Database) -> None:
    await database.spend.save(snapshot({"p": 1}, {"key_a:2026:11": 5, "total": 5}), NOW)
    assert await database.spend.save(snapshot({"p": 2}, {"key_a:2026:11": 9}), NOW)
    assert await database.spend.load(ROOT) == snapshot({"p": 2}, {"key_a:2026:11": 9, "total": 5})


async def test_the_same_snapshot_may_come_twice(database: Database) -> None:
    saved = snapshot({"p": 1}, {"total": 5})
    assert await database.spend.save(saved, NOW) and await database.spend.save(saved, NOW)
    assert await database.spend.load(ROOT) == saved


@pytest.mark.parametrize(
    "marks", [{"p": 4, "q": 5}, {"p": 5}, {"q": 5}, {}, {"p": 9, "q": 4}, {"p": 0, "q": 0, "r": 99}, {"r": 99}]
)
async def test_a_snapshot_that_does_not_dominate_writes_nothing(database: Database, marks: dict[str, int]) -> None:
    """Older, incomparable, or without a producer that the database knows: refused whole, months included."""
    stored = snapshot({"p": 5, "q": 5}, {"key_a:2026:11": 1})
    await database.spend.save(stored, NOW)
    months = await database.spend.monthly_usage()
    assert not await database.spend.save(snapshot(marks, {"key_a:2026:11": 2, "key_new:2026:11": 2}), NOW + 1)
    assert await database.spend.load(ROOT) == stored
    assert await database.spend.monthly_usage() == months


async def test_a_memory_before_the_latest_writes_nothing(database: Database) -> None:
    """Of two with equal marks the one that was numbered first; each root by its own numbers, for all who ask."""
    assert await database.spend.fence([ROOT, "org_b"]) == {ROOT: 1, "org_b": 1}
    assert await database.spend.fence([]) == {}
    first = msgspec.structs.replace(snapshot({"p": 5}, {"key_a:2026:11": 1}), fence=1)
    assert await database.spend.save(first, NOW) and await database.spend.save(first, NOW)
    numbers = await asyncio.gather(*(database.spend.fence([ROOT]) for _ in range(5)))
    assert sorted(one[ROOT] for one in numbers) == [2, 3, 4, 5, 6]
    assert not await database.spend.save(first, NOW)
    later = msgspec.structs.replace(snapshot({"p": 5}, {"key_a:2026:12": 1}), fence=6)
    other = msgspec.structs.replace(snapshot({"p": 5}, {"key_b:2026:11": 1}, "org_b"), fence=1)
    assert await database.spend.save_all([first, other], NOW) == {"org_b"}
    assert await database.spend.save_all([later, other], NOW) == {ROOT, "org_b"}
    assert (await database.spend.load(ROOT)).totals.keys() == {"key_a:2026:11", "key_a:2026:12"}


async def test_a_database_that_was_put_back_learns_the_number_of_the_store(database: Database) -> None:
    """The store's memory is ahead of a backup's numbers: it is saved, and goes on being the latest."""
    await database.spend.fence([ROOT])
    assert await database.spend.save(msgspec.structs.replace(snapshot({"p": 5}, {"total": 1}), fence=7), NOW)
    assert not await database.spend.save(msgspec.structs.replace(snapshot({"p": 6}, {"total": 1}), fence=6), NOW)
    assert await database.spend.fence([ROOT]) == {ROOT: 8}


async def test_roots_do_not_touch_each_other(database: Database) -> None:
    one, two = snapshot({"p": 9}, {"total": 9}, "org_1"), snapshot({"p": 1}, {"total": 1}, "org_2")
    assert await database.spend.save(one, NOW) and await database.spend.save(two, NOW)
    assert (await database.spend.load("org_1"), await database.spend.load("org_2")) == (one, two)
    assert await database.spend.roots() == ["org_1", "org_2"]


_marks = st.dictionaries(st.sampled_from("pqr"), st.integers(0, 3))
_costs = st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, LARGEST - 10), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_marks, _costs), max_size=8))
async def test_any_sequence_of_snapshots_equals_a_model(
    database: Database, sequence: list[tuple[dict[str, int], dict[str, int]]]
) -> None:
    """Accepted exactly if the marks dominate, and then written over what was there, one whole or nothing."""
    root, marks, costs = f"org_{next(_roots)}", dict[str, int](), dict[str, int]()
    for new_marks, new_costs in sequence:
        accepted = all(new_marks.get(producer, 0) >= number for producer, number in marks.items())
        assert await database.spend.save(snapshot(new_marks, new_costs, root), NOW) == accepted
        if accepted:
            marks, costs = marks | new_marks, costs | new_costs
        loaded = await database.spend.load(root)
        assert dict(loaded.marks) == marks
        assert loaded.totals == {name: totals(cost) for name, cost in costs.items()}


def history(rng: random.Random, length: int, root: str) -> list[RootSnapshot]:
    """The states of a root while entries of three producers come in: each a pair that was once true."""
    marks, costs, states = dict[str, int](), dict[str, int](), list[RootSnapshot]()
    for _ in range(length):
        producer, counter = rng.choice("pqr"), rng.choice(COUNTERS)
        marks[producer] = marks.get(producer, 0) + 1
        costs[counter] = costs.get(counter, 0) + rng.randint(1, 99)
        states.append(snapshot(dict(marks), dict(costs), root))
    return states


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 8))
async def test_true_states_in_any_order_end_at_the_newest_that_came(
    database: Database, rng: random.Random, length: int
) -> None:
    """Delayed, repeated and reordered writes: after each one the database holds the newest that was offered."""
    root = f"org_{next(_roots)}"
    states = history(rng, length, root)
    newest = -1
    for index in [rng.randrange(length) for _ in range(length + 2)]:
        assert await database.spend.save(states[index], NOW) == (index >= newest)
        newest = max(newest, index)
        assert await database.spend.load(root) == states[newest]


async def test_concurrent_saves_never_go_back(url: str, opened: Opener) -> None:
    """Several workers save states of one root at once while another reads: only true pairs, ever newer ones."""
    workers = [(await opened(url, pool_size=3)).spend for _ in range(3)]
    states = history(random.Random(1), 30, ROOT)
    order = {sum(state.marks.values()): state for state in states}
    shuffled = random.Random(2).sample(states, len(states))
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            loaded = await workers[0].load(ROOT)
            if loaded.marks:
                seen.append(sum(loaded.marks.values()))
                assert loaded == order[seen[-1]]
            await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    await asyncio.gather(*(workers[n % 3].save(state, NOW) for n, state in enumerate(shuffled)))
    done.set()
    await reader
    assert seen == sorted(seen)
    assert await workers[0].load(ROOT) == states[-1]


async def test_saves_of_one_root_queue_and_those_of_others_do_not(postgres: PostgresServer, opened: Opener) -> None:
    """While a transaction holds a root, a second save of it waits; a save of another root goes through."""
    url = postgres.url(SHARED) if SHARED in postgres.databases else postgres.create_database(SHARED)
    database = await opened(url)
    await database.migrate()
    held, free = f"org_{next(_roots)}_held", f"org_{next(_roots)}_free"
    await database.spend.save(snapshot({"p": 1}, {"total": 1}, held), NOW)
    blocker = await asyncpg.connect(url)
    try:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("UPDATE spend SET cost_nano = 1 WHERE root = $1", held)
        first = asyncio.create_task(database.spend.save(snapshot({"p": 2}, {"total": 2}, held), NOW))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(database.spend.save(snapshot({"p": 3}, {"total": 3}, held), NOW))
        assert await database.spend.save(snapshot({"p": 1}, {"total": 1}, free), NOW)
        assert not first.done() and not second.done()
        await transaction.commit()
    finally:
        await blocker.close()
    assert await first and await second
    assert (await database.spend.load(held)).marks == {"p": 3}


async def test_months_of_keys_are_summed_up_for_reports(database: Database) -> None:
    """Only months, and only of keys; the newest month first."""
    await database.spend.save(snapshot({"p": 1}, dict.fromkeys(COUNTERS, 10)), NOW)
    await database.spend.save(snapshot({"p": 2}, {"key_a:2026:12": 20}), NOW + 1)
    ten, twenty = (10, 11, 12, 13, 14), (20, 21, 22, 23, 24)
    newest = MonthlyUsage("key_a", 2026, 12, *twenty, NOW + 1)
    a, b = MonthlyUsage("key_a", 2026, 11, *ten, NOW), MonthlyUsage("key_b", 2026, 11, *ten, NOW)
    assert await database.spend.monthly_usage() == [newest, a, b]
    assert await database.spend.monthly_usage(month=11) == [a, b]
    assert await database.spend.monthly_usage(year=2026, month=12) == [newest]
    assert await database.spend.monthly_usage(year=2025) == []
    assert await database.spend.monthly_usage(key="key_b") == [b]


async def test_usage_is_found_by_a_keys_name(database: Database) -> None:
    key, _ = await database.accounts(b"k" * 32, lambda: NOW).create_key(NewKey("app"))
    assert await database.spend.monthly_usage(key="app") == []
    await database.spend.save(snapshot({"p": 1}, {f"{key.id}:2026:11": 3}, key.organisation_id), NOW)
    assert [row.key_id for row in await database.spend.monthly_usage(key="app")] == [key.id]
    for unknown in ("key_none", "ap", "a\0b"):
        with pytest.raises(NotFound):
            await database.spend.monthly_usage(key=unknown)


async def test_more_counters_than_fit_one_batch(database: Database) -> None:
    """Thousands of counters are one transaction, in time and complete."""
    many = snapshot({f"p{n}": n for n in range(1500)}, {f"key_{n}:2026:11": n for n in range(2500)})
    assert await database.spend.save(many, NOW)
    assert await database.spend.load(ROOT) == many
    assert len(await database.spend.monthly_usage()) == 2500


async def test_a_thousand_changed_counters_are_saved_quickly(database: Database) -> None:
    """The aim is 50 ms; five times that is the alarm, since this machine may be busy. The best of five counts."""
    costs = {f"key_{n}:2026:11": n for n in range(1000)}
    spent = []
    for number in range(5):
        start = time.perf_counter()
        assert await database.spend.save(snapshot({"p": number}, costs), NOW)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.25


async def test_producers_enrol_beat_and_retire(url: str, database: Database) -> None:
    """A heartbeat never moves back; a closed producer stays closed, whoever enrols or closes it again."""
    spend = database.spend
    await spend.enrol_producer("p", 10)
    await spend.enrol_producer("p", 20)
    await spend.enrol_producer("p", 15)
    assert await producers(database) == {"p": (10, 20, None)}
    await spend.retire_producer("p", 30)
    await spend.enrol_producer("p", 40)
    await spend.retire_producer("p", 50)
    await spend.retire_producer("unknown", 60)
    assert await producers(database) == {"p": (10, 30, 30), "unknown": (60, 60, 60)}


async def producers(database: Database) -> dict[str, tuple[int, int, int | None]]:
    from tollkeeper.storage.tables import producers as table

    async with database._transactions.read() as transaction:
        return {
            row.id: (row.enrolled_us, row.seen_us, row.closed_us) for row in await transaction.rows(table.select())
        }


async def test_many_roots_are_saved_together_each_by_its_own_marks(database: Database) -> None:
    """One transaction: what is newer is written with its months, what is not is left as it is, and named."""
    many = [snapshot({"p": 5}, {f"key_{n}:2026:11": 1, "2026:11": 1}, f"org_{n}") for n in range(70)]
    assert await database.spend.save_all(many, NOW) == {one.root for one in many}
    stale = snapshot({"p": 4}, {"key_stale:2026:11": 9}, "org_3")
    unknowing = snapshot({"q": 9}, {"key_stale:2026:11": 9}, "org_4")
    newer = snapshot({"p": 6}, {"key_b:2026:12": 7, "total": 7}, "org_5")
    fresh = snapshot({"r": 1}, {"key_c:2026:12": 8}, "org_new")
    assert await database.spend.save_all([stale, newer, unknowing, fresh], NOW + 1) == {"org_5", "org_new"}
    assert await database.spend.load("org_3") == many[3] and await database.spend.load("org_4") == many[4]
    assert (await database.spend.load("org_5")).totals == {**many[5].totals, **newer.totals}
    months = {(row.key_id, row.month): row.cost_nano for row in await database.spend.monthly_usage()}
    assert months == {(f"key_{n}", 11): 1 for n in range(70)} | {("key_b", 12): 7, ("key_c", 12): 8}


async def test_saves_of_the_same_roots_in_any_order_wait_for_each_other(
    database: Database, url: str, opened: Opener
) -> None:
    """No two transactions ever stand in each other's way for good."""
    peer = await opened(url)
    roots = [f"org_{n}" for n in range(12)]
    for number in range(1, 11):
        one = [snapshot({"p": number}, {"total": number}, root) for root in roots]
        other = [snapshot({"p": number}, {"total": number}, root) for root in reversed(roots)]
        saved = await asyncio.gather(database.spend.save_all(one, NOW), peer.spend.save_all(other, NOW))
        assert all(written == set(roots) for written in saved)
