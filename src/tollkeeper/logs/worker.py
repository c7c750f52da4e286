"""A shipper alone: ships what gateways bring to the queue in Redis, as many at once as one likes.

Also brings what dead gateways left in spools under `spool_root`, if it runs on their machine.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.log_queue import QueueStats
from tollkeeper.domain.ports import ScriptStore
from tollkeeper.logs.compaction import keep_compacting
from tollkeeper.logs.pipeline import ADOPT_INTERVAL_S, bounds_of, make_shipper, queue_of, queues_of
from tollkeeper.logs.producer import adopt
from tollkeeper.logs.queue_watch import declare_queue, watch
from tollkeeper.logs.retention import keep_retiring
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

STOP_TIMEOUT_S: Final = 10.0
"""How long a stop ships on; then the batch in hand is given up, and somebody else ships it."""

_log = logger("logs")


class LogWorker:
    """`start`, then it ships until `stop`. Raises ConfigurationError for a URL or credentials that cannot work."""

    def __init__(
        self,
        *,
        settings: LogSettings,
        url: str,
        metrics: Metrics,
        now_us: Callable[[], int],
        client: ScriptStore,
        store: LogStore | None = None,
        spool_root: Path | None = None,
    ) -> None:
        self._settings, self._spool_root, self._now_us = settings, spool_root, now_us
        self.queues = queues_of(settings, f"worker-{secrets.token_hex(8)}", client)
        self.store = open_store(url, settings.timeout_s) if store is None else store
        self.shipper = make_shipper(settings, self.queues, self.store, metrics, now_us)
        self._seen = QueueStats()
        declare_queue(metrics, lambda: self._seen, bounds_of(settings))
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Neither queue nor store need be there yet."""
        self._tasks = [asyncio.create_task(self.shipper.run(), name="log-shipper")]
        self._tasks.append(asyncio.create_task(watch(self.queues, self._see), name="log-watch"))
        if (days := self._settings.retention_days) is not None:
            self._tasks.append(
                asyncio.create_task(keep_retiring(self.store, days, self._now_us), name="log-retention")
            )
        if (after_s := self._settings.compact_after_s) is not None:
            compacting = keep_compacting(self.store, after_s, self._settings.format, self._now_us)
            self._tasks.append(asyncio.create_task(compacting, name="log-compaction"))
        if self._spool_root is not None:
            self._tasks.append(asyncio.create_task(self._adopt(self._spool_root), name="log-adopt"))

    def _see(self, queue: QueueStats) -> None:
        self._seen = queue

    async def _adopt(self, root: Path) -> None:
        while True:
            try:
                await adopt(root, lambda producer: queue_of(self.queues, producer), self._settings.spool_bytes_max)
            except (Unavailable, TimeoutError) as error:
                _log.info("log_adoption_waits", why=str(error))
            await asyncio.sleep(ADOPT_INTERVAL_S)

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ship on for that long, or until nothing is left."""
        shipping, *others = self._tasks
        self.shipper.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await shipping
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        _log.info("log_worker_stopped", delivered=self.shipper.delivered, failures=self.shipper.failures)
