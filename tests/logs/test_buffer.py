"""The public buffer: one contract, in memory and in Redis."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.servers.redis import RedisCluster, RedisServer
from tollkeeper import InvalidInput, LogBuffer, RedisClient, StoreUnavailable
from tollkeeper.domain.log_queue import Chunk
from tollkeeper.logs.encoding import RECORD_BYTES_MAX
from tollkeeper.observability.metrics import Metrics


class Make:
    """Buffers of one name: of one process, or of several that share a Redis."""

    def __init__(self, client: RedisClient | None) -> None:
        self.client = client
        self.name = uuid.uuid4().hex
        self.made: list[LogBuffer] = []

    def __call__(self, **arguments: Any) -> LogBuffer:
        buffer = LogBuffer(self.client, **{"name": self.name, **arguments})
        self.made.append(buffer)
        return buffer

    async def stop(self) -> None:
        for buffer in self.made:
            await buffer.stop()


@pytest.fixture(params=["memory", "redis", "cluster"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    if request.param == "memory":
        made = Make(None)
        yield made
        await made.stop()
    else:
        server: RedisServer | RedisCluster
        fixture = "redis_server" if request.param == "redis" else "redis_cluster"
        server = request.getfixturevalue(fixture)
        async with RedisClient(url=server.url) as client:
            made = Make(client)
            yield made
            await made.stop()


async def test_what_was_enqueued_first_is_dequeued_first(make: Make) -> None:
    async with make() as buffer:
        for i in range(5):
            await buffer.enqueue({"n": i, "text": "ü\n"})
        await buffer.enqueue_batch([{"n": 5}, [6], "seven", None])
        assert await buffer.size() == 9
        assert await buffer.peek(2) == [{"n": 0, "text": "ü\n"}, {"n": 1, "text": "ü\n"}]
        assert [r["n"] for r in await buffer.dequeue(5)] == [0, 1, 2, 3, 4]
        assert await buffer.dequeue() == [{"n": 5}, [6], "seven", None]
        assert await buffer.dequeue() == []
        stats = await buffer.get_stats()
        assert (stats.size, stats.dequeued, stats.dropped, stats.bytes) == (0, 9, 0, 0)


async def test_records_of_many_tasks_keep_their_order_and_share_round_trips(make: Make) -> None:
    async with make() as buffer:
        await asyncio.gather(*(buffer.enqueue(i) for i in range(3_000)))
        assert await buffer.size() == 3_000
        assert await buffer.dequeue(3_000) == list(range(3_000))


async def test_overflow_drops_the_oldest_and_counts_them(make: Make) -> None:
    async with make(max_records=10) as buffer:
        with capture_logs() as events:
            for i in range(25):
                await buffer.enqueue(i)
        assert buffer.fill == 1.0
        assert await buffer.dequeue() == list(range(15, 25))
        stats = await buffer.get_stats()
        assert (stats.dropped, stats.max_records) == (15, 10)
        assert [e["event"] for e in events] == ["log_buffer_filling"]


async def test_a_buffer_that_fills_up_sets_a_metric_until_it_has_emptied(make: Make) -> None:
    def value(buffer: LogBuffer, name: str) -> float:
        lines = buffer.metrics.exposition().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"tollkeeper_log_buffer_{name} ")).split()[1])

    async with make(max_records=10) as buffer:
        await buffer.enqueue_batch(list(range(8)))
        assert [value(buffer, n) for n in ("fill_ratio", "depth", "filling", "filled_total")] == [0.8, 8, 0, 0]
        await buffer.enqueue_batch(list(range(5)))
        names = ("fill_ratio", "depth", "filling", "filled_total", "dropped_total")
        assert [value(buffer, name) for name in names] == [1, 10, 1, 1, 3]
        await buffer.dequeue(4)
        await buffer.get_stats()
        assert [value(buffer, name) for name in names] == [0.6, 6, 1, 1, 3]
        await buffer.dequeue(1)
        await buffer.get_stats()
        assert [value(buffer, name) for name in names] == [0.5, 5, 0, 1, 3]


async def test_buffers_may_count_in_metrics_that_are_given(make: Make) -> None:
    metrics = Metrics()
    async with make(max_records=1, metrics=metrics) as buffer:
        await buffer.enqueue_batch([1, 2, 3])
    assert b"tollkeeper_log_buffer_dropped_total 2.0" in metrics.exposition()


async def test_bytes_are_bounded_too(make: Make) -> None:
    async with make(max_bytes=100) as buffer:
        for _ in range(20):
            await buffer.enqueue("x" * 28)
        stats = await buffer.get_stats()
        assert (stats.size, stats.bytes, stats.dropped) == (3, 90, 17)


async def test_a_batch_that_is_not_acknowledged_is_given_again_whole(make: Make) -> None:
    async with make() as buffer:
        await buffer.enqueue_batch(list(range(10)))
        first = await buffer.lease(4, deadline=60)
        second = await buffer.lease(4, deadline=60)
        assert first is not None and second is not None
        assert (first.records, second.records) == ((0, 1, 2, 3), (4, 5, 6, 7))
        assert first.numbers == tuple((buffer.producer, n) for n in range(1, 5))
        stats = await buffer.get_stats()
        assert (stats.size, stats.leased, stats.batches) == (10, 8, 2)
        assert await buffer.extend(first, 0)
        again = await buffer.lease(1)
        assert again is not None
        assert (again.name, again.records, again.taken_over) == (first.name, first.records, True)
        assert await buffer.ack(again)
        assert not await buffer.ack(first)
        assert not await buffer.extend(first)
        assert await buffer.ack(second)


async def test_leased_records_are_never_dropped(make: Make) -> None:
    async with make(max_records=10) as buffer:
        await buffer.enqueue_batch(list(range(5)))
        batch = await buffer.lease(5)
        assert batch is not None
        for i in range(20):
            await buffer.enqueue(100 + i)
        assert await buffer.lease(5) is None, "half of the buffer is leased"
        assert await buffer.dequeue(100) == list(range(115, 120))
        assert await buffer.extend(batch, 0)
        again = await buffer.lease()
        assert again is not None and again.records == (0, 1, 2, 3, 4)


async def test_clear_counts_as_dropped_and_leaves_leases(make: Make) -> None:
    async with make() as buffer:
        await buffer.enqueue_batch(list(range(10)))
        await buffer.lease(3)
        assert await buffer.clear() == 7
        stats = await buffer.get_stats()
        assert (stats.size, stats.leased, stats.dropped) == (3, 3, 7)


async def test_waiting_ends_with_a_record_or_the_timeout_and_takes_nothing(make: Make) -> None:
    async with make() as buffer:
        assert await buffer.wait_for_records(0.05) is False
        waiter = asyncio.create_task(buffer.wait_for_records(10))
        await asyncio.sleep(0.02)
        await buffer.enqueue("one")
        assert await waiter is True
        assert await buffer.dequeue() == ["one"]
        cancelled = asyncio.create_task(buffer.wait_for_records(10))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        await buffer.enqueue("two")
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await buffer.dequeue() == ["two"]


@pytest.mark.parametrize("bad", [{"x": object()}, {1: {2: object()}}, "\ud800", "x" * RECORD_BYTES_MAX])
async def test_a_record_that_cannot_be_kept_is_refused_and_stops_nobody(make: Make, bad: Any) -> None:
    async with make() as buffer:
        with pytest.raises(InvalidInput):
            await buffer.enqueue(bad)
        with pytest.raises(InvalidInput):
            await buffer.enqueue_batch(["fine", bad])
        await buffer.enqueue("good")
        assert await buffer.dequeue() == ["good"]


async def test_a_batch_is_added_whole_however_much_else_is_added(make: Make) -> None:
    """Its records are one step of the queue; if it were cut, a reader could see a part of it."""
    async with make() as buffer:
        batches = [[f"{b}.{i}" for i in range(400)] for b in range(8)]
        singles = [buffer.enqueue("x") for _ in range(50)]
        await asyncio.gather(*(buffer.enqueue_batch(batch) for batch in batches), *singles)
        seen = [chunk async for chunk in _chunks(buffer)]
        for b, batch in enumerate(batches):
            holding = [chunk for chunk in seen if any(part.startswith(b'"%d.' % b) for part in chunk.parts)]
            assert len(holding) == 1 and len(batch) == 400
        with pytest.raises(InvalidInput):
            await buffer.enqueue_batch(range(1_001))


async def _chunks(buffer: LogBuffer) -> AsyncIterator[Chunk]:
    while (batch := await buffer.lease(5_000)) is not None:
        queue, name = buffer._queue_of(batch)
        await buffer.extend(batch, 0)
        from tollkeeper.domain.log_queue import Ask

        again = await queue.lease(Ask(1, 1, 10**9))
        assert again is not None and again.name == name
        for chunk in again.chunks:
            yield chunk
        await buffer.ack(batch)


async def test_ages_are_those_of_the_oldest_record(make: Make) -> None:
    async with make() as buffer:
        assert (await buffer.get_stats()).oldest_age == 0
        await buffer.enqueue(1)
        await asyncio.sleep(0.05)
        await buffer.lease()
        await buffer.enqueue(2)
        assert (await buffer.get_stats()).oldest_age >= 0.05


@pytest.mark.parametrize("make", ["redis", "cluster"], indirect=True)
async def test_processes_share_a_buffer_and_shards(make: Make) -> None:
    """Each producer's records stay in order, wherever they are; everyone sees all of them."""
    buffers = [make(shards=4, producer=f"p{n}-{make.name}") for n in range(8)]
    await asyncio.gather(*(buffer.enqueue([n, i]) for n, buffer in enumerate(buffers) for i in range(50)))
    assert await buffers[0].size() == 400
    found: list[list[int]] = []
    while len(found) < 400:
        for buffer in buffers:
            found += await buffer.dequeue(7)
    for n in range(8):
        assert [i for who, i in found if who == n] == list(range(50))


