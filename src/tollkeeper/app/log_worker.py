"""`tollkeeper worker`: a log worker as a process, and what it says of itself on a port of its own, if it has one.

It serves nobody; its listener is for Prometheus and for whoever watches over processes.
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tollkeeper import __version__
from tollkeeper.admin import Probe, Probes, Readiness
from tollkeeper.app import server
from tollkeeper.app.allocator import give_back
from tollkeeper.app.log_queue import LOG_SPOOL, open_log_client
from tollkeeper.domain.errors import ConfigurationError, StoreUnavailable
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.governance.redis_instruments import RedisInstruments
from tollkeeper.logs.worker import LogWorker
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import Settings

CONNECTIONS_MAX: Final = 64
DRAIN_S: Final = 1.0


async def run_worker(settings: Settings, now_us: Callable[[], int]) -> None:
    """Ship until SIGINT or SIGTERM. Raises ConfigurationError."""
    if settings.embedded:
        raise ConfigurationError("a worker ships what gateways bring to Redis: set REDIS_URL, the same as theirs")
    port = settings.worker.port
    if port is None:
        await _run(settings, now_us, None)
        return
    with server.bind(settings.worker.host, port) as listening:
        await _run(settings, now_us, listening)


async def _run(settings: Settings, now_us: Callable[[], int], listening: socket.socket | None) -> None:
    client = await open_log_client(settings)
    assert client is not None, "there is Redis"
    try:
        metrics = Metrics()
        metrics.gauges("tollkeeper_build_info", "1, for the running version.", ("version",), _versions)
        RedisInstruments(metrics).watch("logs", client)
        worker = LogWorker(
            settings=settings.logs,
            url=settings.logs_url,
            metrics=metrics,
            now_us=now_us,
            client=client,
            spool_root=settings.data_dir / LOG_SPOOL,
        )
        await worker.start()
        logger("app").info("worker_started", redis=client.settings.url, store=worker.store.url)
        trimming = asyncio.create_task(give_back(lambda: worker.shipper.delivered))
        await (_stopped() if listening is None else _serve(settings, worker, metrics, client, listening))
        await worker.stop()
        trimming.cancel()
    finally:
        await client.stop()


async def _stopped() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()


async def _serve(
    settings: Settings, worker: LogWorker, metrics: Metrics, client: RedisClient, listening: socket.socket
) -> None:
    """Answer probes until a signal."""
    readiness = Readiness({"redis": _redis_probe(client), "log_store": _store_probe(worker)})

    async def exposition() -> bytes:
        return metrics.exposition()

    probes = Probes(readiness=readiness, exposition=exposition)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await probes(scope, receive, send)

    bounds = msgspec.structs.replace(settings.server, connections_max=CONNECTIONS_MAX, drain_timeout_s=DRAIN_S)
    where = server.url_of(listening)
    await server.run(application, listening, bounds, lambda: logger("app").info("worker_listens", url=where))


def _redis_probe(client: RedisClient) -> Probe:
    async def ask() -> str | None:
        health = await client.health()
        if not health.ok:
            raise StoreUnavailable(f"{health.failed}: {health.reason}; records wait in the gateways' spools")
        return None

    return ask


def _store_probe(worker: LogWorker) -> Probe:
    async def ask() -> str | None:
        await worker.store.ping()
        return None

    return ask


def _versions() -> list[tuple[tuple[str], int]]:
    return [((__version__,), 1)]
