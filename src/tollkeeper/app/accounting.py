"""The accounts as one part: store, ledger, closer and sync worker, in the order in which they need each other.

The gateway and the billing cache both run on it, so that what recovers one recovers the other.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack

from tollkeeper.app.webhook import Webhook
from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.outage import OutageMode, OutageModes
from tollkeeper.domain.ports import SpendLedger, StoreAccounts
from tollkeeper.governance import (
    Closer,
    Ledger,
    OrphanWatch,
    Store,
    StoreReader,
    SyncWorker,
    accounts_from_outside,
    open_store,
)
from tollkeeper.governance.alerts import BudgetWatch
from tollkeeper.governance.webhooks import WebhookWorker
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import Settings
from tollkeeper.storage.database import Database


class Accounting:
    """`start` before the first admission; `stop` settles, syncs a last time and lets go. Parts exist after `start`.

    `start` raises ConfigurationError or Unavailable; what it had started is then still to be stopped.
    """

    store: Store
    ledger: Ledger
    sync: SyncWorker
    reader: StoreReader
    webhooks: WebhookWorker | None = None

    def __init__(self, settings: Settings, database: Database, metrics: Metrics, now_us: Callable[[], int]) -> None:
        self._settings, self._database, self._metrics, self._now_us = settings, database, metrics, now_us
        self._parts = AsyncExitStack()
        self._synced = True
        self._log = logger("app")

    async def start(self) -> None:
        """Start the parts; what a dead process left behind is closed now, or in the background."""
        settings, parts, spend = self._settings, self._parts, self._database.spend
        metrics, now_us = self._metrics, self._now_us
        self.store = store = open_store(settings, now_us)
        parts.push_async_callback(store.stop)
        await store.start()

        self.ledger = ledger = Ledger(
            store=store,
            spend=spend,
            outbox_dir=settings.data_dir / "outbox",
            metrics=metrics,
            now_us=now_us,
            admission_timeout_s=settings.store.admission_timeout_s,
            outage=OutageModes(OutageMode(settings.outage.limits), OutageMode(settings.outage.budgets)),
            recovery_grace_s=settings.billing.recovery_grace_s,
        )
        parts.push_async_callback(ledger.stop)
        await ledger.start()

        await self._warn(ledger)

        self.sync = sync = SyncWorker(
            store=store,
            spend=spend,
            ledger=ledger,
            interval_s=settings.billing.sync_interval_s,
            metrics=metrics,
            now_us=now_us,
        )
        self.reader = StoreReader(store=store, spend=spend, ledger=ledger, sync=sync)
        parts.push_async_callback(self._last_sync)
        closer = Closer(spend=spend, ledger=ledger, sync=sync, metrics=metrics, now_us=now_us)
        parts.push_async_callback(closer.stop)
        await closer.start()
        orphans = OrphanWatch(
            store=store,
            spend=spend,
            ledger=ledger,
            sync=sync,
            orphan_after_s=settings.billing.orphan_after_s,
            metrics=metrics,
            now_us=now_us,
        )
        parts.push_async_callback(orphans.stop)
        await orphans.start()
        await sync.start()

    async def _warn(self, ledger: Ledger) -> None:
        """The watch over budgets that warn, and the webhook if there is one. Stopped after the last sync."""
        book, metrics, now_us, secrets = self._database.alerts, self._metrics, self._now_us, self._settings.secrets
        wake = None
        if secrets.webhook_url is not None and secrets.webhook_secret is not None:
            signing = [s for s in (secrets.webhook_secret, secrets.webhook_secret_previous) if s is not None]
            webhook = Webhook(secrets.webhook_url, self._settings.alerts)
            self._parts.push_async_callback(webhook.close)
            worker = WebhookWorker(book=book, post=webhook.post, secrets=signing, metrics=metrics, now_us=now_us)
            self._parts.push_async_callback(worker.stop)
            await worker.start()
            self.webhooks = worker
            wake = worker.wake
        watch = ledger.watch = BudgetWatch(spent=ledger.spent, book=book, metrics=metrics, now_us=now_us, wake=wake)
        self._parts.push_async_callback(watch.stop)
        await watch.start()

    async def stop(self) -> bool:
        """The reverse of the start. False: the outbox keeps something for the next start."""
        await self._parts.aclose()
        return self._synced

    async def _last_sync(self) -> None:
        if not await self.ledger.flush(self._settings.server.drain_timeout_s):
            self._synced = False
            self._log.warning("stopped_unsettled", entries=self.ledger.unacknowledged, why="they wait in the outbox")
        try:
            await self.sync.stop()
        except Unavailable as error:
            self._synced = False
            self._log.warning("last_sync_failed", why=str(error), then="the outbox keeps it for the next start")


async def read_store(settings: Settings, spend: SpendLedger, now_us: Callable[[], int]) -> StoreAccounts | None:
    """What the shared store says, without a gateway. None: the store is a gateway's own memory, and gone with it.

    Raises `Unavailable`.
    """
    if settings.embedded:
        return None
    store = open_store(settings, now_us)
    try:
        await store.start()
        return await accounts_from_outside(store, spend, settings.data_dir / "outbox")
    finally:
        await store.stop()
