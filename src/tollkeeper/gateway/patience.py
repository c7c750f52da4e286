"""How long one request may take: the total deadline over all its attempts, and the drain's after its client hung up.

It wakes whoever pauses when the client leaves. It knows nothing of attempts or charges.
"""

import asyncio
import time
from types import TracebackType

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.instruments import Instruments


class Patience:
    """A context within the request's task; raises TimeoutError when the time is over, as `asyncio.timeout` does.

    Clients are watched, and deadlines set, only once a request is slow.
    """

    __slots__ = (
        "_cancelling",
        "_client",
        "_drain_s",
        "_drained",
        "_ends_at",
        "_expired",
        "_instruments",
        "_pause",
        "_timer",
    )

    def __init__(self, client: Client, instruments: Instruments, *, total_s: float, drain_s: float) -> None:
        self._client, self._instruments, self._drain_s = client, instruments, drain_s
        self._ends_at = time.perf_counter() + total_s
        self._timer: asyncio.TimerHandle | None = None
        self._drained = self._expired = False
        self._pause: asyncio.Future[None] | None = None

    def __enter__(self) -> "Patience":
        self._cancelling = self._client.task.cancelling()
        self._client.watch(self._hung_up, self._became_slow)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.unwatch()
        if self._timer is not None:
            self._timer.cancel()
        if self._drained:
            self._instruments.draining -= 1
            self._instruments.drains.inc()
        # Who else wanted the task cancelled in the meantime is heard.
        if self._expired and self._client.task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _became_slow(self) -> None:
        self._expire_in(self.left_s)

    def _expire_in(self, left_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._client.task.cancel()

    @property
    def left_s(self) -> float:
        """Until the total deadline."""
        return self._ends_at - time.perf_counter()

    async def pause(self, pause_s: float) -> None:
        """Wait, but not on for a client that hangs up."""
        if self._client.gone:
            return
        loop = asyncio.get_running_loop()
        self._pause = loop.create_future()
        timer = loop.call_later(pause_s, self._wake)
        try:
            await self._pause
        finally:
            timer.cancel()
            self._pause = None

    def _wake(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    def _hung_up(self) -> None:
        if self._expired:
            return
        self._drained = True
        self._instruments.draining += 1
        self._expire_in(self._drain_s)
        self._wake()
