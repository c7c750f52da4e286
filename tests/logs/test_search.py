"""Pages of records: newest first, each record once, whatever was shipped when."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.logs.conftest import NOON_US, make_record
from tests.logs.test_query import HOUR_US, ship
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.log_search import LogFilters
from tollkeeper.logs import search as search_module
from tollkeeper.logs.search import follow, search
from tollkeeper.logs.sinks import LogStore


async def pages(store: LogStore, filters: LogFilters, limit: int) -> tuple[list[dict[str, Any]], int]:
    """All pages put together, and their number."""
    found: list[dict[str, Any]] = []
    cursor, count = None, 0
    while True:
        page = await search(store, filters, limit, cursor)
        found += page.records
        count += 1
        assert count < 1000
        if page.next_cursor is None:
            return found, count
        assert page.next_cursor != cursor
        cursor = page.next_cursor


def positions(records: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(record["time_us"], record["request_id"]) for record in records]


@pytest.mark.parametrize("limit", [7, 1000])
async def test_pages_are_all_records_newest_first(store: LogStore, limit: int) -> None:
    """Two producers over two days, records out of order in their batches, two at the same microsecond."""
    await turn_pages(store, limit)


async def test_pages_of_one_record(folder: LogStore) -> None:
    """The same; each page looks at the store anew, so that this is long enough in a folder."""
    await turn_pages(folder, 1)


async def turn_pages(store: LogStore, limit: int) -> None:
    rng = random.Random(limit)
    records = [
        make_record(n, time_us=NOON_US + n // 2 * HOUR_US + rng.randrange(3) * HOUR_US // 2) for n in range(60)
    ]
    await ship(store, *records[:30], object_records_max=4)
    await ship(store, *records[30:], producer="gw2", format="parquet", object_records_max=7)
    found, count = await pages(store, LogFilters(), limit)
    assert positions(found) == sorted(((r.time_us, r.request_id) for r in records), reverse=True)
    assert count == -(-60 // limit)


async def test_a_bound_on_reading_ends_a_page_and_nothing_is_missed(
    folder: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one object a look, pages may be short or empty, but together they are all records, each once."""
    monkeypatch.setattr(search_module, "READ_BYTES_MAX", 1)
    for module in ("extent", "search"):
        monkeypatch.setattr(f"tollkeeper.logs.{module}.LATE_MAX_US", 2 * HOUR_US)
    records = [make_record(n, time_us=NOON_US + n * HOUR_US // 3) for n in range(60)]
    await ship(folder, *records, object_records_max=2)
    found, count = await pages(folder, LogFilters(), 1000)
    assert positions(found) == sorted(((r.time_us, r.request_id) for r in records), reverse=True)
    assert count > 5


async def test_an_object_that_was_written_late_does_not_hide_younger_records(folder: LogStore) -> None:
    """It may hold the youngest, so it is read first; what it holds is old."""
    await ship(folder, make_record(1), make_record(2, time_us=NOON_US + 1), producer="late")
    await ship(folder, make_record(3, time_us=NOON_US + 4 * HOUR_US), producer="in-time")
    for path in Path(folder.url.removeprefix("file://")).rglob("*.jsonl.gz"):
        written_us = NOON_US + (6 if "late" in path.name else 4) * HOUR_US
        os.utime(path, ns=(written_us * 1000, written_us * 1000))
    found, count = await pages(folder, LogFilters(), 1)
    assert [record["tokens_input"] for record in found] == [3, 2, 1] and count == 3


FILTERS: dict[str, tuple[LogFilters, set[int]]] = {
    "key by name": (LogFilters(key="two"), {2}),
    "key by id": (LogFilters(key="key_1"), {1, 3, 4}),
    "model": (LogFilters(model="o4-mini"), {3}),
    "user": (LogFilters(user="ann"), {4}),
    "tag": (LogFilters(tag="prod"), {4}),
    "team": (LogFilters(team="team_1"), {2}),
    "status": (LogFilters(status="429"), {3}),
    "class of status": (LogFilters(status="4xx"), {3}),
    "errors": (LogFilters(errors=True), {1, 3}),
    "request": (LogFilters(request_id="req_2"), {2}),
    "since": (LogFilters(since_us=NOON_US + 3), {3, 4}),
    "until": (LogFilters(until_us=NOON_US + 3), {1, 2}),
    "together": (LogFilters(key="demo", since_us=NOON_US + 2, errors=True), {3}),
    "nothing": (LogFilters(model="x"), set()),
}


@pytest.mark.parametrize(("filters", "expected"), FILTERS.values(), ids=FILTERS)
async def test_filters(folder: LogStore, filters: LogFilters, expected: set[int]) -> None:
    await ship(
        folder,
        make_record(1, error="upstream_stream_error"),
        make_record(2, key_id="key_2", key_name="two", team_id="team_1"),
        make_record(3, model="o4-mini", status=429),
        make_record(4, user="ann", tags=("dev", "prod")),
    )
    found, _ = await pages(folder, filters, 2)
    assert {record["tokens_input"] for record in found} == expected


async def test_bodies_come_only_if_asked_for(folder: LogStore) -> None:
    await ship(folder, make_record(1, request_body="{}"))
    assert (await search(folder, LogFilters(), 1)).records[0]["request_body"] is None
    assert (await search(folder, LogFilters(), 1, bodies=True)).records[0]["request_body"] == "{}"


async def test_what_cannot_be_asked_is_said(folder: LogStore) -> None:
    for filters, limit, cursor, bodies in (
        (LogFilters(status="bad"), 1, None, False),
        (LogFilters(since_us=2, until_us=1), 1, None, False),
        (LogFilters(), 0, None, False),
        (LogFilters(), 1001, None, False),
        (LogFilters(), 101, None, True),
        (LogFilters(), 1, "x", False),
    ):
        with pytest.raises(InvalidInput):
            await search(folder, filters, limit, cursor, bodies=bodies)
    assert (await search(folder, LogFilters(), 10)).records == []


async def test_broken_objects_and_lines_are_passed_over(folder: LogStore) -> None:
    await ship(folder, make_record(1))
    root = Path(folder.url.removeprefix("file://"))
    (root / "dt=2026-11-23" / "hour=12" / "x-1-1.jsonl.gz").write_bytes(b"nonsense")
    (root / "dt=2026-11-23" / "hour=12" / "readme.txt").write_bytes(b"not ours")
    (root / "dt=someday").mkdir()
    assert len((await search(folder, LogFilters(), 10)).records) == 1


async def test_follow_tells_each_new_record_once(folder: LogStore) -> None:
    await ship(folder, make_record(1))
    arriving = follow(folder, LogFilters(model="gpt-4o-mini"), interval_s=0.01)
    assert await anext(arriving) == []
    await ship(folder, make_record(2), make_record(3, model="other"), producer="gw2")
    told: list[int] = []
    while len(told) < 1:
        told += [record["tokens_input"] for record in await anext(arriving)]
    await ship(folder, make_record(4), producer="gw3")
    while len(told) < 2:
        told += [record["tokens_input"] for record in await anext(arriving)]
    assert told == [2, 4]
    await arriving.aclose()  # type: ignore[attr-defined]