@pytest.mark.parametrize("make", ["redis"], indirect=True)
async def test_a_batch_leased_by_a_process_that_died_goes_to_another(make: Make) -> None:
    one, two = make(), make()
    await one.enqueue_batch(list(range(6)))
    lost = await one.lease(3, deadline=0.05)
    assert lost is not None
    other = await two.lease(3)
    assert other is not None and other.records == (3, 4, 5)
    await asyncio.sleep(0.06)
    taken = await two.lease(100)
    assert taken is not None
    assert (taken.name, taken.records, taken.taken_over) == (lost.name, (0, 1, 2), True)


async def test_redis_away_is_told_and_the_buffer_goes_on_when_it_is_back(own_redis: RedisServer) -> None:
    async with RedisClient(url=own_redis.url, read_timeout_s=0.5) as client, LogBuffer(client) as buffer:
        await buffer.enqueue("before")
        own_redis.kill()
        with pytest.raises(StoreUnavailable):
            await buffer.enqueue("lost")
        own_redis.start()
        for _ in range(100):
            try:
                await buffer.enqueue("after")
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
        found = await buffer.dequeue()
        assert found == ["before", "after"]
        stats = await buffer.get_stats()
        assert stats.refused >= 1


def test_what_cannot_work_is_refused() -> None:
    for arguments in ({"max_records": 0}, {"shards": 0}, {"name": "a:b"}, {"name": ""}, {"max_bytes": 0}):
        with pytest.raises(InvalidInput):
            LogBuffer(None, **arguments)
