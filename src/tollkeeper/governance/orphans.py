"""Orphans: producers that were not seen for long and whose disk nobody has. A peer that wins the row closes them.

The orphan is buried in every root where it left a trace, and only then what it still holds there is presumed: in
the other order it could settle in between. The same is done for closed producers whose holds are there again, from a
store that was rolled back. Who comes back nevertheless finds itself buried and goes on under a new name (ledger.py).
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from tollkeeper.domain.admission import CounterRef, split_counter
from tollkeeper.domain.entries import Dispatch, Origin, included
from tollkeeper.domain.errors import StoreUnavailable, Unavailable
from tollkeeper.domain.periods import RETENTION_US, expiry_of_label
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.governance.ledger import Ledger
from tollkeeper.governance.store import Held, Store
from tollkeeper.governance.sync import SyncWorker
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

LOOKS_PER_LEASE: Final = 10
"""How often is looked for orphans within the time after which one is an orphan."""
LOOK_MAX_S: Final = 60.0
SWEEP_US: Final = 3_600_000_000
"""How often all roots are looked through for holds of closed producers."""
FLUSH_S: Final = 10.0


class OrphanWatch:
    """Looks for orphans now and then, from `start` to `stop`."""

    def __init__(
        self,
        *,
        store: Store,
        spend: SpendLedger,
        ledger: Ledger,
        sync: SyncWorker,
        orphan_after_s: float,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._store, self._spend, self._ledger, self._sync = store, spend, ledger, sync
        self._after_us, self._now_us = int(orphan_after_s * 1e6), now_us
        self._pause_s = min(LOOK_MAX_S, orphan_after_s / LOOKS_PER_LEASE)
        self._swept_us = now_us()
        self._task: asyncio.Task[None] | None = None
        self._log = logger("governance")
        self._closed = metrics.counter(
            "tollkeeper_orphans_closed_total", "Producers closed without their disk."
        ).labels()
        self._presumed = metrics.counter(
            "tollkeeper_orphaned_holds_presumed_total", "Holds of orphans that were charged."
        ).labels()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - peers take turns
            try:
                while await self.close_one() is not None:
                    continue
                if self._now_us() - self._swept_us >= SWEEP_US:
                    self._swept_us = self._now_us()
                    for root in await self._sync.roots():
                        await self.sweep(root)
            except Unavailable as error:
                self._log.warning("orphans_wait", why=str(error))

    async def close_one(self) -> str | None:
        """Close one orphan, if there is one to be won. Raises `Unavailable`; then another try follows."""
        now_us = self._now_us()
        orphan = await self._spend.claim_orphan(self._ledger.producer, now_us, now_us - self._after_us)
        if orphan is None:
            return None
        presumed, roots = 0, []
        for root in await self._sync.roots():
            traced = await self._end(root, {orphan})
            if traced is not None:
                presumed += traced
                roots.append(root)
        await self._settle(orphan, roots)
        await self._spend.retire_producer(orphan, self._now_us())
        self._closed.inc()
        self._log.warning("orphan_closed", producer=orphan, presumed=presumed, roots=len(roots))
        return orphan

    async def sweep(self, root: str) -> int:
        """Presume what closed producers hold in a root; returns how much that was."""
        owners = {held.producer for held in await self._store.held(root)} - {self._ledger.producer}
        closed = await self._spend.closed_among(owners) if owners else set()
        return await self._end(root, closed) or 0 if closed else 0

    async def _end(self, root: str, dead: set[str]) -> int | None:
        """Bury producers in a root, then presume what they hold. None if they left no trace there."""
        marks = await self._store.marks(root)
        if marks is None:
            if not dead & set((await self._spend.load(root)).marks):
                return None
            await self._ledger.warm(root)
            marks = await self._store.marks(root) or {}
        holders = {held.producer for held in await self._store.held(root)}
        traced = sorted(p for p in dead if p in marks or p in holders)
        if not traced:
            return None
        for producer in traced:
            self._ledger.bury(root, producer)
        await self._confirmed(root)
        marks = await self._store.marks(root) or {}
        orphaned = [held for held in await self._store.held(root) if held.producer in traced]
        for held in orphaned:
            origin = Origin(held.producer, included(marks.get(held.producer, 0)), held=True)
            self._ledger.presume_for(root, _dispatch_of(held), origin)
        self._presumed.inc(len(orphaned))
        return len(orphaned)

    async def _settle(self, orphan: str, roots: list[str]) -> None:
        for root in roots:
            await self._confirmed(root)
        await self._sync.sync_once()
        if any(self._ledger.has_uncovered(root) for root in roots):
            raise StoreUnavailable(f"the database does not have the end of {orphan} yet")

    async def _confirmed(self, root: str) -> None:
        if not await self._ledger.flush(FLUSH_S):
            raise StoreUnavailable(f"{root} has not confirmed a burial")


def _dispatch_of(held: Held) -> Dispatch:
    """A hold as an entry needs it; when its counters' periods end is told by their names."""
    refs = []
    for name in held.counters:
        expires_us = expiry_of_label(split_counter(name)[1])
        refs.append(CounterRef(name, expires_us - RETENTION_US if expires_us else 0, expires_us))
    return Dispatch(held.attempt, held.amount_nano, tuple(refs), (), held.slots)
