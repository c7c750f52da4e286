"""The watch over budgets that warn: sees when spend may have reached a threshold, looks, and gives each warning once.

It costs a request nothing but a comparison: a settlement whose scopes hold and have spent enough for a threshold puts
its counter on a list, and a task looks at the store's sum. Who warns is decided in the database, where of any number
of gateways the first to insert the alert gives it. A patrol goes over all budgets that warn, at the start and every
hour, by the database's sums: a crossing that no gateway lived to see is found then at the latest.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from tollkeeper.domain.admission import Checks, CounterCheck, CounterState, Reply, checks_for
from tollkeeper.domain.alerts import Alert, alert_words, alerts_of, next_threshold
from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.policy import Principal, ScopeKind
from tollkeeper.domain.ports import AlertBook
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

TICK_S: Final = 0.5
"""Settlements within it are looked at together."""
RETRY_MAX_S: Final = 30.0
PATROL_S: Final = 3600.0
PENDING_MAX: Final = 10_000
"""Counters to be looked at; more are left to their next settlement, or to the patrol."""
KNOWN_MAX: Final = 50_000
"""Counters whose last warning is remembered; above it they are asked for again."""
LAST_LOOK_S: Final = 2.0
"""What a stop waits for the last look."""

Spent = Callable[[str, ScopeKind, str], Awaitable[CounterState]]


class BudgetWatch:
    """`spent` reads one counter of the store. `wake` is called when there is something to deliver."""

    def __init__(
        self,
        *,
        spent: Spent,
        book: AlertBook,
        metrics: Metrics,
        now_us: Callable[[], int],
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._spent, self._book, self._now_us, self._wake = spent, book, now_us, wake
        self._pending: dict[tuple[str, str], CounterCheck] = {}
        self._warned: dict[tuple[str, str], int] = {}
        self._something = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._log = logger("governance")
        self._given = metrics.counter(
            "tollkeeper_budget_alerts_total", "Thresholds of budgets that were reached.", "scope"
        )
        self._passed_over = metrics.counter(
            "tollkeeper_budget_looks_dropped_total", "Counters not looked at because too many were waiting."
        ).labels()
        metrics.gauge("tollkeeper_budget_looks_pending", "Counters to be looked at.", lambda: len(self._pending))

    async def start(self) -> None:
        """Begin to look, and to patrol."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._patrol())]

    async def stop(self) -> None:
        """Look a last time, if store and database answer at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(LAST_LOOK_S):
                await self.look()

    def settled(self, checks: Checks, reply: Reply | None, excess_nano: int = 0) -> None:
        """A request has ended. `reply` is that of its admission: what was spent and held then bounds what is spent
        when all that was in flight has ended, but for the `excess_nano` of a cost above its hold. None: look."""
        for position, check in enumerate(checks.counters):
            if not check.thresholds:
                continue
            key = (checks.root, check.name)
            threshold = next_threshold(check, self._warned.get(key, 0))
            if threshold is None:
                continue
            if reply is not None:
                money = reply.counters[position] if position < len(reply.counters) else None
                if money is not None and money.spent + money.held + excess_nano < threshold:
                    continue
            if key not in self._pending and len(self._pending) >= PENDING_MAX:
                self._passed_over.inc()
                continue
            self._pending[key] = check
            self._something.set()

    async def look(self) -> None:
        """Look at every counter on the list once; those that may yet reach a threshold stay. Raises `Unavailable`."""
        for key, check in tuple(self._pending.items()):
            root, name = key
            money = await self._spent(root, check.scope, name)
            await self._warn(alerts_of(root, check, money.spent, self._now_us(), self._warned.get(key, 0)))
            threshold = next_threshold(check, self._warned.get(key, 0))
            if self._pending.get(key) is check and (threshold is None or money.spent + money.held < threshold):
                del self._pending[key]

    async def patrol(self) -> None:
        """Go over all budgets that warn, by the sums of the database. Raises `Unavailable`."""
        now_us = self._now_us()
        watched: dict[tuple[str, str], CounterCheck] = {}
        for root, scope in await self._book.watched():
            checks = checks_for(Principal(scope.id, "", root, (scope,)), now_us)
            watched |= {(root, check.name): check for check in checks.counters if check.thresholds}
        for (root, name), spent in (await self._book.spent(list(watched))).items():
            warned = self._warned.get((root, name), 0)
            await self._warn(alerts_of(root, watched[(root, name)], spent, now_us, warned))
        await self._book.forget(now_us)

    async def _warn(self, alerts: Sequence[Alert]) -> None:
        if not alerts:
            return
        first = await self._book.claim(alerts, due_us=None if self._wake is None else self._now_us())
        for alert in first:
            self._given.labels(alert.scope.value).inc()
            self._log.warning("budget_threshold_reached", id=alert.id, **alert_words(alert))
        for alert in alerts:
            if len(self._warned) >= KNOWN_MAX:
                self._warned.clear()
            key = (alert.root, alert.counter)
            self._warned[key] = max(alert.threshold_nano, self._warned.get(key, 0))
        if first and self._wake is not None:
            self._wake()

    async def _run(self) -> None:
        wait_s = TICK_S
        while True:
            await self._something.wait()
            await asyncio.sleep(wait_s)
            self._something.clear()
            try:
                await self.look()
                wait_s = TICK_S
            except Unavailable as error:
                wait_s = min(RETRY_MAX_S, 2 * wait_s)
                self._log.warning("budget_warnings_wait", why=str(error), counters=len(self._pending))
            if self._pending:
                self._something.set()

    async def _patrol(self) -> None:
        while True:
            try:
                await self.patrol()
                wait_s = PATROL_S
            except Unavailable as error:
                wait_s = RETRY_MAX_S
                self._log.warning("budget_patrol_waits", why=str(error))
            await asyncio.sleep(wait_s)
