"""Small objects become large ones, and at every moment each record counts once."""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.logs.conftest import NOON_US, make_pipeline, make_record
from tollkeeper.domain.errors import LogStoreUnavailable
from tollkeeper.domain.log_search import LogFilters
from tollkeeper.logs.compacted import is_compacted
from tollkeeper.logs.compaction import GRACE_US, MEMBERS_MIN, Compaction, compact
from tollkeeper.logs.query import Interval, query
from tollkeeper.logs.retention import retire
from tollkeeper.logs.search import search
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.verify import verify

HOUR_US = 3_600_000_000
RECORDS = 12
LATER_US = 4_102_444_800_000_000
"""2100-01-01: whatever was written before is old."""


async def ship(store: LogStore, producer: str = "gw", count: int = RECORDS, hour: int = 0, **settings: Any) -> None:
    """A record an object."""
    pipeline = make_pipeline(store, producer, object_records_max=1, **settings)
    for number in range(count):
        pipeline.put(make_record(number, time_us=NOON_US + hour * HOUR_US + number, cost_nano=number))
    await pipeline.start()
    assert (await pipeline.stop()).pending == 0


async def all_is_there(store: LogStore, producers: int = 1, count: int = RECORDS) -> None:
    """To the proof, to SQL, and to who looks through pages."""
    report = await verify(store, dict.fromkeys([f"gw{n or ''}" for n in range(producers)], count))
    assert report.complete, report
    assert report.records == producers * count
    rows = await query(store, "SELECT count(*), count(DISTINCT (producer, number)), sum(cost_nano) FROM logs")
    assert rows.rows == [(producers * count, producers * count, producers * sum(range(count)))]
    page = await search(store, LogFilters(), 1000)
    assert Counter((r["producer"], r["number"]) for r in page.records).most_common(1)[0][1] == 1
    assert len(page.records) == producers * count


async def paths(store: LogStore) -> list[str]:
    return sorted([path async for path in store.list()])


async def test_every_store_can_do_it(store: LogStore) -> None:
    await ship(store, count=MEMBERS_MIN)
    for _ in range(3):
        await compact(store, LATER_US, 0)
        report = await verify(store, {"gw": MEMBERS_MIN})
        assert report.complete and report.records == MEMBERS_MIN
    assert len(await paths(store)) == 3


async def test_from_small_to_large_step_by_step(folder: LogStore) -> None:
    """A plan and its object, then the mark, then the end of the old ones; then there is nothing to do."""
    await ship(folder)
    await ship(folder, "gw1", hour=1, format="parquet")
    before = await query(folder, "SELECT * FROM logs ORDER BY producer, number")
    steps = [await compact(folder, LATER_US, 0)]
    await all_is_there(folder, 2)
    for _ in range(3):
        steps.append(await compact(folder, LATER_US, 0))
        await all_is_there(folder, 2)
    assert steps == [Compaction(2, 2), Compaction(counted=2), Compaction(deleted=2 * RECORDS), Compaction()]
    assert len(await paths(folder)) == 6 and all(is_compacted(path) for path in await paths(folder))
    after = await query(folder, "SELECT * FROM logs ORDER BY producer, number")
    assert after.rows == before.rows and after.objects == 2


async def test_nothing_is_done_before_its_time(folder: LogStore) -> None:
    """Of an hour that runs, or has just ended; of a new object, or a new mark."""
    await ship(folder)
    ended_us = NOON_US + HOUR_US
    assert await compact(folder, ended_us + 99, 100) == Compaction()
    assert (await compact(folder, ended_us + 100, 100)).planned == 1
    written_us = max([item.modified_us async for item in folder.listing()])
    for what in ("counted", "deleted"):
        assert await compact(folder, written_us + GRACE_US - 60_000_000, 0) == Compaction()
        assert getattr(await compact(folder, written_us + GRACE_US + 60_000_000, 0), what) > 0


