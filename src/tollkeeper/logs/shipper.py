"""Carries batches from the queues to the store: what to do when that fails.

lease → object → ack, one batch at a time, so that one is at risk and its retry keeps the order. A failure of any kind
gives the lease up, and the next lease, here or elsewhere, is that batch again, whole and under the same name; tries
go on with growing pauses for ever, and meanwhile the queue's bounds decide what is kept. An object that is already
there with the same records was delivered by somebody who died before the ack.

What a batch tells of numbers that will not come (dropped, lost, taken) is written first, as an object of its own.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from tollkeeper.domain.errors import LogStoreUnavailable, StoreUnavailable, Unavailable
from tollkeeper.domain.log_queue import Ask, Batch
from tollkeeper.logs import objects
from tollkeeper.logs.encoding import line_of
from tollkeeper.logs.objects import Format, Lines, LogObject
from tollkeeper.logs.queues import Queue
from tollkeeper.logs.sinks import LogStore
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

THREAD_BYTES_MIN: Final = 64 * 2**10
"""Larger batches are compressed in a thread; smaller ones take less time than the switch is worth (0.3 ms)."""
CHECK_INTERVAL_S: Final = 0.1
"""How often a queue is asked: cheaper than a signal on the path of every request."""
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 30.0
BACKOFF_DRAINING_MAX_S: Final = 0.5
"""While stopping, time is short and nothing is gained by patience."""
RELEASE_TIMEOUT_S: Final = 1.0

_log = logger("logs")
_random = random.Random()  # noqa: S311 - jitter


class Shipper:
    """Ships queues to one store. `delivered` counts records that this shipper acknowledged."""

    def __init__(
        self,
        queues: Sequence[Queue],
        store: LogStore,
        *,
        records_max: int,
        bytes_max: int,
        flush_interval_s: float,
        lease_s: float = 120.0,
        form: Format = "jsonl.gz",
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._queues = queues
        self._store = store
        hold_us = int(lease_s * 1_000_000)
        due_us = int(flush_interval_s * 1_000_000)
        self._ask = Ask(records_max, bytes_max, hold_us, records_max, bytes_max, due_us)
        self._ask_all = Ask(records_max, bytes_max, hold_us)
        self._form: Format = form
        self._now_us = now_us
        self._turn = 0
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
        self._taken_over_total = metrics.counter(
            "tollkeeper_log_leases_taken_over_total", "Batches whose lease had expired: their shipper died or failed."
        ).labels()
        self._seconds = metrics.histogram(
            "tollkeeper_log_ship_seconds", "Time from lease to acknowledgement of a delivered log object."
        ).labels()

    def drain(self) -> None:
        """From now on ship without waiting for more; `run` returns when nothing is left to be leased."""
        self._draining.set()

    async def run(self) -> None:
        """Ship until drained. Only cancellation ends it otherwise; the batch in hand is given up then."""
        attempt = 0
        while True:
            try:  # the batch itself is let go before the next one is leased: it may have 32 MB
                shipped = await self.ship(due_only=not self._draining.is_set()) is not None
            except Exception as error:  # noqa: BLE001 - whatever it is, records are waiting: count, tell, try again
                attempt += 1
                await self._back_off(attempt, error)
                continue
            if shipped:
                if attempt:
                    _log.info("log_store_back", store=self._store.url, attempts=attempt)
                attempt = 0
                self.last_error = None
            elif self._draining.is_set():
                return
            else:
                await self._pause(CHECK_INTERVAL_S)

    async def ship(self, *, due_only: bool = False) -> Batch | None:
        """Deliver and acknowledge the next batch of any queue; None if there is none (`due_only`: none that is due).

        Raises `LogStoreUnavailable`, or what the queue raises; the batch is leased again by the next call.
        """
        for _ in self._queues:
            queue = self._queues[self._turn]
            self._turn = (self._turn + 1) % len(self._queues)
            batch = await queue.lease(self._ask if due_only else self._ask_all)
            if batch is not None:
                await self._ship(queue, batch)
                return batch
        return None

    async def _ship(self, queue: Queue, batch: Batch) -> None:
        started = time.perf_counter()
        if batch.taken_over:
            self._taken_over_total.inc()
        acknowledged = None
        try:
            await self._tell(batch)
            if len(batch):
                await self._deliver(await self._object(batch))
            acknowledged = await queue.ack(batch.name)
        finally:
            if acknowledged is None:
                await self._give_up(queue, batch)
        self._built = None
        if acknowledged:
            self.delivered += len(batch)
            self._delivered_total.inc(len(batch))
            self._objects_total.inc()
        self.last_delivered_us = self._now_us()
        self._seconds.observe(time.perf_counter() - started)

    async def _give_up(self, queue: Queue, batch: Batch) -> None:
        """Best effort: if nobody hears of it, the lease expires."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await queue.renew(batch.name, 0)

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
            event = "log_queue_away" if isinstance(error, StoreUnavailable) else "log_store_away"
            _log.warning(event, error=self.last_error, attempt=attempt, retry_in_s=round(delay_s, 2))
        else:
            _log.error("log_shipper_fault", error=self.last_error, attempt=attempt, exc_info=error)
        if self._draining.is_set():
            await asyncio.sleep(min(delay_s, BACKOFF_DRAINING_MAX_S))
        else:
            await self._pause(delay_s)

    async def _tell(self, batch: Batch) -> None:
        if batch.gaps:
            item = objects.build_gaps(batch.name, batch.gaps)
            if not await self._create_or_same(item.path, item):
                longer = objects.conflict_path(item.path, item.sha256)
                await self._create_or_same(longer, item)

    async def _object(self, batch: Batch) -> LogObject:
        """The batch as an object, built once however often it is tried."""
        if self._built is None or self._built[0] != batch.name:
            if batch.bytes >= THREAD_BYTES_MIN or self._form == "parquet":
                built = await asyncio.to_thread(_build, batch, self._form)
            else:
                built = _build(batch, self._form)
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
            records = body if objects.is_gaps_object(path) else await asyncio.to_thread(objects.records_in, body)
            found = None if records is None else objects.digest(records)
        if found == item.sha256:
            _log.info("log_object_was_delivered", path=path)
            return True
        return False


def _build(batch: Batch, form: Format) -> LogObject:
    lines = [
        line_of(part, chunk.bodies[i] if chunk.bodies else b"")
        for chunk in batch.chunks
        for i, part in enumerate(chunk.parts)
    ]
    return objects.build(Lines(batch.name, tuple(lines)), form)
