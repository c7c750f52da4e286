"""SQL over the store: what was shipped is what is counted, only what is asked for is read, nothing else."""

import os
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.logs.conftest import NOON_US, make_pipeline, make_record, store_at
from tests.logs.faulty_proxy import FaultyProxy
from tests.servers.s3 import S3Server
from tollkeeper.domain.errors import ConfigurationError, InvalidInput
from tollkeeper.logs import query as query_module
from tollkeeper.logs import schema
from tollkeeper.logs.query import ADDED, FOLDERS, Interval, QueryFailed, QueryStopped, query
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.stats import summary

HOUR_US = 3_600_000_000
FUTURE_US = 4_102_444_800_000_000
"""2100-01-01: later than any object is written, so that only folders decide."""


async def ship(store: LogStore, *records: Any, producer: str = "gw1", **settings: Any) -> None:
    pipeline = make_pipeline(store, producer, **settings)
    for record in records:
        pipeline.put(record)
    await pipeline.start()
    await pipeline.stop()


async def one(store: LogStore, sql: str, **interval: Any) -> Any:
    rows = await query(store, sql, Interval(**interval))
    return rows.rows[0] if len(rows.rows[0]) > 1 else rows.rows[0][0]


async def test_both_formats_are_one_table_with_every_column(store: LogStore) -> None:
    """Counted once each, values as they were put, money exact."""
    records = [make_record(n, cost_nano=n + 1, metadata={"team": f"t{n % 2}"}, tags=("a", "b")) for n in range(100)]
    await ship(store, *records, object_records_max=30)
    await ship(store, *records, producer="gw2", format="parquet")
    assert await one(store, "SELECT count(*), sum(cost_nano), sum(cost_usd) FROM logs") == (
        200,
        10_100,
        Decimal("0.000010100"),
    )
    assert await one(store, "SELECT count(DISTINCT producer) FROM logs WHERE tags[2] = 'b'") == 2
    assert await one(store, "SELECT count(*) FROM logs WHERE metadata['team'] = 't1'") == 100
    described = await query(store, "DESCRIBE logs")
    assert [(row[0], row[1]) for row in described.rows] == [
        *schema.columns().items(),
        *FOLDERS.items(),
        ("time", "TIMESTAMP WITH TIME ZONE"),
        ("cost_usd", "DECIMAL(29,9)"),
    ]
    assert list(ADDED) == ["time", "cost_usd"]
    folder = await query(store, "SELECT DISTINCT dt, hour FROM logs")
    assert [(str(dt), hour) for dt, hour in folder.rows] == [("2026-11-23", 12)]


async def test_an_empty_store_is_an_empty_table(folder: LogStore) -> None:
    assert await one(folder, "SELECT count(*), sum(cost_nano) FROM logs") == (0, None)
    assert (await summary(folder, Interval())).total["requests"] == 0


async def test_only_the_asked_partitions_are_fetched(s3_server: S3Server) -> None:
    """One listing of the days, one of each day that matters, one GET for each object of the asked hours."""
    async with FaultyProxy(s3_server.port) as proxy:
        url = s3_server.url()
        store = store_at(s3_server, url, port=proxy.port)
        for hour in range(72):
            await ship(store, make_record(hour, time_us=FUTURE_US + hour * HOUR_US), producer=f"gw{hour}")
        proxy.targets.clear()
        since_us = FUTURE_US + 30 * HOUR_US
        found = await query(
            store, "SELECT tokens_input FROM logs ORDER BY 1", Interval(since_us, since_us + 3 * HOUR_US)
        )
        assert [row[0] for row in found.rows] == [30, 31, 32]
        lists = [line for line in proxy.targets if "list-type=2" in line]
        reads = [line for line in proxy.targets if "list-type=2" not in line]
        assert len(lists) == 3, lists  # the days; 2100-01-02; and 2100-01-01 for what waited for the store
        assert sorted(unquote(line).partition("dt=")[2][:18] for line in reads) == [
            f"2100-01-02/hour={hour:02}" for hour in (6, 7, 8)
        ]


async def test_a_record_that_waited_for_the_store_is_found_by_its_own_time(folder: LogStore) -> None:
    """A batch of an outage lies in the hour of its earliest record and was written later; one written before the
    asked time is not read."""
    outage = [make_record(n, time_us=NOON_US + n * HOUR_US) for n in range(5)]
    await ship(folder, *outage, make_record(9, time_us=NOON_US - 1), producer="late")
    await ship(folder, make_record(7, time_us=NOON_US + 1), producer="intime")
    for path in Path(folder.url.removeprefix("file://")).rglob("*.jsonl.gz"):
        written_us = NOON_US + (5 * HOUR_US if "late" in path.name else HOUR_US)
        os.utime(path, ns=(written_us * 1000, written_us * 1000))
    found = await query(folder, "SELECT tokens_input, hour FROM logs", Interval(NOON_US + 3 * HOUR_US, None))
    assert sorted(found.rows) == [(3, 11), (4, 11)]
    assert found.objects == 1
    assert await one(folder, "SELECT count(*) FROM logs", until_us=NOON_US) == 1
    assert await one(folder, "SELECT count(*) FROM logs", since_us=NOON_US, until_us=NOON_US + HOUR_US) == 2


async def test_a_key_by_name_or_id(folder: LogStore) -> None:
    await ship(folder, make_record(1), make_record(2, key_id="key_2", key_name="o'ther"))
    for key, count in (("key_1", 1), ("o'ther", 1), ("demo", 1), ("nobody", 0)):
        assert await one(folder, "SELECT count(*) FROM logs", key=key) == count


