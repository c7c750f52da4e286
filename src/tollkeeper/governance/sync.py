"""The sync worker: brings totals and marks of changed roots into the database, in guarded transactions.

A transaction has many roots, so that a thousand of them cost a few round trips; each is guarded by its own marks.
Any number of workers may run at once, late or twice: a snapshot is written only if its marks dominate the database's,
and if the database has not numbered a later memory of that root. A memory is numbered before it is first saved, in
every life of the server. Flags are cleared after the commit, if unchanged: a worker may die at any instant.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from tollkeeper.domain.charges import QUARANTINED
from tollkeeper.domain.errors import DatabaseUnavailable, StoreDamaged, StoreUnavailable, Unavailable
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.domain.tree import NOTHING_SPENT
from tollkeeper.governance.ledger import Ledger
from tollkeeper.governance.store import Snapshot, Store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

WHOLE_US: Final = 3_600_000_000
"""All counters are compared with the database this often, whether they were touched here or not."""
TURN_LEASE_S: Final = 300.0
"""Of several gateways one compares all in an hour. If it dies meanwhile, another may begin after so long."""
REST_PER_PAGE: Final = 1.0
"""Comparing them pauses after each page for as long as the page took, times this: requests come first."""
MARKS_KEPT_US: Final = 7 * 86_400_000_000
"""The mark of a closed producer is dropped so long after the database had its close."""
RETRY_S: Final = 5.0
"""After a failed run the next one comes this soon, or after the interval if that is shorter."""
ROOTS_AT_ONCE: Final = 64
"""Roots that are read together."""
ROOTS_WAITING: Final = 10_000
"""When all roots are taken, so many are named at a time."""
COUNTERS_AT_ONCE: Final = 1_000
"""Roots are written together until they have so many counters: no transaction holds its locks for long."""


class SyncWorker:
    """Runs every `interval_s`, at once when asked (`sync_once`), and a last time at `stop`."""

    def __init__(
        self,
        *,
        store: Store,
        spend: SpendLedger,
        ledger: Ledger,
        interval_s: float,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._store, self._spend, self._ledger = store, spend, ledger
        self._interval_s, self._now_us = interval_s, now_us
        self._waiting: set[str] = set()
        self._unread: set[str] = set()  # the store did not give these; the next run takes them last
        self._refused: set[str] = set()  # the database took nothing of these: perhaps their number is not the latest
        self._running = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._log = logger("governance")
        self.last_success_us = now_us()
        runs = metrics.counter("tollkeeper_sync_runs_total", "Runs of the sync worker by result.", "result")
        self._ok, self._failed = runs.labels("ok"), runs.labels("failed")
        self._written = metrics.counter(
            "tollkeeper_sync_counters_total", "Counters written to the database."
        ).labels()
        self._behind = metrics.counter(
            "tollkeeper_sync_rejected_total", "Snapshots rejected because the database knew more."
        ).labels()
        self._quarantined = metrics.counter(
            "tollkeeper_entries_quarantined_total", "Entries that could not be placed; they charged nothing."
        ).labels()
        self._unflagged = metrics.counter(
            "tollkeeper_sync_counters_unflagged_total",
            "Counters that the database lacked and that nothing would have brought there.",
        ).labels()
        self._seconds = metrics.histogram("tollkeeper_sync_seconds", "Duration of complete syncs.").labels()
        metrics.gauge("tollkeeper_sync_interval_seconds", "Pause between two syncs, as set.", lambda: interval_s)
        metrics.gauge(
            "tollkeeper_sync_age_seconds", "Time since the last complete sync.", lambda: self.age_us() / 1e6
        )

    def age_us(self) -> int:
        """Time since the last complete run."""
        return self._now_us() - self.last_success_us

    async def start(self) -> None:
        """Begin the rhythm; the first run takes all roots the database knows."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the rhythm with a last run. Raises `Unavailable` if that could not reach store or database."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.sync_once()

    async def roots(self) -> set[str]:
        """All that the database or the store knows. Raises `Unavailable`."""
        known = set(await self._spend.roots())
        async for root in self._store.roots():
            known.add(root)
        return known

    async def _run(self) -> None:
        whole_us: int | None = None  # when all roots were taken last
        while True:
            wait_s = self._interval_s
            try:
                now_us = self._now_us()
                due = whole_us is None or now_us - whole_us >= WHOLE_US
                if due and await self._whole(now_us, first=whole_us is None):
                    whole_us = now_us
                await self.sync_once()
            except Unavailable as error:
                self._log.warning("sync_waits", why=str(error))
                wait_s = min(RETRY_S, self._interval_s)
            await asyncio.sleep(wait_s)

    async def _whole(self, now_us: int, *, first: bool) -> bool:
        """Take and compare all roots: at the start, and hourly if no other gateway does so or has. Returns whether
        this was done. Raises `Unavailable`."""
        await self._forget(now_us)
        begun_s = monotonic()
        if not await self._is_our_turn(first=first):
            return False
        keeping = asyncio.create_task(self._keep_turn())
        try:
            await self._take_all()
            await self._compare_all()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        with suppress(StoreUnavailable):  # then somebody compares sooner than need be
            await self._store.keep_turn(max(1, WHOLE_US // 1_000_000 - int(monotonic() - begun_s)))
        return True

    async def _take_all(self) -> None:
        """Sync every root that the store has, also those that only a dead producer has touched; some at a time, since
        there may be a million. What is known to have changed does not wait for all the rest."""
        await self.sync_once()
        some = 0
        async for root in self._store.roots():
            self._waiting.add(root)
            some += 1
            if some % ROOTS_WAITING == 0:
                await self.sync_once()
        await self.sync_once()

    async def _is_our_turn(self, *, first: bool) -> bool:
        """Where the store takes no word of whose turn it is (it is full, say), the rest of a sync goes on."""
        try:
            return await self._store.take_turn(self._ledger.producer, int(TURN_LEASE_S), first=first) or first
        except StoreUnavailable as error:
            self._log.warning("no_turn_to_compare", why=str(error))
            return first

    async def _keep_turn(self) -> None:
        while True:
            await asyncio.sleep(TURN_LEASE_S / 3)
            with suppress(StoreUnavailable):
                await self._store.keep_turn(int(TURN_LEASE_S))

    async def _forget(self, now_us: int) -> None:
        """Marks that nobody needs any more; every gateway must know of them."""
        self._ledger.forgotten = await self._spend.forget_marks(now_us, now_us - MARKS_KEPT_US)

    async def _compare_all(self) -> None:
        """Have the next run bring every counter of which the database has something else than the store, also one
        that lost its flag. What changes meanwhile may be brought twice, which is harmless. Raises `Unavailable`."""
        async for page in self._store.counters():
            began_s = monotonic()
            read = await asyncio.gather(*(self._store.totals(root, names) for root, names in page.items()))
            known = await self._spend.totals(page)
            for (root, names), here in zip(page.items(), read, strict=True):
                there = known.get(root, {})
                behind = [n for n in names if n in here and here[n] != there.get(n, NOTHING_SPENT)]
                if behind:
                    self._waiting.add(root)
                    self._unflagged.inc(await self._store.flag(root, behind))
            await asyncio.sleep(REST_PER_PAGE * (monotonic() - began_s))

    async def sync_once(self) -> int:
        """Write everything that has changed; returns the number of counters. Raises `Unavailable`; what is left is
        taken by the next run."""
        async with self._running:
            self._waiting |= self._ledger.touched
            self._ledger.touched.clear()
            written = 0
            began_s = monotonic()
            try:
                roots = sorted(self._waiting, key=self._unread.__contains__)
                for start in range(0, len(roots), ROOTS_AT_ONCE):
                    written += await self._sync_roots(roots[start : start + ROOTS_AT_ONCE])
            except (StoreUnavailable, DatabaseUnavailable):
                self._failed.inc()
                raise
            self._ok.inc()
            self._seconds.observe(monotonic() - began_s)
            self.last_success_us = self._now_us()
            return written

    async def _sync_roots(self, roots: Sequence[str]) -> int:
        """What can be read is written, also if the store does not give all; then raises `StoreUnavailable`."""
        read = await self._snapshots(roots)
        found: list[Snapshot] = []
        damaged: dict[str, StoreDamaged] = {}  # nothing of these may be saved; they wait for the next run
        failure: BaseException | None = None
        for root, snapshot in zip(roots, read, strict=True):
            self._unread.discard(root)
            if isinstance(snapshot, StoreDamaged):
                damaged[root] = snapshot
            elif isinstance(snapshot, BaseException):
                failure = snapshot
                self._unread.add(root)
            elif snapshot is not None and not snapshot.content.fence:
                self._ledger.recover(root)  # it lives another life since it was numbered; the next run takes it
            elif snapshot is not None:
                found.append(snapshot)
            elif self._ledger.has_uncovered(root):
                self._ledger.recover(root)  # the store lost what the database does not have yet; the outbox has it
            else:
                self._waiting.discard(root)
        written = 0
        for together in _parcels(found):
            written += await self._write(together)
        for root, error in damaged.items():
            await self._ledger.mend(root, error)
        if failure is not None:
            raise failure
        return written

    async def _snapshots(self, roots: Sequence[str]) -> "list[Snapshot | BaseException | None]":
        """What the store has of each root, numbered. Raises `DatabaseUnavailable`."""
        read: dict[str, Snapshot | BaseException | None] = {}
        read.update(zip(roots, await self._read(roots), strict=True))
        unnumbered = {
            root: snapshot
            for root, snapshot in read.items()
            if isinstance(snapshot, Snapshot) and (not snapshot.content.fence or root in self._refused)
        }
        numbers = await self._spend.fence(unnumbered)
        given = [self._store.fence(root, s.run, s.life, numbers[root]) for root, s in unnumbered.items()]
        outcomes = await asyncio.gather(*given, return_exceptions=True)
        read.update((r, o) for r, o in zip(unnumbered, outcomes, strict=True) if isinstance(o, BaseException))
        self._refused -= unnumbered.keys()
        again = [root for root, outcome in zip(unnumbered, outcomes, strict=True) if isinstance(outcome, bool)]
        read.update(zip(again, await self._read(again), strict=True))
        return [read[root] for root in roots]

    async def _read(self, roots: Sequence[str]) -> "list[Snapshot | BaseException | None]":
        return await asyncio.gather(*map(self._store.snapshot, roots), return_exceptions=True)

    async def _write(self, snapshots: Sequence[Snapshot]) -> int:
        saved = await self._spend.save_all([snapshot.content for snapshot in snapshots], self._now_us())
        for snapshot in snapshots:
            if snapshot.content.root not in saved:
                # The store lost something, or another worker was faster: compare marks, look again next time.
                self._behind.inc()
                self._refused.add(snapshot.content.root)
                self._ledger.recover(snapshot.content.root)
        committed = [snapshot for snapshot in snapshots if snapshot.content.root in saved]
        cleared = await asyncio.gather(*map(self._committed, committed), return_exceptions=True)
        for outcome in cleared:
            if isinstance(outcome, BaseException):
                raise outcome
        return sum(len(snapshot.content.totals) for snapshot in committed)

    async def _committed(self, snapshot: Snapshot) -> None:
        """The database has it: the store need not bring it again, nor the outbox keep it."""
        content, root = snapshot.content, snapshot.content.root
        self._ledger.covered(content)
        await self._store.clear(root, snapshot.run, snapshot.life, snapshot.versions, content.used)
        gone = sorted(self._ledger.forgotten & content.marks.keys())
        if gone:
            await self._store.drop_marks(root, gone)
        if not self._ledger.has_uncovered(root):  # else an entry of ours was still on its way to the store
            self._waiting.discard(root)
        self._written.inc(len(content.totals))
        for attempt in [name for name in content.charges if name.startswith(QUARANTINED)]:
            self._quarantined.inc()
            self._log.error("entry_quarantined", root=root, attempt=attempt.removeprefix(QUARANTINED))


def _parcels(snapshots: Sequence[Snapshot]) -> Iterator[list[Snapshot]]:
    """What is written together."""
    together: list[Snapshot] = []
    rows = 0
    for snapshot in snapshots:
        together.append(snapshot)
        rows += len(snapshot.versions) + len(snapshot.content.used)
        if rows >= COUNTERS_AT_ONCE:
            yield together
            together, rows = [], 0
    if together:
        yield together
