"""Blocking calls away from the event loop, in daemon threads, with a deadline. Knows nothing of what is called.

Object stores are called through obstore's blocking functions and not through its coroutines: those finish on a
thread of obstore's own, which still takes the interpreter's lock after the result was seen, and a process that ends
at that moment is aborted (measured: 8 of 50 short processes ended with SIGABRT, 0 of 50 with blocking calls).

The threads are daemons because the usual pool is joined at exit: one call that hangs in a store would hold the whole
process back after its stop has given up on it.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

CALLS_MAX: Final = 8
"""Calls in flight, given-up ones included, since a thread cannot be cancelled. Others wait; they fail at once if all
of these are given up."""
WAIT_S: Final = 0.005
"""How often one that waits looks for a place: a call takes about as long."""


class BlockingCalls:
    """Runs blocking functions for one owner."""

    def __init__(self, calls_max: int = CALLS_MAX) -> None:
        self.calls_max = calls_max
        self._slots = threading.BoundedSemaphore(calls_max)
        self._lock = threading.Lock()
        self._given_up = 0  # of those in flight

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """The result of `work`, or what it raises. Raises TimeoutError if that takes longer, with the wait for others
        before it, or if too many calls hang.

        `work` runs on when this is cancelled or times out; its outcome is then forgotten.
        """
        async with asyncio.timeout(timeout_s):
            while not self._slots.acquire(blocking=False):
                if self._given_up >= self.calls_max:
                    raise TimeoutError(f"{self.calls_max} earlier calls still hang")
                await asyncio.sleep(WAIT_S)
            return await self._started(work)

    async def _started(self, work: Callable[[], T]) -> T:
        """In a thread, which gives the place back at its end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        running, given_up = True, False  # both under the lock

        def finish(set_outcome: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody is waiting
                loop.call_soon_threadsafe(lambda: None if future.done() else set_outcome())

        def body() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - carried to whoever awaits
                caught = error
                finish(lambda: future.set_exception(caught))
            else:
                finish(lambda: future.set_result(result))
            finally:
                nonlocal running
                with self._lock:
                    running = False
                    self._given_up -= given_up
                self._slots.release()

        try:
            threading.Thread(target=body, daemon=True, name="log-store").start()
        except RuntimeError:  # no more threads
            self._slots.release()
            raise
        try:
            return await future
        except asyncio.CancelledError:
            with self._lock:
                given_up = running
                self._given_up += given_up
            raise
