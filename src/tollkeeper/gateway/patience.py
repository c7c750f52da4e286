"""How long one request may take: the total deadline over all its attempts, and the drain's after its client hung up.

It wakes whoever pauses when the client leaves. It knows nothing of attempts or charges.
"""

import asyncio
from functools import partial
from types import TracebackType

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.instruments import Instruments


class Patience:
    """An async context; raises TimeoutError when the time is over. Clients are watched, and deadlines set, only once
    a request is slow."""

    __slots__ = ("_client", "_drain_s", "_drained", "_ends_at", "_instruments", "_loop", "_pause", "_timeout")

    def __init__(self, client: Client, instruments: Instruments, *, total_s: float, drain_s: float) -> None:
        self._client, self._instruments, self._drain_s = client, instruments, drain_s
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + total_s
        self._timeout = asyncio.timeout(None)
        self._drained = False
        self._pause: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "Patience":
        await self._timeout.__aenter__()
        self._client.watch(self._hung_up, partial(self._timeout.reschedule, self._ends_at))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.unwatch()
        if self._drained:
            self._instruments.draining -= 1
            self._instruments.drains.inc()
        await self._timeout.__aexit__(kind, error, traceback)

    @property
    def left_s(self) -> float:
        """Until the total deadline."""
        return self._ends_at - self._loop.time()

    async def pause(self, pause_s: float) -> None:
        """Wait, but not on for a client that hangs up."""
        if self._client.gone:
            return
        self._pause = self._loop.create_future()
        timer = self._loop.call_later(pause_s, self._wake)
        try:
            await self._pause
        finally:
            timer.cancel()
            self._pause = None

    def _wake(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    def _hung_up(self) -> None:
        if self._timeout.expired():
            return
        self._drained = True
        self._instruments.draining += 1
        self._timeout.reschedule(self._loop.time() + self._drain_s)
        self._wake()
