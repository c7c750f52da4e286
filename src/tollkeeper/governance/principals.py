"""The principals that a billing cache works for: read from the database when first needed, current within a second.

It only watches the change counter; when that has moved, what it knew is read again. While the database is away it
answers from what it knows for a stated time. The data plane has a table of its own, by secret.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from tollkeeper.domain.errors import DatabaseUnavailable, InvalidInput
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import Accounts
from tollkeeper.observability.logging import logger

POLL_INTERVAL_S: Final = 1.0
STALE_MAX_S: Final = 600.0
"""How long budgets that cannot be checked against the database are still used."""
KNOWN_MAX: Final = 50_000
"""Principals kept; above it all are read anew when next needed."""


class KnownPrincipals:
    """`narrowed` is what is kept of each principal. `start` and `stop` belong to one event loop."""

    def __init__(self, accounts: Accounts, narrowed: Callable[[Principal], Principal]) -> None:
        self._accounts, self._narrowed = accounts, narrowed
        self._known: dict[str, Principal] = {}
        self._version = -1
        self._current_at_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._log = logger("governance")

    async def start(self) -> None:
        """Read the version once, then every second. Raises `DatabaseUnavailable`."""
        await self.refresh()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def get(self, key: str) -> Principal:
        """The principal of a key's id or name. Raises `InvalidInput`, `NotFound`, `DatabaseUnavailable`."""
        if not isinstance(key, str):
            raise InvalidInput(f"key_id must be a str, the key's id or name, not {type(key).__name__}")
        known = self._known.get(key)
        if known is not None and self.stale_s() <= STALE_MAX_S:
            return known
        version = self._version
        principal = self._narrowed(await self._accounts.principal(key))
        if version == self._version:  # else it may be of before the change
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = principal
        return principal

    async def refresh(self) -> None:
        """Have every change that is committed by now. Raises `DatabaseUnavailable`."""
        began_s = asyncio.get_running_loop().time()
        version = await self._accounts.version()
        if version != self._version:
            self._version = version
            self._known.clear()
        self._current_at_s = began_s

    def stale_s(self) -> float:
        """How old the last look at the change counter is."""
        return asyncio.get_running_loop().time() - self._current_at_s

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            try:
                await self.refresh()
            except DatabaseUnavailable as error:
                self._log.warning("budgets_not_current", why=str(error), since_s=round(self.stale_s()))
