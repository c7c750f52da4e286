"""A ledger on real parts: memory or Redis, SQLite, an outbox folder."""

import asyncio
from pathlib import Path

from tollkeeper.domain.admission import Denial, Grant
from tollkeeper.domain.outage import OutageModes
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, Principal, Scope, ScopeKind, Unit, Window
from tollkeeper.domain.usage import Usage
from tollkeeper.governance import Closer, Ledger, MemoryStore, OrphanWatch, RedisStore, SyncWorker
from tollkeeper.governance.ledger import SHUT
from tollkeeper.governance.store import Store
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import StoreSettings
from tollkeeper.storage.database import Database

NOW_US = 1_795_000_000_000_000


class Clock:
    """Time is passed in."""

    def __init__(self, now_us: int = NOW_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


def one_key(root: str, policy: Policy, organisation: Policy | None = None) -> Principal:
    scopes = [Scope(ScopeKind.KEY, "key_1", policy)]
    if organisation is not None:
        scopes.append(Scope(ScopeKind.ORGANISATION, root, organisation))
    return Principal("key_1", "one", root, tuple(scopes))


def budget(nano: int, *, rpm: int = 1000, concurrency: int | None = None) -> Policy:
    return Policy(
        windows=(Window(Unit.REQUESTS, rpm), Window(Unit.TOKENS, 10**9)),
        budgets=(Budget(nano, Period.MONTH),),
        concurrency=concurrency,
    )


class Parts:
    """What a gateway process has of governance, to start and stop (or abandon, as a crash does)."""

    def __init__(
        self,
        store: Store,
        database: Database,
        folder: Path,
        clock: Clock,
        outage: OutageModes = SHUT,
        *,
        grace_s: float = 30.0,
    ) -> None:
        self.store, self.database, self.clock = store, database, clock
        self.metrics = Metrics()
        spend = database.spend
        common = {"store": store, "spend": spend, "metrics": self.metrics, "now_us": clock}
        self.ledger = Ledger(
            outbox_dir=folder / "outbox",
            outage=outage,
            recovery_grace_s=grace_s,
            **common,  # type: ignore[arg-type]
        )
        self.sync = SyncWorker(ledger=self.ledger, interval_s=3600, **common)  # type: ignore[arg-type]
        self.closer = Closer(spend=spend, ledger=self.ledger, sync=self.sync, metrics=self.metrics, now_us=clock)
        self.orphans = OrphanWatch(
            ledger=self.ledger,
            sync=self.sync,
            orphan_after_s=600,
            **common,  # type: ignore[arg-type]
        )

    @classmethod
    async def start(
        cls,
        folder: Path,
        redis_url: str | None,
        clock: Clock | None = None,
        outage: OutageModes = SHUT,
        *,
        grace_s: float = 30.0,
        database: Database | None = None,
    ) -> "Parts":
        clock = clock or Clock()
        store: Store = MemoryStore(clock) if redis_url is None else RedisStore(StoreSettings(redis_url=redis_url))
        await store.start()
        database = database or await Database.open(f"sqlite:///{folder / 'accounts.db'}")
        await database.migrate()
        parts = cls(store, database, folder, clock, outage, grace_s=grace_s)
        await parts.ledger.start()
        await parts.closer.start()
        return parts

    async def stop(self) -> None:
        assert await self.ledger.flush(5)
        await self.closer.stop()
        await self.sync.stop()
        await self.ledger.stop()
        await self.store.stop()
        await self.database.close()

    async def admit(self, who: Principal, attempt: str, *, hold: int, tokens: int = 100) -> Grant | Denial:
        return await self.ledger.admit(who, attempt=attempt, tokens=tokens, hold_nano=hold)

    async def spend(self, who: Principal, attempt: str, *, hold: int, cost: int) -> None:
        """One whole request."""
        grant = await self.admit(who, attempt, hold=hold)
        assert isinstance(grant, Grant), grant
        self.ledger.dispatched(grant)
        self.ledger.settle(grant, cost, Usage(input_tokens=30, output_tokens=12, cached_tokens=5))

    async def spent(self, root: str) -> dict[str, int]:
        """The database's totals."""
        return {name: t.cost_nano for name, t in (await self.database.spend.load(root)).totals.items()}


async def abandon(parts: Parts) -> None:
    """As a crash does: nothing is said to anybody."""
    for task in tuple(parts.ledger._tasks):
        task.cancel()
    await asyncio.gather(*parts.ledger._tasks, return_exceptions=True)
    parts.ledger._outbox.unlock()
    await parts.store.stop()