REFUSED = {
    "a file": "SELECT * FROM read_text('/etc/passwd')",
    "another file": "FROM '/etc/passwd'",
    "the network": "SELECT * FROM read_csv('http://127.0.0.1:9/x')",
    "a folder": "SELECT * FROM glob('/*')",
    "writing": "COPY (SELECT 1) TO '/tmp/tollkeeper-was-here'",
    "settings": "SET memory_limit = '100GB'",
    "extensions": "INSTALL httpfs",
    "databases": "ATTACH '/tmp/tollkeeper-was-here.db'",
    "tables": "CREATE TABLE t AS SELECT 1",
    "two statements": "SELECT 1; SELECT 2",
    "nothing": "",
    "no SQL": "tell me",
    "no such column": "SELECT nope FROM logs",
    "no such table": "SELECT * FROM lots",
    "a wrong cast": "SELECT CAST(model AS INTEGER) FROM logs",
}


@pytest.mark.parametrize("sql", REFUSED.values(), ids=REFUSED)
async def test_nothing_but_the_table_can_be_touched(folder: LogStore, sql: str) -> None:
    """Bad SQL and everything that is not a question about the records is an error that says so."""
    await ship(folder, make_record(1))
    with pytest.raises(QueryFailed) as refused:
        await query(folder, sql)
    assert str(refused.value)
    assert not Path("/tmp/tollkeeper-was-here").exists()


async def test_objects_outside_the_asked_interval_cannot_be_read(folder: LogStore) -> None:
    await ship(folder, make_record(1, time_us=FUTURE_US), producer="other")
    await ship(folder, make_record(1, time_us=FUTURE_US + 48 * HOUR_US))
    (path,) = Path(folder.url.removeprefix("file://")).rglob("other*.gz")
    with pytest.raises(QueryFailed, match="disabled by configuration"):
        await query(folder, f"SELECT * FROM read_json('{path}')", Interval(FUTURE_US + 47 * HOUR_US))


async def test_time_memory_and_rows_are_bounded(folder: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with pytest.raises(QueryStopped, match=r"stopped after 0\.3 s"):
        await query(folder, "SELECT count(*) FROM range(100000000000) a, range(1000) b", timeout_s=0.3)
    with pytest.raises(QueryStopped, match=r"(?i)memory"):
        await query(folder, "SELECT list(a.range) FROM range(100000000) a")
    found = await query(folder, "SELECT * FROM range(10)", limit=3)
    assert (found.rows, found.more) == ([(0,), (1,), (2,)], True)
    for limit in (0, 2_000_000):
        with pytest.raises(InvalidInput, match="limit"):
            await query(folder, "SELECT 1", limit=limit)
    await ship(folder, make_record(1), make_record(2), object_records_max=1)
    monkeypatch.setattr(query_module, "OBJECTS_MAX", 1)
    with pytest.raises(InvalidInput, match="give --since and --until"):
        await query(folder, "SELECT 1")
    assert threading.active_count() <= before + 8


async def test_more_bytes_than_may_be_fetched_are_refused_before_fetching(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(s3_server)
    await ship(store, make_record(1))
    monkeypatch.setattr(query_module, "FETCHED_BYTES_MAX", 10)
    with pytest.raises(InvalidInput, match="give --since and --until"):
        await query(store, "SELECT 1")


async def test_many_small_objects_are_put_together_and_counted_once(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several files of their hours, large ones and Parquet beside them."""
    monkeypatch.setattr(query_module, "TOGETHER_BYTES_MAX", 5_000)
    monkeypatch.setattr(query_module, "SMALL_BYTES_MAX", 1_000)
    monkeypatch.setattr(query_module, "READ_TOGETHER", 3)
    records = [make_record(n, time_us=NOON_US + n % 2 * HOUR_US, cost_nano=n) for n in range(40)]
    await ship(store, *records, object_records_max=1)
    await ship(store, *records, producer="gw2")
    await ship(store, *records[:3], producer="gw3", format="parquet")
    rows = await query(store, "SELECT producer, count(*), sum(cost_nano) FROM logs GROUP BY 1 ORDER BY 1")
    assert rows.rows == [("gw1", 40, 780), ("gw2", 40, 780), ("gw3", 3, 3)]
    assert rows.objects == 42
    assert await one(store, "SELECT count(*) FROM logs WHERE hour = 13") == 20


async def test_a_broken_object_is_named(folder: LogStore) -> None:
    await ship(folder, make_record(1))
    (path,) = Path(folder.url.removeprefix("file://")).rglob("*.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(QueryFailed, match=r"gw1-1\.jsonl\.gz"):
        await query(folder, "SELECT sum(tokens_input) FROM logs")


async def test_without_duckdb_it_says_what_to_install(folder: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigurationError, match=r"tollkeeper\[query\]"):
        await query(folder, "SELECT 1")


async def test_the_summary_is_of_the_records(folder: LogStore) -> None:
    await ship(
        folder,
        make_record(1, cost_nano=5, total_us=10_000),
        make_record(2, cost_nano=9, model="o4-mini", error="upstream_500", total_us=30_000),
        make_record(3, admitted=False, error="rate_limit_exceeded"),
    )
    found = await summary(folder, Interval())
    total = found.total
    assert (total["requests"], total["errors"], total["refused"]) == (3, 2, 1)
    assert (total["tokens_input"], total["cost_usd"], total["total_ms_p50"]) == (6, Decimal("0.000000014"), 10)
    assert [(row["name"], row["requests"]) for row in found.models] == [("o4-mini", 1), ("gpt-4o-mini", 2)]
