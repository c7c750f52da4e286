"""Idempotency keys of usage on their way from the database into a store that lost its memory.

A few are put there before the tree is seeded. Many follow it, in pages, brought by one producer at a time; until all
are there, a key that is used is looked up in the database first. Which entry an idempotency key stands for, the store
decides (scripts/once.lua, looked.lua, bring.lua).
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, cast

from tollkeeper.domain.entries import Used
from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.domain.recovery import Looked
from tollkeeper.governance.store import Store
from tollkeeper.observability.logging import logger

USED_AT_ONCE: Final = 5_000
"""Idempotency keys that are brought from the database into the store together."""
BRING_LEASE_S: Final = 5.0
"""So long after a page of them nobody else begins to bring a root's keys."""
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0


class UsedKeys:
    """Brings them and looks them up. `producer` is who brings, `spawn` runs a task until the ledger stops."""

    def __init__(
        self,
        store: Store,
        spend: SpendLedger,
        producer: str,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.producer = producer
        self.following: set[str] = set()
        """Roots of which keys of before a loss were seen to be still on their way."""
        self.bringing: dict[str, asyncio.Task[None]] = {}
        """Roots whose keys this process brings now."""
        self._store, self._spend, self._spawn = store, spend, spawn
        self._log = logger("governance")

    async def put_all(self, root: str) -> bool:
        """Have the store know all keys of a root that is about to be seeded. False: they are too many, and are to
        follow."""
        used = await self._spend.used(root, self._store.now_us(), limit=USED_AT_ONCE)
        if len(used) == USED_AT_ONCE:
            return False
        await self._store.remember(root, used)
        return True

    def bring_soon(self, root: str) -> None:
        """Bring a root's keys in the background."""
        self.following.add(root)
        if root not in self.bringing:
            self.bringing[root] = self._spawn(self._bring(root))

    async def _bring(self, root: str) -> None:
        """Bring all that the database remembers, unless another does; from the beginning if the memory is another."""
        delay_s = BACKOFF_MIN_S
        try:
            while True:
                try:
                    memory = await self._store.memory(root)
                    if memory is None or await self._brought(root, memory.run):
                        return
                except Unavailable as error:
                    self._log.warning("keys_wait", root=root, why=str(error), retry_s=round(delay_s, 2))
                    await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                    delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
        finally:
            del self.bringing[root]

    async def _brought(self, root: str, run: str) -> bool:
        """False: the memory is another by now. In pages: a root may have a million keys."""
        page: Mapping[str, Used] = {}  # at first none: who brings them is told before they are read
        after, last, lease_us = "", False, int(BRING_LEASE_S * 1e6)
        while True:
            following = self._spend.used(root, self._store.now_us(), after=after, limit=USED_AT_ONCE)
            bringing = self._store.bring(root, run, self.producer, page, lease_us=lease_us, last=last)
            # The next page is read while this one is written; whichever fails, both have ended before that is told.
            brought, read = await asyncio.gather(bringing, following, return_exceptions=True)
            for outcome in (brought, read):
                if isinstance(outcome, BaseException):
                    raise outcome
            if not brought:
                memory = await self._store.memory(root)
                return memory is None or memory.run == run
            if last:
                self._log.info("keys_brought", root=root)
                return True
            page = cast("Mapping[str, Used]", read)
            last, after = len(page) < USED_AT_ONCE, max(page, default=after)

    async def look_up(self, root: str, digest: str) -> bool:
        """Have one idempotency key in the store as the database knows it. False: the root must be loaded first.

        Memory first, then the database: what it tells is of no use to a later memory."""
        memory = await self._store.memory(root)
        if memory is None:
            return False
        known = await self._spend.used_by(root, digest)
        looked = await self._store.looked_up(root, memory.run, digest, known)
        if looked is Looked.KNOWN:
            self.bring_soon(root)  # whoever did may be gone
        elif looked is Looked.ALL_THERE:
            self.following.discard(root)
        return True
