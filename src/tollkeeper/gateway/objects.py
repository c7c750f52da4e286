"""Whose stored objects are whose: written down before a client learns of one, asked before it names one.

Writing is in groups, one transaction for all that wait, and a request waits for it at most `KEEP_WAIT_S`: while the
database is away objects are kept here, found by this process alone, and written later. Looking up is one query. It
knows neither HTTP nor what the objects are.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Final

from tollkeeper.domain.errors import DatabaseUnavailable, Fault, RequestError
from tollkeeper.domain.objects import ObjectKind, ObjectRegistry, StoredObject
from tollkeeper.gateway.dialects import Reference
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

KEEP_WAIT_S: Final = 1.0
RETRY_S: Final = 1.0
WAITING_MAX: Final = 10_000
"""Objects that wait for the database; above it the oldest are lost to their clients, and counted."""
BATCH_MAX: Final = 500
RESPONSES_KEPT_US: Final = 60 * 86_400 * 1_000_000
"""Providers keep answers for 30 days; ours are forgotten after twice that."""
EXPIRE_EVERY_US: Final = 3_600 * 1_000_000
NOUNS: Final = {
    ObjectKind.RESPONSE: "Response",
    ObjectKind.ITEM: "Item",
    ObjectKind.FILE: "File",
    ObjectKind.BATCH: "Batch",
}


class Objects:
    """The objects of all organisations. `start` before the first request, `stop` after the last."""

    def __init__(self, registry: ObjectRegistry, metrics: Metrics, now_us: Callable[[], int]) -> None:
        self._registry, self._now_us = registry, now_us
        self._waiting: dict[tuple[str, str], StoredObject] = {}
        self._wake = asyncio.Event()
        self._commit: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._expired_us = 0
        self._late = metrics.counter(
            "tollkeeper_objects_late_total", "Requests whose stored objects were not in the database in time."
        ).labels()
        self._lost = metrics.counter(
            "tollkeeper_objects_lost_total", "Stored objects that no client can reach, for want of the database."
        ).labels()
        self._log = logger("gateway")

    def __repr__(self) -> str:
        return f"<Objects waiting={len(self._waiting)}>"

    async def start(self) -> None:
        """Begin to write."""
        self._commit = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Write what waits, if the database takes it now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with contextlib.suppress(DatabaseUnavailable):
                await self._registry.record(list(self._waiting.values()))

    def put(self, objects: Sequence[StoredObject]) -> None:
        """Whose they are is known to this process from here on, and soon to the others."""
        for its in objects:
            self._waiting[its.root, its.id] = its
        while len(self._waiting) > WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
            self._lost.inc()
        self._wake.set()

    async def committed(self) -> None:
        """Wait until all that was put is known everywhere, or for as long as a client may be kept waiting."""
        commit = self._commit
        if not self._waiting or commit is None:
            return
        try:
            async with asyncio.timeout(KEEP_WAIT_S):
                await asyncio.shield(commit)
        except TimeoutError:
            self._late.inc()

    async def find(self, root: str, ids: Collection[str]) -> dict[str, StoredObject]:
        """The organisation's own among these ids. Raises DatabaseUnavailable."""
        found = {its: self._waiting[root, its] for its in ids if (root, its) in self._waiting}
        missing = [its for its in ids if its not in found]
        return found | await self._registry.find(root, missing) if missing else found

    async def own(self, root: str, kind: ObjectKind, id_: str) -> StoredObject:
        """One object. Raises RequestError UNKNOWN_OBJECT for what is not the organisation's, DatabaseUnavailable."""
        return (await self.owned(root, [(kind, id_)]))[0]

    async def owned(self, root: str, references: Collection[Reference]) -> list[StoredObject]:
        """All of these objects. Raises as `own`, for the first that is missing."""
        found = await self.find(root, {its for _, its in references})
        for kind, its in sorted(references):
            if its not in found or found[its].kind is not kind:
                raise RequestError(Fault.UNKNOWN_OBJECT, f"{NOUNS[kind]} with id '{its[:128]}' not found.")
        return [found[its] for _, its in references]

    async def page(
        self, root: str, kind: ObjectKind, *, limit: int, after: str | None, oldest_first: bool
    ) -> list[StoredObject]:
        """See `ObjectRegistry.page`."""
        return await self._registry.page(root, kind, limit=limit, after=after, oldest_first=oldest_first)

    async def take_due(self, now_us: int, *, lease_us: int, limit: int) -> list[StoredObject]:
        """See `ObjectRegistry.take_due`; as this process knows them."""
        due = await self._registry.take_due(now_us, lease_us=lease_us, limit=limit)
        return [self._waiting.get((its.root, its.id), its) for its in due]

    async def forget(self, root: str, id_: str) -> None:
        """It is gone at the provider. That the database is away changes nothing: the provider says 404 then."""
        self._waiting.pop((root, id_), None)
        with contextlib.suppress(DatabaseUnavailable):
            await self._registry.forget(root, [id_])

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = list(self._waiting.items())[:BATCH_MAX]
            assert self._commit is not None
            try:
                await self._registry.record([its for _, its in batch])
                await self._expire()
            except DatabaseUnavailable as error:
                self._log.warning("objects_wait", waiting=len(self._waiting), error=str(error))
                await asyncio.sleep(RETRY_S)
                self._wake.set()
                continue
            for key, its in batch:
                if self._waiting.get(key) is its:
                    del self._waiting[key]
            if self._waiting:
                self._wake.set()  # who asked after the batch was taken waits for the next one
                continue
            done, self._commit = self._commit, loop.create_future()
            done.set_result(None)

    async def _expire(self) -> None:
        now_us = self._now_us()
        if now_us - self._expired_us >= EXPIRE_EVERY_US:
            self._expired_us = now_us
            await self._registry.expire((ObjectKind.RESPONSE, ObjectKind.ITEM), now_us - RESPONSES_KEPT_US)
