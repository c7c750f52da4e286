"""Carries batches from the buffer to the store: when to ship, and what to do when that fails.

lease → object → ack, one batch at a time, so that one is at risk and its retry keeps the order. A batch is shipped
when enough records wait or the oldest has waited long enough. A failure of any kind releases the batch and is tried
again under the same name, with growing pauses, for ever; meanwhile the buffer's bounds decide what is kept. An
object that is already there with the same records was delivered by somebody who died before the ack.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tollkeeper.domain.errors import LogStoreUnavailable, Unavailable
from tollkeeper.logs import objects
from tollkeeper.logs.buffer import Batch, LogBuffer
from tollkeeper.logs.objects import Format, LogObject
from tollkeeper.logs.sinks import LogStore
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

OBJECT_BYTES_MAX: Final = 32 * 2**20
"""Uncompressed bytes of one object; bounds the memory that one shipment takes."""
THREAD_BYTES_MIN: Final = 64 * 2**10
"""Larger batches are compressed in a thread; smaller ones take less time than the switch is worth (0.3 ms)."""
CHECK_INTERVAL_S: Final = 0.1
"""How often the buffer is looked at: cheaper than a signal on the path of every request."""
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 30.0
BACKOFF_DRAINING_MAX_S: Final = 0.5
"""While stopping, time is short and nothing is gained by patience."""

_log = logger("logs")
_random = random.Random()  # noqa: S311 - jitter


class Shipper:
    """Ships one buffer to one store. `delivered` counts records whose object is certainly in the store."""

    def __init__(
        self,
        buffer: LogBuffer,
        store: LogStore,
        *,
        records_max: int,
        bytes_max: int,
        flush_interval_s: float,
        form: Format = "jsonl.gz",
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._buffer = buffer
        self._store = store
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._flush_interval_s = flush_interval_s
        self._form = form
        self._now_us = now_us
        self._draining = asyncio.Event()
        self._built: tuple[str, LogObject] | None = None
        self.delivered = 0
        self.failures = 0
        self.conflicts = 0
        self.last_delivered_us: int | None = None
        self.last_error: str | None = None
        self._delivered_total = metrics.counter(
            "tollkeeper_log_records_delivered_total", "Log records whose object is in the store."
        ).labels()
        self._objects_total = metrics.counter("tollkeeper_log_objects_total", "Log objects delivered.").labels()
        self._failures_total = metrics.counter(
            "tollkeeper_log_ship_failures_total", "Failed attempts to deliver a log object; each is repeated."
        ).labels()
        self._conflicts_total = metrics.counter(
            "tollkeeper_log_conflicts_total",
            "Log objects whose name was taken by other records; they were written under a longer name.",
        ).labels()
        self._seconds = metrics.histogram(
            "tollkeeper_log_ship_seconds", "Time from lease to acknowledgement of a delivered log object."
        ).labels()

    def drain(self) -> None:
        """From now on ship without waiting for more; `run` returns when nothing is left."""
        self._draining.set()

    async def run(self) -> None:
        """Ship until drained. Only cancellation ends it otherwise; the batch in hand is released then."""
        attempt = 0
        while True:
            if attempt == 0:
                await self._wait_due()
            try:
                shipped = await self.ship()
            except Exception as error:  # noqa: BLE001 - whatever it is, records are waiting: count, tell, try again
                attempt += 1
                await self._back_off(attempt, error)
                continue
            if attempt:
                _log.info("log_store_back", store=self._store.url, attempts=attempt, waiting=self._buffer.size())
            attempt = 0
            self.last_error = None
            if shipped is None and self._draining.is_set():
                return

    async def ship(self) -> Batch | None:
        """Deliver and acknowledge the next batch, whatever its size; None if nothing waits.

        Raises `LogStoreUnavailable`, or what the buffer raises; the batch is leased again by the next call.
        """
        started = time.perf_counter()
        batch = await self._buffer.lease(self._records_max, self._bytes_max)
        if batch is None:
            return None
        acknowledged = None
        try:
            await self._deliver(await self._object(batch))
            acknowledged = await self._buffer.ack(batch)
        finally:
            if acknowledged is None:
                await self._buffer.release(batch)
        self._built = None
        if acknowledged:
            self.delivered += len(batch)
            self._delivered_total.inc(len(batch))
            self._objects_total.inc()
        self.last_delivered_us = self._now_us()
        self._seconds.observe(time.perf_counter() - started)
        return batch

    async def _wait_due(self) -> None:
        while not self._draining.is_set():
            stats = self._buffer.stats()
            remaining_s = self._flush_interval_s - stats.waiting_age_us / 1_000_000
            if stats.waiting and (
                remaining_s <= 0 or stats.waiting >= self._records_max or stats.waiting_bytes >= self._bytes_max
            ):
                return
            await self._pause(min(CHECK_INTERVAL_S, remaining_s))

    async def _pause(self, seconds: float) -> None:
        """Until `drain` is called, at most that long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._draining.wait()

    async def _back_off(self, attempt: int, error: Exception) -> None:
        self.failures += 1
        self._failures_total.inc()
        self.last_error = str(error) or type(error).__name__
        delay_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(attempt - 1, 16)) * _random.uniform(0.5, 1.0)
        if isinstance(error, Unavailable):
            _log.warning("log_store_away", error=self.last_error, attempt=attempt, retry_in_s=round(delay_s, 2))
        else:
            _log.error("log_shipper_fault", error=self.last_error, attempt=attempt, exc_info=error)
        if self._draining.is_set():
            await asyncio.sleep(min(delay_s, BACKOFF_DRAINING_MAX_S))
        else:
            await self._pause(delay_s)

    async def _object(self, batch: Batch) -> LogObject:
        """The batch as an object, built once however often it is tried."""
        if self._built is None or self._built[0] != batch.name:
            if sum(map(len, batch.records)) >= THREAD_BYTES_MIN or self._form == "parquet":
                built = await asyncio.to_thread(objects.build, batch, self._form)
            else:
                built = objects.build(batch)
            self._built = (batch.name, built)
        return self._built[1]

    async def _deliver(self, item: LogObject) -> None:
        """Returns when the records are in the store, exactly once, under their name or a longer one."""
        if await self._was_delivered_as(objects.twin_path(item.path), item):
            return
        if await self._create_or_same(item.path, item):
            return
        longer = objects.conflict_path(item.path, item.sha256)
        self.conflicts += 1
        self._conflicts_total.inc()
        _log.error("log_object_conflict", store=self._store.url, path=item.path, written_as=longer)
        if not await self._create_or_same(longer, item):
            raise LogStoreUnavailable(f"{self._store.url}: {longer} holds records that its name does not describe")

    async def _was_delivered_as(self, path: str, item: LogObject) -> bool:
        """Whether somebody who ships in the other format delivered the batch before."""
        return await self._store.holds(path) and await self._holds_same(path, item)

    async def _create_or_same(self, path: str, item: LogObject) -> bool:
        """Whether `path` now holds exactly these records; False if it holds others, which stay untouched."""
        return await self._store.create(path, item.body, item.sha256) or await self._holds_same(path, item)

    async def _holds_same(self, path: str, item: LogObject) -> bool:
        found = await self._store.digest(path)
        if found is None:
            body = await self._store.read(path)
            records = await asyncio.to_thread(objects.records_in, body)
            found = None if records is None else objects.digest(records)
        if found == item.sha256:
            _log.info("log_object_was_delivered", path=path)
            return True
        return False
