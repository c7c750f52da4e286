"""What the admin API tells of the logs: the account of this process's pipeline, and the proof over queue and store.

The proof reads everything, so one runs at a time, in bounded time, with calls of its own to the store: whoever ships
is not made to wait. `tollkeeper logs verify` has no such bound.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from tollkeeper.domain.errors import Busy, LogStoreUnavailable
from tollkeeper.domain.log_account import PipelineStats, VerifyReport
from tollkeeper.logs.queues import Queue
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.verify import verify

TIMEOUT_S: Final = 120.0
"""Longest time of a proof: about as long as proxies let an answer wait."""


class LogProver:
    """Implements `ports.LogAccounts`. `stats` is the pipeline's, `queues` are its queues."""

    def __init__(
        self,
        store: LogStore,
        queues: Sequence[Queue],
        stats: Callable[[], PipelineStats],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._store, self._queues, self._stats = store, queues, stats
        self._timeout_s = timeout_s
        self._running = False

    def stats(self) -> PipelineStats:
        """The account at this instant."""
        return self._stats()

    async def verify(self) -> VerifyReport:
        """See `verify`. Raises Busy while another one runs; `LogStoreUnavailable`, also when time is up;
        `StoreUnavailable`."""
        if self._running:
            raise Busy("the logs are being verified for somebody else; ask again when that has ended")
        self._running = True
        try:
            async with asyncio.timeout(self._timeout_s):
                return await verify(self._store, queues=self._queues)
        except TimeoutError:
            raise LogStoreUnavailable(
                f"{self._store.url}: not verified within {self._timeout_s:g} s; `tollkeeper logs verify` takes the "
                "time that it needs"
            ) from None
        finally:
            self._running = False
