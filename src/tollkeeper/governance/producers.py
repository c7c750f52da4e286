"""Which producers are open, as a loss of the store needs to know: whoever asks shares the next read of the database.

Only a read that began after the loss tells all that may have lost something; one of before may lack a producer that
began a moment ago, and has money in flight by now. Who waits for whom is decided by the store.
"""

import asyncio
from typing import Final

from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.domain.ports import SpendLedger
from tollkeeper.domain.recovery import UNKNOWN
from tollkeeper.observability.logging import logger


class OpenProducers:
    """The list. One read at a time, however many ask."""

    def __init__(self, spend: SpendLedger) -> None:
        self._spend = spend
        self._turn = asyncio.Lock()
        self._known: list[str] = []
        self._begun = self._read = self._failed = 0  # reads that began; which of them was the last to end so
        self._log: Final = logger("governance")

    async def named(self, own: str) -> list[str]:
        """All that were open at some time after this was called, and `own`. While the database is away those that
        were known last, and `UNKNOWN` for others that there may be."""
        asked = self._begun
        async with self._turn:
            if max(self._read, self._failed) <= asked:
                await self._ask()
            known = self._known if own in self._known else [*self._known, own]
            return known if self._read > asked else [*known, UNKNOWN]

    async def _ask(self) -> None:
        self._begun += 1
        number = self._begun
        try:
            self._known = await self._spend.open_producers()
            self._read = number
        except DatabaseUnavailable as error:
            self._failed = number
            self._log.warning("open_producers_unknown", why=str(error), known=len(self._known))
