"""Closing dead producers: whoever locks an outbox whose process did not stop cleanly ends it, once.

The dead producer is buried, what the database may lack of it is issued again under our own numbers, what it
dispatched and never settled is charged as presumed, and a close releases what is left. All of it is in our own outbox
before it is sent, so a closer that dies as well is succeeded by the next one; the dead one's folder goes when the
database has the close.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tollkeeper.domain.errors import StoreUnavailable, Unavailable
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.governance.ledger import Ledger
from tollkeeper.governance.outbox import Outbox
from tollkeeper.governance.sync import SyncWorker
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

RETRY_MIN_S: Final = 0.2
RETRY_MAX_S: Final = 30.0
FLUSH_S: Final = 10.0
"""Longest wait for the store to confirm a close, before it is tried again."""


class Closer:
    """Closes the dead outboxes that the ledger locked at its start."""

    def __init__(
        self, *, spend: SpendLedger, ledger: Ledger, sync: SyncWorker, metrics: Metrics, now_us: Callable[[], int]
    ) -> None:
        self._spend, self._ledger, self._sync = spend, ledger, sync
        self._now_us = now_us
        self._issued: set[str] = set()  # producers whose close is in our outbox
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
            if outbox.producer not in self._issued:
                await self._issue(outbox)
            if not await self._ledger.flush(FLUSH_S):
                raise StoreUnavailable(f"the store has not confirmed the end of {outbox.producer} yet")
            await self._sync.sync_once()
            if any(self._ledger.has_uncovered(root) for root in outbox.roots):
                raise StoreUnavailable(f"the database does not have the end of {outbox.producer} yet")
            await self._spend.retire_producer(outbox.producer, self._now_us())
            outbox.remove()
            self._ledger.dead.remove(outbox)
            self._closed.inc()
            self._log.info("producer_closed", producer=outbox.producer)

    async def _issue(self, outbox: Outbox) -> None:
        """Bring all that is left of a dead producer into our own outbox.

        What the store has of it already is brought into the database first. A busy gateway leaves entries of some ten
        thousand requests that only the next sync would have covered; one by one they took a minute, and everything
        that this gateway settles would have waited behind them.
        """
        self._ledger.touched.update(outbox.roots)
        with suppress(Unavailable):  # else all is brought again
            await self._sync.sync_once()
        forgotten = await self._spend.forget_marks(self._now_us(), 0)
        marks = {root: (await self._spend.load(root)).marks for root in sorted(outbox.roots)}
        for root, known in marks.items():
            await self._ledger.warm(root)
            presumed = self._ledger.take_over(outbox, root, known.get(outbox.producer, 0), forgotten)
            self._presumed.inc(presumed)
        self._issued.add(outbox.producer)
