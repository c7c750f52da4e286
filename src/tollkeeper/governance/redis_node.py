"""The connections to one server: a lead for everything ordered, spares for what may be spread.

One connection is the fastest way for one process, since commands of a tick then share one write and one read.
Measured with 64 tasks that each await a script which does nothing (uvloop, Redis 7.0 on the same machine, medians):

    connections      1        2        4        10
    calls/s    291,000  274,000  242,000   155,000
    CPU µs each    2.0      2.2      2.5       3.3

With 512 tasks 1, 2 and 4 are equal and 10 is slower. So a spare is used only while the lead has `SPREAD_PENDING`
commands unanswered, which happens behind a large reply or a slow script. This file knows no keys and no scripts.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.governance.redis_connection import Command, Counters, Dial, RedisConnection, ReplyError, Send, end
from tollkeeper.governance.redis_settings import RedisSettings

SPREAD_PENDING: Final = 256


class Node:
    """One server, or one sentinel service. `state` is its lead's."""

    def __init__(
        self,
        name: str,
        dial: Dial,
        settings: RedisSettings,
        *,
        on_connect: Callable[[Send], Awaitable[str | None]],
        on_refusal: Callable[[RedisConnection, ReplyError, Command], bool],
        counters: Counters,
    ) -> None:
        self.name = name
        self.spares: list[RedisConnection] = []
        self._dial = dial
        self._settings = settings
        self._on_connect = on_connect
        self._on_refusal = on_refusal
        self._counters = counters
        self._opening: set[asyncio.Task[None]] = set()
        self._leaving: list[RedisConnection] = []
        self._stopped = False
        self.lead = self._make(lasting=True)

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.state} spares={len(self.spares)}>"

    @property
    def state(self) -> str:
        return self.lead.state

    @property
    def connections(self) -> list[RedisConnection]:
        """Those that are up."""
        return [c for c in (self.lead, *self.spares, *self._leaving) if c.state == "up"]

    async def start(self) -> None:
        """Connect the lead. Raises StoreUnavailable; the lead goes on trying."""
        self._stopped = False
        await self.lead.start()

    async def stop(self) -> None:
        """Close all; what is pending fails."""
        self._stopped = True
        await end(self._opening)
        await asyncio.gather(*(c.stop() for c in (self.lead, *self.spares, *self._leaving)))

    def send(self, *parts: Any) -> "asyncio.Future[Any]":
        """In order with all others of this node."""
        return self.lead.send(*parts)

    def pick(self) -> RedisConnection:
        """The connection for a command whose order does not matter: the first that is not crowded."""
        best = self.lead
        if best.pending < SPREAD_PENDING or best.state != "up":
            return best
        for spare in self.spares:
            if spare.state == "up" and spare.pending < best.pending:
                best = spare
                if spare.pending < SPREAD_PENDING:
                    return best
        self._counters.misses += 1
        self._open_spare()
        return best

    def maintain(self, now_s: float) -> None:
        """Close what is too old or idle for too long, keep the least number of idle connections open."""
        self.spares = [c for c in self.spares if c.state != "stopped"]
        self._leaving = [c for c in self._leaving if c.state != "stopped"]
        for spare in [c for c in self.spares if self._stale(c, now_s)]:
            self.spares.remove(spare)
            self._leaving.append(spare)
            self._counters.stale += 1
            spare.retire()
        if self.lead.state != "up":
            return
        if self._stale(self.lead, now_s) and not self._opening:
            self._open(self._replace_lead())
        idle = sum(c.pending == 0 for c in (self.lead, *self.spares)) + len(self._opening)
        for _ in range(self._settings.min_idle_conns - idle):
            self._open_spare()

    def _stale(self, connection: RedisConnection, now_s: float) -> bool:
        old = now_s - connection.born_s > self._settings.max_conn_age_s * self._age_jitter
        return old or (connection.pending == 0 and now_s - connection.used_s > self._settings.idle_timeout_s)

    _age_jitter = random.uniform(0.9, 1.0)  # noqa: S311
    """So that many processes that started together do not reconnect together."""

    def _open_spare(self) -> None:
        if 1 + len(self.spares) + len(self._opening) < self._settings.pool_size and not self._stopped:
            self._open(self._add_spare())

    async def _add_spare(self) -> None:
        spare = await self._started(lasting=False)
        self.spares.append(spare)  # the list may be another one than before the wait

    async def _replace_lead(self) -> None:
        old = self.lead
        fresh = await self._started(lasting=True)
        if old is not self.lead or old.state != "up":
            await fresh.stop()
            return
        self._counters.stale += 1
        self._leaving.append(old)
        self.lead = fresh
        fresh.succeed(old)

    async def _started(self, *, lasting: bool) -> RedisConnection:
        made = self._make(lasting=lasting)
        try:
            await made.start()
        except (StoreUnavailable, asyncio.CancelledError):
            await made.stop()
            raise
        return made

    def _open(self, work: Any) -> None:
        async def attempt() -> None:
            try:
                await work
            except StoreUnavailable:
                return  # the lead tells what is wrong; the next maintenance tries again

        task = asyncio.ensure_future(attempt())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _make(self, *, lasting: bool) -> RedisConnection:
        return RedisConnection(
            self._dial,
            shown_url=self.name,
            dial_timeout_s=self._settings.dial_timeout_s,
            reply_timeout_s=self._settings.read_timeout_s,
            write_timeout_s=self._settings.write_timeout_s,
            busy_poll_s=self._settings.busy_poll_us / 1e6,
            on_connect=self._on_connect,
            on_refusal=self._on_refusal,
            counters=self._counters,
            lasting=lasting,
        )
