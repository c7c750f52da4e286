"""Closing dead producers: whoever locks an outbox whose process did not stop cleanly ends it, once.

The entries the store lacks are sent, what was dispatched and never settled is charged as presumed, and one close
entry releases what is left and refuses later numbers. Everything is appended to the dead producer's own outbox first,
so that a closer that dies as well is succeeded by the next one.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from tollkeeper.domain.entries import CLOSED, close_entry, presume_entry
from tollkeeper.domain.errors import StoreUnavailable, Unavailable
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.governance.ledger import Ledger
from tollkeeper.governance.outbox import Outbox
from tollkeeper.governance.store import Store
from tollkeeper.governance.sync import SyncWorker
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

RETRY_MIN_S: Final = 0.2
RETRY_MAX_S: Final = 30.0


class Closer:
    """Closes the dead outboxes that the ledger locked at its start."""

    def __init__(
        self,
        *,
        store: Store,
        spend: SpendLedger,
        ledger: Ledger,
        sync: SyncWorker,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._store, self._spend, self._ledger, self._sync = store, spend, ledger, sync
        self._now_us = now_us
        self._task: asyncio.Task[None] | None = None
        self._log = logger("governance")
        self._closed = metrics.counter("tollkeeper_producers_closed_total", "Dead producers closed.").labels()
        self._presumed = metrics.counter(
            "tollkeeper_presumed_at_close_total", "Attempts charged at their hold because their process died."
        ).labels()

    @property
    def open(self) -> int:
        """Dead producers that are not closed yet."""
        return len(self._ledger.dead)

    async def start(self) -> None:
        """Close what can be closed now; the rest goes on in the background."""
        try:
            await self._round()
        except Unavailable as error:
            self._log.warning("closing_waits", why=str(error), producers=self.open)
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave the rest to the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for outbox in self._ledger.dead:
            outbox.unlock()

    async def _run(self) -> None:
        delay_s = RETRY_MIN_S
        while self._ledger.dead:
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, 2 * delay_s)
            try:
                await self._round()
            except Unavailable as error:
                self._log.warning("closing_waits", why=str(error), producers=self.open)

    async def _round(self) -> None:
        for outbox in tuple(self._ledger.dead):
            presumed = 0
            for root in sorted(outbox.roots):
                presumed += await self._close(root, outbox)
            await self._sync.sync_once()
            for root in outbox.roots:
                if (await self._spend.load(root)).marks.get(outbox.producer) != CLOSED:
                    raise StoreUnavailable(f"the database does not have the end of {outbox.producer} yet")
            await self._spend.retire_producer(outbox.producer, self._now_us())
            outbox.remove()
            self._ledger.dead.remove(outbox)
            self._closed.inc()
            self._log.info("producer_closed", producer=outbox.producer, presumed=presumed)

    async def _close(self, root: str, outbox: Outbox) -> int:
        """Send a dead producer's last entries of one root; returns how many attempts were presumed."""
        await self._ledger.warm(root)
        marks = await self._store.marks(root)
        if marks is None:
            raise StoreUnavailable(f"{root} is not loaded")
        mark = marks.get(outbox.producer, 0)
        self._ledger.touched.add(root)
        if mark == CLOSED:
            return 0
        outbox.numbers[root] = max(mark, outbox.numbers.get(root, 0))
        in_flight = [dispatch for where, dispatch in outbox.in_flight.values() if where == root]
        for dispatch in in_flight:
            outbox.append(root, presume_entry(outbox.next_number(root), dispatch))
        entries = outbox.entries_above(root, mark)
        if not entries or entries[-1].kind != close_entry(1).kind:
            outbox.append(root, close_entry(outbox.next_number(root)))
            entries = outbox.entries_above(root, mark)
        for entry in entries:
            if not await self._ledger.apply_one(root, outbox.producer, entry):
                raise StoreUnavailable(f"{root} has a gap before entry {entry.number} of {outbox.producer}")
        self._presumed.inc(len(in_flight))
        return len(in_flight)
