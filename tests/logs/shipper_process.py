"""A shipper as a process of its own that dies by SIGKILL at the worst moments; broken shippers that must be caught.

Forked from a server that has everything imported, so that hundreds of them cost little.
"""

import asyncio
import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import msgspec

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.log_queue import Ask, Batch
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs import objects, shipper
from tollkeeper.logs.objects import Lines, LogObject
from tollkeeper.logs.queues import Queue
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.worker import LogWorker
from tollkeeper.observability.logging import configure
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

OBJECT_RECORDS = 20
LEASE_S = 0.5
STORE_TIMEOUT_S = 0.4

Death = Literal["never", "after lease", "before put", "after put"]
Broken = Literal["random names", "ack before put", "pop before put"]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.logs.shipper_process"])


class Order(msgspec.Struct, frozen=True):
    """What one process does: which death it dies at which of its batches, and how it is broken."""

    redis_url: str
    store_url: str
    environ: dict[str, str]
    death: Death = "never"
    nth: int = 1
    broken: Broken | None = None


def start(order: Order) -> Any:
    """The process, running."""
    process = context.Process(target=_main, args=(order,), daemon=True)
    process.start()
    return process


def _main(order: Order) -> None:
    configure("error", "json")
    shipper.BACKOFF_MIN_S, shipper.BACKOFF_MAX_S = 0.02, 0.1  # type: ignore[misc]
    os.environ.update(order.environ)
    asyncio.run(_ship(order))


async def _ship(order: Order) -> None:
    client = RedisClient(url=order.redis_url, read_timeout_s=1.0)
    with suppress(StoreUnavailable):  # it is being killed and started again; the client goes on trying
        await client.start()
    store = open_store(order.store_url, STORE_TIMEOUT_S, order.environ)
    worker = LogWorker(
        settings=LogSettings(
            flush_interval_s=0.01, timeout_s=STORE_TIMEOUT_S, object_records_max=OBJECT_RECORDS, lease_s=LEASE_S
        ),
        url="",
        metrics=Metrics(),
        now_us=lambda: 0,
        client=client,
        store=store,
    )
    _arm(order, worker.queues[0], store)
    if order.broken is not None:
        _break(order.broken, worker)
    await worker.start()
    await asyncio.sleep(3600)


def _arm(order: Order, queue: Queue, store: LogStore) -> None:
    """Count the batches, and die."""
    calls = 0

    def die_at(moment: Death) -> None:
        if order.death == moment and calls == order.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    lease, create = queue.lease, store.create

    async def counted_lease(ask: Ask) -> Batch | None:
        nonlocal calls
        batch = await lease(ask)
        if batch is not None:
            calls += 1
            die_at("after lease")
        return batch

    async def deadly_create(path: str, body: bytes, sha256: str) -> bool:
        die_at("before put")
        created = await create(path, body, sha256)
        die_at("after put")
        return created

    queue.lease = counted_lease  # type: ignore[method-assign]
    store.create = deadly_create  # type: ignore[method-assign]


def _break(how: Broken, worker: LogWorker) -> None:
    ship: Callable[..., Any] = worker.shipper._ship
    queue = worker.queues[0]
    if how == "random names":
        objects.build = partial(_randomly_named, objects.build)
    elif how == "ack before put":

        async def ack_first(queue: Queue, batch: Batch) -> None:
            await queue.ack(batch.name)
            await ship(queue, batch)

        worker.shipper._ship = ack_first  # type: ignore[method-assign]
    else:
        lease = queue.lease

        async def pop(ask: Ask) -> Batch | None:
            batch = await lease(ask)
            if batch is not None:
                await queue.ack(batch.name)
            return batch

        queue.lease = pop  # type: ignore[method-assign]


def _randomly_named(build: Callable[..., LogObject], batch: Lines, form: Any = "jsonl.gz") -> LogObject:
    return build(Lines(uuid.uuid4().hex, batch.records), form)
