"""The gateway process: builds every part from the settings, starts them in order, stops them in the reverse.

This is where the rooms meet. Each line of `_build` says which part stands behind which port; nothing is decided here
but the order, and what a part needs to be called ready.
"""

import asyncio
import gc
import secrets
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from tollkeeper import __version__
from tollkeeper.admin import ControlPlane, Degraded, Parts, Probe, Readiness
from tollkeeper.app.accounting import Accounting
from tollkeeper.app.allocator import give_back
from tollkeeper.app.channel import METRICS, SYNC
from tollkeeper.app.crew import Crew
from tollkeeper.app.data_dir import DataDir, admin_token, digest_key
from tollkeeper.app.database import open_database
from tollkeeper.app.log_queue import LOG_SPOOL, open_log_client
from tollkeeper.domain.errors import DatabaseUnavailable, LogStoreUnavailable, OutboxUnavailable, StoreUnavailable
from tollkeeper.domain.ports import Accounts
from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.egress import Proxy, proxy_of
from tollkeeper.gateway.server import DataPlane
from tollkeeper.governance import Ledger, Outage, RedisStore, Store, SyncWorker
from tollkeeper.governance.logins import LoginLimits
from tollkeeper.governance.redis_instruments import RedisInstruments
from tollkeeper.logs.bodies import BodyLog
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.logs.prover import LogProver
from tollkeeper.logs.redact import Redactor
from tollkeeper.logs.reports import LogReports
from tollkeeper.logs.search import LogReader
from tollkeeper.logs.sinks import open_store
from tollkeeper.observability.logging import about_request
from tollkeeper.observability.metrics import Metrics
from tollkeeper.observability.tracing import Tracing
from tollkeeper.settings import Settings, provider_key, shown

KEYS_STALE_S: Final = 30.0
"""Older than this the table of keys makes the gateway not ready; it goes on serving the keys it knows."""
GC_THRESHOLD: Final = (20_000, 20, 50)
"""Allocations before a young collection, and how many of each generation make the next one due."""
DATA_PLANE_PREFIXES: Final = ("/v1/", "/openai/")


def now_us() -> int:
    """Unix microseconds: the one clock of the process."""
    return time.time_ns() // 1000


