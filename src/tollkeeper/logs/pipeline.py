"""The log pipeline of one process: takes records from the data plane and answers for every one of them.

    produced = delivered + dropped + pending

in a process without Redis at every instant, in `stats()` and in one reading of the metrics; with Redis the queue is
shared, and `logs verify` shows it over all processes. Knows neither where objects go (`sinks.py`) nor when
(`shipper.py`), nor how records get into the queue (`producer.py`).

Records are encoded where they are put, one by one. Measured on an 800-byte record: 0.7–1.4 µs each, against
0.8–1.4 µs in lines of a whole batch, which then must be split again; so batching gains nothing, and encoding at once
makes byte bounds exact, keeps no object alive that the request might still change, and finds the one record that
cannot be encoded.
"""

import asyncio
import re
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tollkeeper.domain.errors import InvalidInput, Unavailable
from tollkeeper.domain.log_account import PipelineStats, VerifyReport
from tollkeeper.domain.log_queue import Bounds, Kept, QueueStats
from tollkeeper.domain.ports import ScriptStore
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs import duck, encoding, parquet
from tollkeeper.logs.compaction import keep_compacting
from tollkeeper.logs.encoding import RECORD_BYTES_MAX
from tollkeeper.logs.producer import PENDING_BYTES_MAX, Producer, adopt
from tollkeeper.logs.queue_watch import declare_queue, watch
from tollkeeper.logs.queues import MemoryQueue, Queue, RedisQueue
from tollkeeper.logs.retention import keep_retiring
from tollkeeper.logs.shipper import Shipper
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.spool import Spool
from tollkeeper.logs.verify import verify
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

WARN_FILL: Final = 0.8
"""A queue fuller than this warns, once."""
REARM_FILL: Final = 0.6
"""Below this the next crossing of `WARN_FILL` warns again; the gap keeps a queue on the edge from flooding."""
ADOPT_INTERVAL_S: Final = 10.0
"""How often spools of dead producers on this disk are looked for."""
SHARED_DRAIN_S: Final = 5.0
"""How long a stop ships what is in a shared queue."""

_PRODUCER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_log = logger("logs")


def queues_of(settings: LogSettings, run: str, client: ScriptStore | None) -> list[Queue]:
    """The shards of the queue: in Redis, or one in this process's memory."""
    if client is None:
        return [MemoryQueue(run, bounds_of(settings), _monotonic_us)]
    bounds = bounds_of(settings, settings.shards)
    return [RedisQueue(client, run, bounds, shard=str(n)) for n in range(settings.shards)]


def queue_of(queues: Sequence[Queue], producer: str) -> Queue:
    """A producer's shard: always the same, for its numbers are counted there."""
    return queues[zlib.crc32(producer.encode()) % len(queues)]


