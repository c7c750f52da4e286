"""The pipeline on stores that work: every record numbered, delivered once, accounted for."""

import asyncio
import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.logs.conftest import NOON_US, make_pipeline, make_record, until
from tests.servers.s3 import S3Server
from tollkeeper.domain.errors import ConfigurationError, InvalidInput, LogStoreUnavailable
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs.encoding import RECORD_BYTES_MAX
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.verify import verify
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings


async def records_of(store: LogStore) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    async for path in store.list():
        lines += [msgspec.json.decode(line) for line in gzip.decompress(await store.read(path)).splitlines()]
    return sorted(lines, key=lambda line: (line["producer"], line["number"]))


def in_balance(pipeline: LogPipeline) -> bool:
    stats = pipeline.stats()
    return stats.produced == stats.delivered + stats.dropped + stats.pending


async def test_every_record_arrives_once_and_unchanged(store: LogStore) -> None:
    pipeline = make_pipeline(store, object_records_max=40)
    await pipeline.start()
    await pipeline.start()
    sent = [make_record(i, user="ü\n\u2028", cost_nano=2**53 + i) for i in range(1, 101)]
    for record in sent:
        pipeline.put(record)
    stats = await pipeline.stop()
    assert (stats.produced, stats.delivered, stats.dropped, stats.pending) == (100, 100, 0, 0)
    report = await verify(store, {"gw1": 100})
    assert report.complete and report.objects == 3
    arrived = [msgspec.convert(line, RequestRecord) for line in await records_of(store)]
    assert arrived == sent
    assert [record.number for record in arrived] == list(range(1, 101))


@pytest.mark.parametrize("started", [True, False])
async def test_a_burst_is_bounded_by_the_queue_alone(folder: LogStore, started: bool) -> None:
    """20,000 records without giving way to the loop, 20 MB: more than waits in memory for a slow queue."""
    pipeline = make_pipeline(folder)
    if started:
        await pipeline.start()
        await asyncio.sleep(0)
    for i in range(20_000):
        pipeline.put(make_record(i, user="x" * 512))
    stats = await pipeline.stop() if started else pipeline.stats()
    assert (stats.produced, stats.dropped) == (20_000, 0)
    await pipeline.start()
    assert (await pipeline.stop()).delivered == 20_000


async def test_a_record_is_shipped_once_it_is_old_enough_or_enough_wait(folder: LogStore) -> None:
    slow = make_pipeline(folder, "slow", flush_interval_s=3600.0, object_records_max=10)
    await slow.start()
    for i in range(25):
        slow.put(make_record(i))
    await until(lambda: slow.stats().delivered == 20)
    await asyncio.sleep(0.15)
    assert slow.stats().pending == 5
    quick = make_pipeline(folder, "quick", flush_interval_s=0.01)
    await quick.start()
    quick.put(make_record())
    await until(lambda: quick.stats().delivered == 1)
    await quick.stop()
    await slow.stop()
    assert (await verify(folder, {"slow": 25, "quick": 1})).complete


async def test_the_record_may_be_reused_after_put(folder: LogStore) -> None:
    pipeline = make_pipeline(folder)
    record = make_record(1)
    pipeline.put(record)
    record.model = "another"
    pipeline.put(record)
    await pipeline.start()
    await pipeline.stop()
    assert [line["model"] for line in await records_of(folder)] == ["gpt-4o-mini", "another"]


BAD_RECORDS: dict[str, dict[str, Any]] = {
    "a lone surrogate": {"user": "\ud800"},
    "an unknown type": {"error": object()},
    "something nested": {"error": {1: object()}},
    "too many bytes": {"user": "x" * RECORD_BYTES_MAX},
    "no time": {"time_us": None, "user": object()},
}


@pytest.mark.parametrize("fields", BAD_RECORDS.values(), ids=BAD_RECORDS)
async def test_a_record_that_cannot_be_kept_is_replaced_by_one_that_says_so(
    folder: LogStore, fields: dict[str, Any]
) -> None:
    """No exception, no gap: the same number, what could be kept, and the reason."""
    pipeline = make_pipeline(folder)
    pipeline.put(make_record(1))
    pipeline.put(make_record(2, **fields))
    pipeline.put(make_record(3))
    await pipeline.start()
    stats = await pipeline.stop()
    assert (stats.delivered, stats.replaced) == (3, 1)
    lines = await records_of(folder)
    assert [line["number"] for line in lines] == [1, 2, 3]
    assert lines[1]["request_id"] == "req_2"
    assert lines[1]["replaced"]
    assert lines[0]["replaced"] is lines[2]["replaced"] is None
    assert len(msgspec.json.encode(lines[1])) < 10_000


async def test_a_record_of_exactly_the_largest_size_is_kept(folder: LogStore) -> None:
    pipeline = make_pipeline(folder)
    record = make_record(1, user="")
    record.producer, record.number = "gw1", 1
    record.user = "x" * (RECORD_BYTES_MAX - len(msgspec.json.encode(record)))
    pipeline.put(record)
    assert pipeline.stats().replaced == 0
    record.user += "x"
    pipeline.put(record)
    assert pipeline.stats().replaced == 1