def spare_the_collector() -> None:
    """Leave what lives as long as the process out of garbage collection.

    The price data alone is some hundred thousand objects; walking them stopped every request for 0.1 s, several times
    a minute under load. Requests leave few cycles behind, so the young generation may grow larger, too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


class Gateway:
    """One gateway process as an ASGI application. `start` before the first request, `stop` after the last.

    `start` raises ConfigurationError or Unavailable, with everything stopped again; then nothing was served. With a
    `crew` it is one of several workers, and answers for all of them where that is what is asked.
    """

    def __init__(self, settings: Settings, crew: Crew | None = None) -> None:
        self.settings = settings
        self._crew = crew
        self.metrics = Metrics()
        self.data_dir = DataDir(settings.data_dir)
        self.accounts: Accounts
        self._readiness: Readiness
        self._plane: DataPlane
        self._admin: Any
        self._sync_worker: SyncWorker
        self._parts = AsyncExitStack()
        self.public = Public(self)

    def direct(self, client: Client) -> Coroutine[Any, Any, None] | None:
        """The data plane's requests, from our own server."""
        return self._plane.direct(client) if client.path.startswith(DATA_PLANE_PREFIXES) else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The data plane for `/v1/` and Azure's paths, the control plane for everything else."""
        if scope["type"] == "http" and scope["path"].startswith(DATA_PLANE_PREFIXES):
            await self._plane(scope, receive, send)
        else:
            await self.control(scope, receive, send)

    async def control(self, scope: Any, receive: Any, send: Any) -> None:
        """The control plane alone: for a listener of its own."""
        about_request(None)  # a connection's next request begins where its last one ended
        await self._admin(scope, receive, send)

    async def probes(self, scope: Any, receive: Any, send: Any) -> None:
        """Of the control plane only what everybody may ask."""
        about_request(None)
        await self._admin.public(scope, receive, send)

    async def start(self) -> None:
        """Start every part, in the order in which they need each other."""
        try:
            await self._build()
        except BaseException:
            await self._parts.aclose()
            raise
        spare_the_collector()

    async def stop(self) -> None:
        """Drain requests, settle, ship the logs, sync a last time, let go: the reverse of the start."""
        await self._parts.aclose()

    async def _build(self) -> None:
        settings, parts, metrics = self.settings, self._parts, self.metrics
        metrics.gauges("tollkeeper_build_info", "1, for the running version.", ("version",), _versions)
        self.data_dir.create()
        if settings.embedded:
            self.data_dir.lock()
            parts.callback(self.data_dir.unlock)

        database = await open_database(settings, pool_size=settings.database.pool_size)
        parts.push_async_callback(database.close)
        key = digest_key(settings)
        self.accounts = database.accounts(key, now_us)

        accounting = Accounting(settings, database, metrics, now_us)
        parts.push_async_callback(accounting.stop)
        await accounting.start()
        redis = RedisInstruments(metrics)
        store, ledger = accounting.store, accounting.ledger
        self._sync_worker = accounting.sync

        if isinstance(store, RedisStore):
            redis.watch("accounts", store.client)

        log_client = await open_log_client(settings)
        if log_client is not None:
            redis.watch("logs", log_client)
            parts.push_async_callback(log_client.stop)
        records = LogPipeline(
            settings=settings.logs,
            url=settings.logs_url,
            producer=f"gw-{secrets.token_hex(8)}",  # the numbers of records begin anew at every start
            metrics=metrics,
            now_us=now_us,
            client=log_client,
            spool_root=settings.data_dir / LOG_SPOOL,
        )
        parts.push_async_callback(records.stop)
        await records.start()
        trimming = asyncio.create_task(give_back(lambda: records.delivered))
        parts.callback(trimming.cancel)
        bodies = BodyLog(records.put, Redactor(settings.logs, known_secrets(settings)), metrics, records.expect)
        parts.push_async_callback(bodies.stop)

        tracing = None
        if settings.tracing.endpoint is not None:
            tracing = Tracing(settings.tracing, metrics, __version__)
            parts.push_async_callback(tracing.stop)
            await tracing.start()

        self._plane = DataPlane(
            settings=settings,
            provider_keys=provider_keys(settings),
            proxies=proxies(settings),
            digest_key=key,
            directory=database.directory,
            governor=ledger,
            records=bodies,
            metrics=metrics,
            now_us=now_us,
            objects=database.objects,
            corrector=ledger,
            tracing=tracing,
        )
        parts.push_async_callback(self._plane.stop)
        await self._plane.start()

        self._readiness = Readiness(
            {
                "database": _probe(database.ping),
                "store": _store_probe(store, ledger.outage),
                "log_store": _log_store_probe(records),
                "outbox": _outbox_probe(ledger),
                "keys": _keys_probe(self._plane),
            }
        )
        log_store = open_store(settings.logs_url, settings.logs.timeout_s)  # whoever reads does not hold up who ships
        self._admin = ControlPlane(
            Parts(
                accounts=self.accounts,
                tokens=database.admin_tokens(key, now_us),
                audit=database.audit(now_us),
                idempotency=database.idempotency(key, now_us),
                spend=database.spend,
                budgets=database.budgets,
                alerts=database.alerts,
                configuration=shown(settings),
                governor=ledger,
                corrector=ledger,
                account_reader=accounting.reader,
                records_pending=lambda: _undelivered(records),
                logs=LogReader(log_store),
                reports=LogReports(log_store, now_us),
                log_accounts=LogProver(log_store, records.queues, records.stats),
                logins=LoginLimits(now_us, store.client if isinstance(store, RedisStore) else None),
                session_ends=database.session_ends(now_us),
                sync=self.sync,
                readiness=self._readiness,
                metrics=metrics,
                exposition=self.exposition,
                admin_token=admin_token(settings),
                version=__version__,
                now_us=now_us,
            )
        )
        if self._crew is not None:
            self._crew.may_ask({METRICS: self._own_exposition, SYNC: self._own_sync})

    async def exposition(self) -> bytes:
        """What `/metrics` tells: this process, or all workers."""
        return await (self._own_exposition() if self._crew is None else self._crew.exposition())

    async def _own_exposition(self) -> bytes:
        return self.metrics.exposition()

    async def sync(self) -> None:
        """Write spend to the database, also what only another worker knows to have changed. Raises `Unavailable`."""
        await self._own_sync()
        if self._crew is not None:
            await self._crew.sync()

    async def _own_sync(self) -> bytes:
        await self._sync_worker.sync_once()
        return b""