async def test_an_interval_still_finds_what_was_put_together_much_later(folder: LogStore) -> None:
    """And reads no more than it must: what the object can hold is in its name, not in when it was written."""
    await ship(folder)
    for path in Path(folder.url.removeprefix("file://")).rglob("*.gz"):
        os.utime(path, (NOON_US / 1e6 + 60, NOON_US / 1e6 + 60))
    for _ in range(3):
        await compact(folder, LATER_US, 0)
    found = await query(folder, "SELECT count(*) FROM logs", Interval(NOON_US + 5, NOON_US + 10))
    assert (found.rows, found.objects) == ([(5,)], 1)
    later = await query(folder, "SELECT count(*) FROM logs", Interval(NOON_US + HOUR_US, None))
    assert (later.rows, later.objects) == ([(0,)], 0)


def crashing(store: LogStore, monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """The store fails at a call, and at all later ones; `at` counts those that change something, too."""
    calls = 0

    def failing(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise LogStoreUnavailable("gone")
            return await call(*args)

        return wrapped

    for name in ("create", "delete", "read"):
        monkeypatch.setattr(store, name, failing(getattr(store, name)))
    return lambda: calls


async def test_a_crash_at_any_call_loses_and_doubles_nothing(
    folder: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes next goes on; in the end all is put together."""
    await ship(folder, count=MEMBERS_MIN)
    at = 0
    while True:
        with monkeypatch.context() as patched:
            calls = crashing(folder, patched, at)
            done = None
            with suppress(LogStoreUnavailable):
                done = await compact(folder, LATER_US, 0)
            crashed = calls() > at
        assert (await verify(folder, {"gw": MEMBERS_MIN})).complete
        if done == Compaction():
            break
        at = at + 1 if crashed else 0
    await all_is_there(folder, count=MEMBERS_MIN)
    assert len(await paths(folder)) == 3


async def test_several_at_once_are_as_one(folder: LogStore) -> None:
    """Whoever plans first, everybody goes on with the same plans."""
    await ship(folder)
    for _ in range(4):
        await asyncio.gather(*(compact(folder, LATER_US, 0) for _ in range(3)))
        await all_is_there(folder)
    assert len(await paths(folder)) == 3


async def test_a_batch_that_is_shipped_again_is_in_its_plan(folder: LogStore, tmp_path: Path) -> None:
    """Its shipper could not acknowledge it before it was put together and deleted."""
    await ship(folder)
    root = Path(folder.url.removeprefix("file://"))
    old = {path: path.read_bytes() for path in root.rglob("*.gz")}
    for _ in range(3):
        await compact(folder, LATER_US, 0)
    for path, body in list(old.items())[:3]:
        path.write_bytes(body)
    await all_is_there(folder)
    assert (await compact(folder, LATER_US, 0)).deleted == 3
    await ship(folder, "gw1")  # late ones are a plan of their own
    for _ in range(3):
        await compact(folder, LATER_US, 0)
        await all_is_there(folder, 2)
    assert len(await paths(folder)) == 6


async def test_what_does_not_hold_the_same_never_counts(folder: LogStore) -> None:
    await ship(folder)
    await compact(folder, LATER_US, 0)
    (built,) = Path(folder.url.removeprefix("file://")).rglob("compact-*.gz")
    built.write_bytes(built.read_bytes()[:-30])
    for _ in range(2):
        assert await compact(folder, LATER_US, 0) == Compaction()
        await all_is_there(folder)
    (first, *_) = sorted(Path(folder.url.removeprefix("file://")).rglob("[!c]*.gz"))
    first.write_bytes(first.read_bytes()[:-9])
    await ship(folder, "gw1")
    await compact(folder, LATER_US, 0)
    assert (await verify(folder)).unreadable == (str(first.relative_to(folder.url.removeprefix("file://"))),)


@pytest.mark.parametrize("steps", range(4))
async def test_retention_takes_what_was_put_together(folder: LogStore, steps: int) -> None:
    """Wholly, half, or not yet; the proof stays, and nothing else."""
    await ship(folder)
    for _ in range(steps):
        await compact(folder, LATER_US, 0)
    done = await retire(folder, date(2026, 11, 30))
    assert done.records == RECORDS and not done.kept
    report = await verify(folder, {"gw": RECORDS})
    assert report.complete and report.producers["gw"].retired == ((1, RECORDS),)
    assert [path for path in await paths(folder) if path.startswith("dt=")] == []
