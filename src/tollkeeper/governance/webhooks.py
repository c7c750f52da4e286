"""Delivery of warnings to the operator's webhook: signed, retried, and never in a request's way.

The queue is the table of alerts: it survives restarts, any number of gateways may deliver from it, and what one has
taken comes back when its lease ends. So a receiver may get an alert twice, with the same id, and misses one only if
it refused every attempt for a day and a half, which is logged and counted. It knows nothing of HTTP but a status.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from tollkeeper.domain.alerts import event_body, retry_delay_s, signature
from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.ports import AlertBook, DueAlert
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

POLL_S: Final = 15.0
"""How soon a retry is found that is due, and what another gateway left behind."""
LEASE_US: Final = 120_000_000
"""Longer than any attempt takes."""
BATCH: Final = 10
"""Alerts taken at once, and so attempts in flight."""
SIGNATURE_HEADER: Final = "tollkeeper-signature"

Post = Callable[[Mapping[str, str], bytes], Awaitable[int]]
"""Sends headers and body to the webhook and returns the status. Raises `Unavailable`."""


class WebhookWorker:
    """`start` and `stop` belong to one event loop. Messages are signed with each of `secrets`."""

    def __init__(
        self, *, book: AlertBook, post: Post, secrets: Sequence[str], metrics: Metrics, now_us: Callable[[], int]
    ) -> None:
        self._book, self._post, self._secrets, self._now_us = book, post, secrets, now_us
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = logger("governance")
        sent = metrics.counter("tollkeeper_webhooks_total", "Attempts to deliver a warning, by result.", "result")
        self._delivered, self._retried, self._given_up = map(sent.labels, ("delivered", "retried", "given_up"))

    def wake(self) -> None:
        """There is something to deliver."""
        self._something.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What is not delivered stays in the database, for the next start or another gateway."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def deliver(self) -> int:
        """Try what is due, once; returns how many were taken. Raises `DatabaseUnavailable`."""
        due = await self._book.take_due(self._now_us(), lease_us=LEASE_US, limit=BATCH)
        await asyncio.gather(*(self._try(one) for one in due))
        return len(due)

    async def _try(self, due: DueAlert) -> None:
        body, now_us = event_body(due.alert), self._now_us()
        headers = {"content-type": "application/json", SIGNATURE_HEADER: signature(self._secrets, body, now_us)}
        try:
            status = await self._post(headers, body)
            why = f"it answered {status}"
        except Unavailable as error:
            status, why = 0, str(error)
        if 200 <= status < 300:
            self._delivered.inc()
            await self._book.settle(due.alert, due_us=None, delivered_us=self._now_us())
            return
        delay_s = retry_delay_s(due.attempts, random.random())  # noqa: S311 - jitter
        if delay_s is None:
            self._given_up.inc()
            self._log.error("webhook_given_up", id=due.alert.id, attempts=due.attempts, why=why)
            await self._book.settle(due.alert, due_us=None, failure=why)
        else:
            self._retried.inc()
            self._log.warning(
                "webhook_failed", id=due.alert.id, attempts=due.attempts, why=why, retry_s=round(delay_s)
            )
            await self._book.settle(due.alert, due_us=self._now_us() + int(delay_s * 1e6), failure=why)

    async def _run(self) -> None:
        while True:
            try:
                while await self.deliver() == BATCH:
                    pass
            except Unavailable as error:
                self._log.warning("webhooks_wait", why=str(error))
            try:
                async with asyncio.timeout(POLL_S):
                    await self._something.wait()
            except TimeoutError:
                continue
            self._something.clear()
