"""The pipeline over Redis: several gateways and workers, Redis away, gateways that die. No record unaccounted for."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.logs.conftest import NOON_US, make_pipeline, make_record, until
from tests.servers.redis import RedisServer
from tollkeeper.domain.log_queue import Bounds, Chunk
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.logs.queues import RedisQueue
from tollkeeper.logs.shipper import Shipper
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.verify import verify
from tollkeeper.logs.worker import LogWorker
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def client(own_redis: RedisServer) -> AsyncIterator[RedisClient]:
    async with RedisClient(url=own_redis.url, read_timeout_s=1.0) as client:
        yield client


def gateway(client: RedisClient, store: LogStore, name: str, spool: Path, **settings: object) -> LogPipeline:
    return make_pipeline(store, name, client=client, spool_root=spool, **settings)


def worker(client: RedisClient, store: LogStore, spool: Path | None = None) -> LogWorker:
    return LogWorker(
        settings=LogSettings(flush_interval_s=0.05, timeout_s=5.0, object_records_max=40),
        url="",
        metrics=Metrics(),
        now_us=lambda: NOON_US,
        client=client,
        store=store,
        spool_root=spool,
    )


async def drained(client: RedisClient) -> bool:
    queue = RedisQueue(client, "test", Bounds())
    return (await queue.stats()).size == 0


async def test_many_gateways_and_workers_deliver_each_record_once(
    client: RedisClient, folder: LogStore, tmp_path: Path
) -> None:
    gateways = [gateway(client, folder, f"gw{n}", tmp_path / "spool", object_records_max=30) for n in range(3)]
    workers = [worker(client, folder) for _ in range(2)]
    for pipeline in gateways:
        await pipeline.start()
    for each in workers:
        await each.start()
    for i in range(1_000):
        gateways[i % 3].put(make_record(i))
        if i % 7 == 0:
            await asyncio.sleep(0)
    for pipeline in gateways:
        stats = await pipeline.stop()
        assert (stats.pending, stats.dropped) == (0, 0)
    for each in workers:
        await each.stop()
    report = await verify(folder, {"gw0": 334, "gw1": 333, "gw2": 333})
    assert report.complete and report.records == 1_000
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("round_", range(3))
async def test_two_shippers_race_for_one_lease(client: RedisClient, store: LogStore, round_: int) -> None:
    """Both hold it, for it expired at once; both write; the object is there once, and counts once."""
    queue = RedisQueue(client, "run", Bounds(), shard=f"race-{round_}")
    parts = tuple(msgspec.json.encode({"producer": "p", "number": n, "time_us": NOON_US}) for n in range(1, 51))
    await queue.put(Chunk("p", 1, parts))
    shippers = [
        Shipper(
            [queue], store, records_max=50, bytes_max=10**6, flush_interval_s=0, lease_s=0, metrics=Metrics(),
            now_us=lambda: NOON_US,
        )
        for _ in range(2)
    ]  # fmt: skip
    await asyncio.gather(*(shipper.ship() for shipper in shippers))
    while await shippers[0].ship() is not None:
        pass
    assert sum(shipper.delivered for shipper in shippers) == 50
    assert sum(shipper.conflicts for shipper in shippers) == 0
    report = await verify(store, {"p": 50}, [queue])
    assert report.complete and (report.objects, report.records) == (1, 50)


async def test_without_shipping_gateways_leave_it_to_workers(
    client: RedisClient, folder: LogStore, tmp_path: Path
) -> None:
    pipeline = gateway(client, folder, "gw", tmp_path / "spool", ship=False)
    await pipeline.start()
    for i in range(100):
        pipeline.put(make_record(i))
    assert (await pipeline.stop()).pending == 0
    queue = RedisQueue(client, "test", Bounds())
    assert (await queue.stats()).waiting == 100
    report = await verify(folder, queues=[queue])
    assert report.producers["gw"].pending == ((1, 100),) and report.complete
    each = worker(client, folder)
    await each.start()
    await each.stop()
    report = await verify(folder, queues=[queue])
    assert report.complete and report.records == 100 and report.producers["gw"].pending == ()


async def test_redis_away_records_go_to_disk_and_come_back_in_order_once(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path
) -> None:
    """Killed in the midst of a stream of records, twice; what was on its way may have arrived or not."""
    pipeline = gateway(client, folder, "gw", tmp_path / "spool", object_records_max=20, lease_s=1.0)
    await pipeline.start()

    async def some(count: int) -> None:
        for _ in range(count):
            pipeline.put(make_record(pipeline.stats().produced))
            await asyncio.sleep(0.001)

    for _ in range(2):
        await some(100)
        own_redis.kill()
        await some(100)
        await until(lambda: pipeline.stats().spooled_bytes > 0)
        own_redis.start()
        await some(100)
        await until(lambda: pipeline.stats().spooled_bytes == 0)
    stats = await pipeline.stop()
    assert (stats.produced, stats.dropped, stats.pending) == (600, 0, 0)
    other = worker(client, folder)  # takes over what was leased when a kill took the lease's answer
    await other.start()
    deadline = time.monotonic() + 60
    while not await drained(client):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await other.stop()
    report = await verify(folder, {"gw": 600}, [RedisQueue(client, "test", Bounds())])
    assert report.complete and report.records == 600


async def test_a_spool_ends_though_records_keep_coming(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path
) -> None:
    """One in every turn of the event loop, from before Redis is killed until the spool has ended."""
    pipeline = gateway(client, folder, "gw", tmp_path / "spool", ship=False)
    await pipeline.start()
    ended = False

    async def records() -> None:
        while not ended:
            pipeline.put(make_record(pipeline.stats().produced))
            await asyncio.sleep(0)

    coming = asyncio.create_task(records())
    await until(lambda: pipeline.stats().produced > 100)
    own_redis.kill()
    await until(lambda: pipeline.stats().spooled_bytes > 10**6)
    own_redis.start()
    try:
        await until(lambda: pipeline.stats().spooled_bytes == 0, timeout_s=30)
    finally:
        ended = True
        await coming
    stats = await pipeline.stop()
    assert (stats.dropped, stats.pending) == (0, 0)
    stored = await RedisQueue(client, "test", Bounds()).stats()
    assert stored.waiting == stats.produced


async def test_a_frozen_redis_is_away_within_half_a_second(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path
) -> None:
    pipeline = gateway(client, folder, "gw", tmp_path / "spool")
    await pipeline.start()
    own_redis.freeze()
    pipeline.put(make_record(1))
    await until(lambda: pipeline.stats().spooled_bytes > 0, timeout_s=5)
    own_redis.thaw()
    await until(lambda: pipeline.stats().spooled_bytes == 0)
    await pipeline.stop()
    assert (await verify(folder, {"gw": 1})).complete


async def test_a_full_spool_forgets_the_oldest_and_tells_which(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollkeeper.logs.spool.SEGMENT_BYTES", 20_000)
    pipeline = gateway(client, folder, "gw", tmp_path / "spool", spool_bytes_max=100_000)
    await pipeline.start()
    own_redis.kill()
    await until(lambda: client.state != "up")  # else what waits for the answer meanwhile is one large chunk
    while pipeline.stats().produced < 1_000 or pipeline.stats().spooled_bytes > 100_000:  # one large chunk is more
        for i in range(10):
            pipeline.put(make_record(i))
        await asyncio.sleep(0.001)
    await until(lambda: pipeline.stats().dropped > 0)
    own_redis.start()
    await until(lambda: pipeline.stats().spooled_bytes == 0)
    stats = await pipeline.stop()
    report = await verify(folder, {"gw": stats.produced})
    # What was on its way when the spool was full arrives; the oldest after it are dropped, one range of them.
    ((first, last),) = report.producers["gw"].dropped
    assert last - first + 1 == stats.dropped > 0
    assert report.complete and report.records == stats.produced - stats.dropped


async def test_dropped_is_a_choice(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path
) -> None:
    pipeline = gateway(client, folder, "gw", tmp_path / "spool", redis_away="drop")
    await pipeline.start()
    own_redis.kill()
    for i in range(50):
        pipeline.put(make_record(i))
    await until(lambda: pipeline.stats().dropped == 50)
    own_redis.start()
    await until(lambda: client.state == "up")
    pipeline.put(make_record(51))
    stats = await pipeline.stop()
    report = await verify(folder, {"gw": 51})
    assert report.producers["gw"].dropped == ((1, 50),) and report.complete
    assert (stats.dropped, stats.pending) == (50, 0)


async def test_overflow_in_redis_is_told_in_the_store(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path
) -> None:
    """The ranges that were dropped reach the store with the next batch, so that the proof can name them."""
    pipeline = gateway(client, folder, "gw", tmp_path / "spool", ship=False, records_max=100)
    await pipeline.start()
    for i in range(1_000):
        pipeline.put(make_record(i))
        if i % 10 == 9:
            await asyncio.sleep(0)
    stats = await pipeline.stop()
    assert stats.dropped == 900
    each = worker(client, folder)
    await each.start()
    await each.stop()
    report = await verify(folder, {"gw": 1_000})
    assert report.producers["gw"].dropped == ((1, 900),)
    assert report.complete and report.records == 100


async def test_a_gateway_that_is_killed_loses_only_its_memory_and_that_is_named(
    client: RedisClient, own_redis: RedisServer, folder: LogStore, tmp_path: Path
) -> None:
    """Records in Redis are shipped by another; those on disk by whoever finds the spool; the rest is told as lost."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.logs.produce_and_die", own_redis.url, str(tmp_path / "spool"),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async for line in process.stdout:  # log lines are among them
        if line == b"brought\n":
            own_redis.kill()
    assert await process.wait() == -signal.SIGKILL
    own_redis.start()
    await until(lambda: client.state == "up")
    each = worker(client, folder, tmp_path / "spool")
    await each.start()
    await until(lambda: not list((tmp_path / "spool").iterdir()))
    await each.stop()
    report = await verify(folder, queues=[RedisQueue(client, "test", Bounds())])
    assert report.producers["dying"].gaps == ((201, 207),)
    assert report.producers["dying"].last == 207
    assert not report.complete and report.records == 200
    assert await drained(client)


async def test_without_redis_what_cannot_be_shipped_waits_on_disk_for_the_next_start(
    folder: LogStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_pipeline(folder, "first", spool_root=tmp_path / "spool", flush_interval_s=3600.0)
    create = folder.create

    async def away(*_: object) -> bool:
        raise OSError("no store")

    monkeypatch.setattr(folder, "create", away)
    await first.start()
    for i in range(100):
        first.put(make_record(i))
    await asyncio.sleep(0.01)
    monkeypatch.setattr(first._shipper, "ship", away)
    stats = await first.stop(deadline_s=0.1)
    assert stats.pending == 0
    monkeypatch.setattr(folder, "create", create)
    second = make_pipeline(folder, "second", spool_root=tmp_path / "spool")
    await second.start()
    await until(lambda: not (tmp_path / "spool" / "first").exists())
    await second.stop()
    report = await verify(folder, {"first": 100})
    assert report.complete and report.records == 100