async def test_the_metrics_balance_and_show_depth(folder: LogStore) -> None:
    metrics = Metrics()
    pipeline = LogPipeline(
        settings=LogSettings(records_max=10, object_records_max=5),
        url="",
        producer="gw1",
        metrics=metrics,
        now_us=lambda: NOON_US,
        store=folder,
    )
    await pipeline.start()
    for i in range(15):
        pipeline.put(make_record(i))
    for _ in range(10):
        await asyncio.sleep(0)  # before the shipper looks again
    before = metrics.exposition().decode()
    for line in ("records_produced_total 15.0", "records_dropped_total 5.0", "depth 10.0", "fill_ratio 1.0"):
        assert f"\ntollkeeper_log_{line}\n" in before
    assert "\ntollkeeper_log_shipping_lag_seconds " in before
    await pipeline.stop()
    after = metrics.exposition().decode()
    for line in ("records_delivered_total 10.0", "depth 0.0", "objects_total 2.0", "ship_failures_total 0.0"):
        assert f"\ntollkeeper_log_{line}\n" in after


async def test_overflow_keeps_the_newest_counts_exactly_and_bounds_memory(tmp_path: Path) -> None:
    """With the store away, 30,000 puts into a buffer of 5,000: what is leased and the newest stay."""
    tracemalloc.start()
    pipeline = make_pipeline(_dead_store(), records_max=5_000, object_records_max=1_000)
    await pipeline.start()
    for i in range(5_000):
        pipeline.put(make_record(i))
    full, _ = tracemalloc.get_traced_memory()
    await until(lambda: pipeline.stats().failures > 0)
    with capture_logs() as events:
        for i in range(25_000):
            pipeline.put(make_record(i))
            assert i % 5_000 or in_balance(pipeline)
            if i % 100 == 99:
                await asyncio.sleep(0)  # no loop produces thousands of records in one tick
        await pipeline._producer.flush()
    later, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert later < full * 1.3
    assert "log_queue_filling" not in [event["event"] for event in events], "it warned before"
    stats = pipeline.stats()
    assert (stats.produced, stats.dropped, stats.pending) == (30_000, 25_000, 5_000)
    stats = await pipeline.stop(deadline_s=0.1)
    assert stats.pending == 5_000


def _dead_store() -> LogStore:
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    return open_store("s3://bucket/x", 0.5, environ)


async def test_stop_keeps_its_deadline_and_says_what_is_left() -> None:
    pipeline = make_pipeline(_dead_store())
    await pipeline.start()
    for i in range(7):
        pipeline.put(make_record(i))
    started = asyncio.get_running_loop().time()
    with capture_logs() as events:
        stats = await pipeline.stop(deadline_s=0.3)
    assert asyncio.get_running_loop().time() - started < 1.0
    assert (stats.pending, stats.delivered) == (7, 0)
    assert stats.last_error
    left = next(event for event in events if event["event"] == "log_records_left")
    assert (left["records"], left["last"]) == (7, 7)


async def test_a_pipeline_that_never_started_stops(folder: LogStore) -> None:
    pipeline = make_pipeline(folder)
    assert (await pipeline.stop()).produced == 0


async def test_records_put_after_stop_are_pending_not_forgotten(folder: LogStore) -> None:
    pipeline = make_pipeline(folder)
    await pipeline.start()
    await pipeline.stop()
    pipeline.put(make_record())
    assert pipeline.stats().pending == 1


async def test_large_records_are_shipped_in_objects_of_bounded_size(folder: LogStore) -> None:
    pipeline = make_pipeline(folder, buffer_bytes_max=4 * 2**20, flush_interval_s=3600.0)
    await pipeline.start()
    for i in range(5):
        pipeline.put(make_record(i, user="x" * 900_000))
        await asyncio.sleep(0)
    await until(lambda: pipeline.stats().delivered >= 2)
    stats = await pipeline.stop()
    assert stats.produced == stats.delivered + stats.dropped
    assert (await verify(folder)).objects >= 2


async def test_ping_tells_the_truth(folder: LogStore) -> None:
    await make_pipeline(folder).ping()
    with pytest.raises(LogStoreUnavailable):
        await make_pipeline(_dead_store()).ping()


def test_what_cannot_work_is_refused_at_once(tmp_path: Path) -> None:
    def make(url: str, producer: str) -> LogPipeline:
        return LogPipeline(
            settings=LogSettings(), url=url, producer=producer, metrics=Metrics(), now_us=lambda: NOON_US
        )

    make(tmp_path.as_uri(), "gw-1.a_B")
    with pytest.raises(ConfigurationError):
        make("ftp://x", "gw")
    for producer in ("", "a/b", "../x", "a b", "x" * 129):
        with pytest.raises(InvalidInput):
            make(tmp_path.as_uri(), producer)


async def test_the_environment_gives_credentials_and_endpoint(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    url = s3_server.url()
    pipeline = LogPipeline(settings=LogSettings(), url=url, producer="gw1", metrics=Metrics(), now_us=lambda: NOON_US)
    pipeline.put(make_record())
    await pipeline.start()
    assert (await pipeline.stop()).delivered == 1
    assert (await verify(open_store(url, 5.0))).complete