class Public:
    """The data plane and probes alone: for the listener beside one of the control plane's own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.direct = gateway.direct

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(DATA_PLANE_PREFIXES):
            await self._gateway(scope, receive, send)
        else:
            await self._gateway.probes(scope, receive, send)


def _versions() -> list[tuple[tuple[str], int]]:
    return [((__version__,), 1)]


def provider_keys(settings: Settings) -> Mapping[str, str | None]:
    """Every provider's API key; None for one that needs none. Raises ConfigurationError."""
    return {name: provider_key(name, provider) for name, provider in settings.providers.items()}


def proxies(settings: Settings) -> Mapping[str, Proxy | None]:
    """Every provider's proxy; None for one that is reached directly. Raises ConfigurationError."""
    return {name: proxy_of(name, provider) for name, provider in settings.providers.items()}


def known_secrets(settings: Settings) -> list[str]:
    """Texts of the configuration that must never be in a log record."""
    keys = [key for key in provider_keys(settings).values() if key is not None]
    keys += [proxy.password for proxy in proxies(settings).values() if proxy is not None and proxy.password]
    return [*keys, digest_key(settings).decode("utf-8", "replace"), admin_token(settings)]


def _undelivered(records: LogPipeline) -> int:
    stats = records.stats()
    return max(stats.pending, stats.queue.size)


def _probe(ping: Any) -> Probe:
    async def ask() -> str | None:
        await ping()
        return None

    return ask


def _store_probe(store: Store, outage: Outage) -> Probe:
    async def ask() -> str | None:
        reason = outage.degraded
        if reason is None:
            try:
                await store.ping()
            except StoreUnavailable as error:
                reason = outage.choice(str(error))  # no request has met it yet
            else:
                return None
        if outage.shuts:
            raise StoreUnavailable(reason)
        return Degraded(reason)

    return ask


def _log_store_probe(records: LogPipeline) -> Probe:
    """Requests are served without it: taking every gateway out of service would turn an outage of the log store into
    one of its callers'."""

    async def ask() -> str | None:
        try:
            await records.ping()
        except LogStoreUnavailable as error:
            return Degraded(f"{error}; records wait in the queue, which is {records.stats().fill:.0%} full")
        return None

    return ask


def _outbox_probe(ledger: Ledger) -> Probe:
    async def ask() -> str | None:
        if ledger.outbox_failure is not None:
            raise OutboxUnavailable(ledger.outbox_failure)
        return f"{ledger.unacknowledged} entries unconfirmed"

    return ask


def _keys_probe(plane: DataPlane) -> Probe:
    async def ask() -> str | None:
        health = plane.health()
        stale_s = health["keys_stale_s"]
        if stale_s is None:
            raise DatabaseUnavailable("the table of keys was never loaded")
        if stale_s > KEYS_STALE_S:
            raise DatabaseUnavailable(f"the table of keys is {stale_s:.0f} s old")
        return f"{health['keys']} keys, {stale_s:.1f} s old"

    return ask
