"""The log buffer of the library: records of any asyncio service, in order, in Redis or in memory.

    async with LogBuffer(RedisClient.from_env()) as buffer:      # or LogBuffer()
        await buffer.enqueue({"event": "signup", "user": 17})
        for record in await buffer.dequeue(100): ...

For a consumer that must not lose what it took, `lease` and `ack`: a batch that is not acknowledged in time is given
again, whole, under the same name. The rules are in `domain/log_queue.py`.
"""

import asyncio
import secrets
import time
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from tollkeeper.domain.errors import InvalidInput, StoreUnavailable
from tollkeeper.domain.log_queue import Ask, Batch, Bounds, Kept, QueueStats, Taken
from tollkeeper.domain.ports import ScriptStore
from tollkeeper.logs.encoding import RECORD_BYTES_MAX
from tollkeeper.logs.producer import CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX, PENDING_BYTES_MAX, Producer
from tollkeeper.logs.queues import MemoryQueue, Queue, RedisQueue
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

BATCH: Final = 100
"""Records taken or leased at once unless told otherwise."""
POLL_MIN_S: Final = 0.01
POLL_MAX_S: Final = 0.2
"""How often `wait_for_records` looks into Redis: it must not block a connection that others use."""
WARN_FILL: Final = 0.8
REARM_FILL: Final = 0.6

_log = logger("logs")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class LogBufferStats(msgspec.Struct, frozen=True):
    """A buffer at one instant, over all shards and, in Redis, all processes. Ages in seconds, 0 if there is nothing.

    `size` and `bytes` include what is leased; `batches` is how many leases are out. `delivered` were acknowledged,
    `dequeued` handed out, `dropped` pressed out or cleared, `refused` given up by this process with an error.
    """

    size: int
    bytes: int
    max_records: int
    max_bytes: int
    fill: float
    leased: int
    batches: int
    delivered: int
    dequeued: int
    dropped: int
    refused: int
    oldest_age: float


class LogBatch(msgspec.Struct, frozen=True):
    """Leased records in order. `name` is the batch's for ever, and with it which records it has."""

    name: str
    records: tuple[Any, ...]
    numbers: tuple[tuple[str, int], ...]
    """Producer and number of each record."""
    taken_over: bool
    """Somebody had it leased before and did not acknowledge it in time."""

    def __len__(self) -> int:
        return len(self.records)