def bounds_of(settings: LogSettings, shards: int = 1) -> Bounds:
    """Of one shard."""
    return Bounds(max(1, settings.records_max // shards), max(1, settings.buffer_bytes_max // shards))


def make_shipper(
    settings: LogSettings, queues: list[Queue], store: LogStore, metrics: Metrics, now_us: Callable[[], int]
) -> Shipper:
    """A shipper as the settings want it."""
    bounds = bounds_of(settings, len(queues))
    return Shipper(
        queues,
        store,
        # what is leased cannot be dropped: at most half, or an outage would keep the oldest, not the newest
        records_max=max(1, min(settings.object_records_max, bounds.records_max // 2)),
        bytes_max=max(1, min(settings.object_bytes_max, bounds.bytes_max // 2)),
        flush_interval_s=settings.flush_interval_s,
        lease_s=settings.lease_s,
        form=settings.format,
        metrics=metrics,
        now_us=now_us,
    )


class LogPipeline:
    """Numbers, queues and ships the records of one process. Implements `ports.RecordSink`.

    `producer` names this run of the process: letters, digits, `.`, `_`, `-`. It must be new for every start, since
    numbers begin at 1 and, without Redis, the names of objects are made of it. `url` is as for `sinks.open_store`;
    `store` replaces it. With a `client` the queue is in Redis; with a `spool_root` records go there while Redis is
    away. Raises ConfigurationError for a URL or credentials that cannot work, InvalidInput for the producer.
    """

    def __init__(
        self,
        *,
        settings: LogSettings,
        url: str,
        producer: str,
        metrics: Metrics,
        now_us: Callable[[], int],
        store: LogStore | None = None,
        client: ScriptStore | None = None,
        spool_root: Path | None = None,
    ) -> None:
        if not _PRODUCER.fullmatch(producer):
            raise InvalidInput(f"log producer {producer!r}: use letters, digits, '.', '_' and '-', at most 128")
        if settings.format == "parquet":
            duck.load(parquet.SETTING)  # now, not when the first batch is due
        self._settings, self._clock_us = settings, now_us
        self._name = producer
        self._store = open_store(url, settings.timeout_s) if store is None else store
        self._spool_root = spool_root
        self._shared = client is not None
        self.queues = queues_of(settings, producer, client)
        self._bounds = bounds_of(settings, len(self.queues))
        self._declare(metrics)
        self._spool = self._open_spool()
        self._producer = Producer(
            producer,
            self._queue_of(producer),
            self._spool,
            on_kept=self._note_kept,
            on_dropped=self._dropped_total.inc,
            pending_bytes_max=PENDING_BYTES_MAX if self._shared else max(PENDING_BYTES_MAX, self._bounds.bytes_max),
        )
        self._shipper = make_shipper(settings, self.queues, self._store, metrics, now_us)
        self._ships = settings.ship or not self._shared
        self._task: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []
        self._add = self._producer.add
        self.expect = self._producer.expect
        self._replaced = 0
        self._dropped_by_queue = 0
        self._warned = False
        self._seen = QueueStats()

    def _open_spool(self) -> Spool | None:
        if self._spool_root is None or (self._shared and self._settings.redis_away != "spool"):
            return None
        return Spool(self._spool_root, self._name, self._settings.spool_bytes_max)

    def _queue_of(self, producer: str) -> Queue:
        return queue_of(self.queues, producer)

    def _declare(self, metrics: Metrics) -> None:
        self._dropped_total = metrics.counter(
            "tollkeeper_log_records_dropped_total", "Log records dropped because queue or spool were full."
        ).labels()
        self._shed_total = metrics.counter(
            "tollkeeper_log_bodies_shed_total", "Log records whose bodies were dropped because the queue was full."
        ).labels()
        self._replaced_total = metrics.counter(
            "tollkeeper_log_records_replaced_total",
            "Log records that were too large or could not be encoded, delivered cut short.",
        ).labels()
        self._produced_total = metrics.counter(
            "tollkeeper_log_records_produced_total", "Log records numbered by this process."
        ).labels()
        shards = len(self.queues)
        whole = Bounds(self._bounds.records_max * shards, self._bounds.bytes_max * shards)
        declare_queue(metrics, lambda: self.stats().queue, whole)
        metrics.gauge("tollkeeper_log_spool_bytes", "Log records on disk while Redis is away.", self._spooled)

    def _spooled(self) -> int:
        return 0 if self._spool is None else self._spool.bytes

    @property
    def delivered(self) -> int:
        """Records whose object this process has delivered."""
        return self._shipper.delivered

    def put(self, record: RequestRecord) -> None:
        """Number the record, encode it and queue it. Never blocks, never raises; the record may be reused after."""
        number = self._producer.number + 1
        body = b""
        try:
            record.producer = self._name
            record.number = number
            part, body = encoding.encode(record)
            if len(part) + len(body) > RECORD_BYTES_MAX:
                part, body = (
                    self._stand_in(record, number, f"{len(part) + len(body)} bytes, above {RECORD_BYTES_MAX}"),
                    b"",
                )
        except Exception as error:  # noqa: BLE001 - "never raises" is the promise; what failed is in the record
            part = self._stand_in(record, number, f"cannot be encoded: {type(error).__name__}")
        self._produced_total.value += 1
        self._add(part, body)

    def _stand_in(self, record: RequestRecord, number: int, reason: str) -> bytes:
        """A small record of the same number that says why it replaces the real one; keeps what can be kept."""
        self._replaced += 1
        self._replaced_total.inc()
        return encoding.stand_in(record, self._name, number, reason)

    def _note_kept(self, kept: Kept) -> None:
        """Count what a chunk pressed out of the queue; warn once when it is nearly full."""
        if kept.dropped:
            self._dropped_by_queue += kept.dropped
            self._dropped_total.inc(kept.dropped)
        if kept.shed:
            self._shed_total.inc(kept.shed)
        fill = max(kept.records / self._bounds.records_max, kept.bytes / self._bounds.bytes_max)
        if fill > WARN_FILL and not self._warned:
            self._warned = True
            _log.warning("log_queue_filling", producer=self._name, records=kept.records, fill=round(fill, 3))
        elif fill < REARM_FILL:
            self._warned = False

    async def start(self) -> None:
        """Begin to ship. Neither queue nor store need be there yet."""
        if self._task is not None:
            return
        await self._producer.start()
        if self._ships:
            self._task = asyncio.create_task(self._shipper.run(), name="log-shipper")
            if (days := self._settings.retention_days) is not None:
                retiring = keep_retiring(self._store, days, self._clock_us)
                self._others.append(asyncio.create_task(retiring, name="log-retention"))
            if (after_s := self._settings.compact_after_s) is not None:
                compacting = keep_compacting(self._store, after_s, self._settings.format, self._clock_us)
                self._others.append(asyncio.create_task(compacting, name="log-compaction"))
        if self._spool_root is not None:
            self._others.append(asyncio.create_task(self._adopt(), name="log-adopt"))
        if self._shared:
            self._others.append(asyncio.create_task(watch(self.queues, self._see), name="log-watch"))

    async def _adopt(self) -> None:
        root = self._spool_root
        assert root is not None
        while True:
            try:
                await adopt(root, self._queue_of, self._settings.spool_bytes_max)
            except (Unavailable, TimeoutError) as error:
                _log.info("log_adoption_waits", why=str(error))
            await asyncio.sleep(ADOPT_INTERVAL_S)

    def _see(self, queue: QueueStats) -> None:
        self._seen = queue

    async def stop(self, deadline_s: float | None = None) -> PipelineStats:
        """Bring and ship what can be within `deadline_s` (default: the settings' `timeout_s`); says what is left.

        With Redis only what neither Redis nor the spool took is left; without, what was not delivered goes to the
        spool for the next start, but for a batch in hand. What is left is lost with the process, and is logged.
        """
        deadline_s = self._settings.timeout_s if deadline_s is None else deadline_s
        await self._producer.drain(deadline_s)
        if self._task is not None:
            self._shipper.drain()
            # in a shared queue others bring more and more, and whoever comes next has them
            limit_s = min(deadline_s, SHARED_DRAIN_S) if self._shared else deadline_s
            with suppress(TimeoutError):  # at the deadline the task is cancelled, and gives its batch up
                async with asyncio.timeout(limit_s):
                    await self._task
            self._task = None
        for task in self._others:
            task.cancel()
        await asyncio.gather(*self._others, return_exceptions=True)
        self._others.clear()
        for queue in self.queues:
            if isinstance(queue, MemoryQueue) and self._spool is not None:
                self._producer.keep(queue.empty())
        left = await self._producer.stop()
        stats = self.stats()
        if stats.pending or left:
            _log.error(
                "log_records_left",
                producer=self._name,
                records=stats.pending,
                last=stats.produced,
                error=stats.last_error,
            )
        _log.info(
            "log_pipeline_stopped",
            producer=self._name,
            produced=stats.produced,
            delivered=stats.delivered,
            dropped=stats.dropped,
            pending=stats.pending,
        )
        return stats

    async def ping(self) -> None:
        """Raises `LogStoreUnavailable` if the store would not take an object now."""
        await self._store.ping()

    async def verify(self) -> VerifyReport:
        """The proof over the whole store and the queue: of all gateways, if they share it. Reads everything.

        Raises `LogStoreUnavailable`, `StoreUnavailable`.
        """
        return await verify(self._store, queues=self.queues)

    def stats(self) -> PipelineStats:
        """The account at this instant."""
        queue = self._seen
        pending = self._producer.pending
        (first, *_) = self.queues
        if isinstance(first, MemoryQueue):
            queue = first.now()
            pending += queue.size
        return PipelineStats(
            produced=self._producer.number,
            delivered=self._shipper.delivered,
            dropped=self._dropped_by_queue + self._producer.dropped,
            pending=pending,
            replaced=self._replaced,
            failures=self._shipper.failures,
            conflicts=self._shipper.conflicts,
            last_delivered_us=self._shipper.last_delivered_us,
            last_error=self._shipper.last_error or self._producer.last_error,
            spooled_bytes=self._spooled(),
            records_max=self._bounds.records_max * len(self.queues),
            bytes_max=self._bounds.bytes_max * len(self.queues),
            queue=queue,
        )


def _monotonic_us() -> int:
    """For ages: a wall clock that is set back would hold records up."""
    return time.monotonic_ns() // 1000