class LogBuffer:
    """First in, first out, bounded: above `max_records` or `max_bytes` the oldest records are dropped and counted.

    `store` is a RedisClient (or anything with its `run` and `call`), shared by any number of processes, or None: this
    process's memory. `name` and the bounds must be the same everywhere. `shards` spreads a buffer over a cluster: a
    producer's records stay on one shard and in order; between producers there is no order then. `producer` names this
    process's records and must be new for every start; by default it is random.

    A record is anything that msgspec encodes as JSON, up to 1 MiB; it comes back as JSON decodes it. It starts by
    itself; leave it as a context manager, or with `stop`. Methods raise StoreUnavailable when Redis is away.

    `metrics` is what it counts, in Prometheus' format by `buffer.metrics.exposition()`: fill and depth of this
    process's shard, whether it is above 0.8 (and how often it got there), and what this process's records pressed
    out. In Redis they are as of this process's last record or `get_stats`. Give one `Metrics` to several buffers only
    if they should count as one.
    """

    def __init__(
        self,
        store: ScriptStore | None = None,
        *,
        name: str = "buffer",
        max_records: int = 100_000,
        max_bytes: int = 256 * 2**20,
        shards: int = 1,
        producer: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if max_records < 1 or max_bytes < 1 or shards < 1:
            raise InvalidInput("max_records, max_bytes and shards must be 1 or more")
        if not name or any(c in name for c in "{}:") or not name.isprintable():
            raise InvalidInput(f"a buffer's name {name!r} must be printable, without braces and colons")
        self.producer = producer or f"p-{secrets.token_hex(8)}"
        self.max_records, self.max_bytes = max_records, max_bytes
        self._queues: list[Queue]
        if store is None:
            shards = 1
        self._bounds = Bounds(-(-max_records // shards), -(-max_bytes // shards))
        if store is None:
            self._queues = [MemoryQueue(self.producer, self._bounds, _monotonic_us)]
        else:
            tags = [f"{name}.{n}" if shards > 1 else name for n in range(shards)]
            self._queues = [RedisQueue(store, self.producer, self._bounds, shard=tag) for tag in tags]
        self._home = zlib.crc32(self.producer.encode()) % shards
        self._turn = 0
        self._fill = 0.0
        self._depth = 0
        self._warned = False
        self._arrived = asyncio.Event()
        self._producer = Producer(
            self.producer,
            self._queues[self._home],
            None,
            on_kept=self._note_kept,
            # what the buffer has room for is not refused because it came at once
            pending_bytes_max=max(PENDING_BYTES_MAX, self._bounds.bytes_max),
        )
        self.metrics = metrics or Metrics()
        self._declare(self.metrics)

    def _declare(self, metrics: Metrics) -> None:
        gauge, counter = metrics.gauge, metrics.counter
        gauge("tollkeeper_log_buffer_fill_ratio", "Fill of the buffer; above 0.8 warns.", self._look)
        gauge("tollkeeper_log_buffer_depth", "Records in the buffer.", lambda: self._depth)
        gauge(
            "tollkeeper_log_buffer_filling",
            "1 from when the buffer is fuller than 0.8 until it is below 0.6.",
            lambda: int(self._warned),
        )
        self._filled_total = counter(
            "tollkeeper_log_buffer_filled_total", "How often the buffer became fuller than 0.8."
        ).labels()
        self._dropped_total = counter(
            "tollkeeper_log_buffer_dropped_total", "Records dropped because the buffer was full."
        ).labels()

    def _look(self) -> float:
        """The fill; in memory it is looked at now, since nobody else empties the buffer in its stead."""
        home = self._queues[self._home]
        if isinstance(home, MemoryQueue):
            self._saw(home.now())
        return self._fill

    def _saw(self, queue: QueueStats) -> None:
        self._note_fill(queue.size, queue.bytes)

    def __repr__(self) -> str:
        kind = "memory" if isinstance(self._queues[0], MemoryQueue) else f"{len(self._queues)} shards"
        return f"<LogBuffer {kind} producer={self.producer}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin to bring records to the buffer. Connects to nothing."""
        await self._producer.start()

    async def stop(self) -> None:
        """Waits for what was enqueued, but not for a Redis that is away. What is in the buffer stays there."""
        await self._producer.drain(1.0)
        await self._producer.stop()

    @property
    def fill(self) -> float:
        """How full this process's shard was at its last record or `get_stats`, 0 to 1; above 0.8 it logs a warning,
        once."""
        return self._fill

    async def enqueue(self, record: Any) -> None:
        """Add a record; it is in the buffer when this returns. Many at once share round trips.

        Raises InvalidInput for a record that is not JSON or too large (nothing is added), StoreUnavailable if it
        could not be brought: then it is not in the buffer, or nobody knows. Cancelling may leave it added.
        """
        await self._kept(self._producer.add(_encoded(record)))

    async def enqueue_batch(self, records: Sequence[Any]) -> None:
        """Add records all at once or not at all: at most 1,000 records and 1 MiB together (or one record)."""
        parts = [_encoded(record) for record in records]
        if len(parts) > CHUNK_RECORDS_MAX or (len(parts) > 1 and sum(map(len, parts)) > CHUNK_BYTES_MAX):
            raise InvalidInput(f"a batch has at most {CHUNK_RECORDS_MAX} records and {CHUNK_BYTES_MAX} bytes as JSON")
        if parts:
            await self._kept(self._producer.add_together(parts))

    async def _kept(self, number: int) -> None:
        if self._producer.idle:
            await self._producer.start()
        await self._producer.kept(number)

    async def dequeue(self, count: int = BATCH) -> list[Any]:
        """Take up to `count` records: they count as delivered to you, whatever becomes of them. [] if none waits."""
        taken: list[Any] = []
        for _ in self._queues:
            queue = self._next_queue()
            while len(taken) < count:
                try:
                    found = await queue.take(count - len(taken))
                except StoreUnavailable:
                    if taken:
                        return taken  # what was taken is yours; the next call tells
                    raise
                taken += map(_record, found)
                if not found:
                    break
        return taken

    async def peek(self, count: int = BATCH) -> list[Any]:
        """Up to `count` (at most 1,000 of a shard) of the oldest records, which stay."""
        found: list[Any] = []
        for queue in self._queues:
            if len(found) < count:
                found += map(_record, await queue.peek(count - len(found)))
        return found

    async def wait_for_records(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - its users expect it
        """Wait until a record waits to be taken; False if none came in `timeout` seconds. Takes nothing, so that
        cancelling loses nothing."""
        delay_s = POLL_MIN_S
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._arrived.clear()
                    for queue in self._queues:
                        if (await queue.stats()).waiting:
                            return True
                    try:
                        async with asyncio.timeout(delay_s):
                            await self._arrived.wait()
                    except TimeoutError:
                        delay_s = min(POLL_MAX_S, 2 * delay_s)
        except TimeoutError:
            return False

    async def lease(self, count: int = BATCH, deadline: float = 60.0) -> LogBatch | None:
        """Take up to `count` of the oldest records as a batch, to be acknowledged within `deadline` seconds.

        A batch that was not is given again, here or elsewhere, before any new one. None if nothing can be leased:
        nothing waits, or half of the buffer is leased already.
        """
        ask = Ask(max(1, count), self._bounds.bytes_max, int(deadline * 1_000_000))
        for _ in self._queues:
            shard = self._turn
            queue = self._next_queue()
            batch = await queue.lease(ask)
            while batch is not None and not len(batch):
                await queue.ack(batch.name)  # only tells of numbers that are gone, which is of interest to shippers
                batch = await queue.lease(ask)
            if batch is not None:
                return self._leased(batch, shard)
        return None

    def _leased(self, batch: Batch, shard: int) -> LogBatch:
        taken = [
            (chunk.producer, chunk.first + i, part, b"")
            for chunk in batch.chunks
            for i, part in enumerate(chunk.parts)
        ]
        numbers = tuple((producer, number) for producer, number, _, _ in taken)
        name = f"{shard}:{batch.name}"
        return LogBatch(name, tuple(map(_record, taken)), numbers, batch.taken_over)

    async def extend(self, batch: LogBatch, deadline: float = 60.0) -> bool:
        """Keep a batch `deadline` seconds from now; 0 gives it back. False if it is not leased any more."""
        queue, name = self._queue_of(batch)
        return await queue.renew(name, int(deadline * 1_000_000))

    async def ack(self, batch: LogBatch) -> bool:
        """The batch is delivered: forget it. False if it was acknowledged before."""
        queue, name = self._queue_of(batch)
        return await queue.ack(name)

    def _queue_of(self, batch: LogBatch) -> tuple[Queue, str]:
        shard, _, name = batch.name.partition(":")
        return self._queues[int(shard)], name

    async def size(self) -> int:
        """Records kept, leased ones included."""
        return sum([(await queue.stats()).size for queue in self._queues])

    async def clear(self) -> int:
        """Drop everything that waits, and count it as dropped; how many. What is leased stays."""
        dropped = 0
        for queue in self._queues:
            while found := await queue.clear(self.max_records):
                dropped += found
        return dropped

    async def get_stats(self) -> LogBufferStats:
        """The buffer now."""
        shards = [await queue.stats() for queue in self._queues]
        self._saw(shards[self._home])
        size, held = sum(s.size for s in shards), sum(s.bytes for s in shards)
        ages = [s.now_us - s.oldest_us for s in shards if s.oldest_us]
        return LogBufferStats(
            size=size,
            bytes=held,
            max_records=self.max_records,
            max_bytes=self.max_bytes,
            fill=max(size / self.max_records, held / self.max_bytes),
            leased=sum(s.leased for s in shards),
            batches=sum(s.leases for s in shards),
            delivered=sum(s.delivered for s in shards),
            dequeued=sum(s.taken for s in shards),
            dropped=sum(s.dropped for s in shards),
            refused=self._producer.dropped,
            oldest_age=max(0, *ages, 0) / 1_000_000 if ages else 0.0,
        )

    def _next_queue(self) -> Queue:
        queue = self._queues[self._turn]
        self._turn = (self._turn + 1) % len(self._queues)
        return queue

    def _note_kept(self, kept: Kept) -> None:
        self._arrived.set()
        self._dropped_total.inc(kept.dropped)
        self._note_fill(kept.records, kept.bytes)

    def _note_fill(self, records: int, size: int) -> None:
        self._depth = records
        self._fill = max(records / self._bounds.records_max, size / self._bounds.bytes_max)
        if self._fill > WARN_FILL and not self._warned:
            self._warned = True
            self._filled_total.inc()
            _log.warning("log_buffer_filling", producer=self.producer, records=records, fill=round(self._fill, 3))
        elif self._fill < REARM_FILL:
            self._warned = False


def _encoded(record: Any) -> bytes:
    try:
        part = _encode(record)
    except (TypeError, ValueError, UnicodeError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the record cannot be encoded as JSON: {error}") from None
    if len(part) > RECORD_BYTES_MAX:
        raise InvalidInput(f"the record is {len(part)} bytes as JSON; at most {RECORD_BYTES_MAX} are taken")
    return part


def _record(taken: Taken) -> Any:
    return _decode(taken[2])


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
