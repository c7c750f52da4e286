"""Keeps the event loop awake while an answer of Redis is about to come.

A process that sleeps until something arrives is woken late: on a virtual machine by 10 to 40 µs, and with cold caches
after that. So after a write that somebody waits for, the loop is kept turning, for a limited time, instead of letting
it sleep; whatever else arrives meanwhile is done as ever. HAProxy's `busy-polling` and Linux' `net.core.busy_poll`
do the same. Where answers take longer than that, it stops itself: each time in vain doubles the number of writes that
go by without it.

Knows nothing of Redis or of commands.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

SKIPPED_MAX: Final = 1024
"""Writes that go by after many times in vain, until it is tried again: one try a second at a thousand requests."""


class Counts(Protocol):
    """Who counts them."""

    busy_polls: int
    in_vain: int


class BusyPoll:
    """Of one connection. `limit_s`: 0 never begins. `answered`: whether to stop. `counts` is told of each."""

    __slots__ = ("_answered", "_clock", "_counts", "_ends_s", "_left", "_limit_s", "_loop", "_running", "_skip")

    def __init__(
        self,
        limit_s: float,
        answered: Callable[[], bool],
        counts: Counts,
        *,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._limit_s, self._answered, self._counts, self._clock = limit_s, answered, counts, clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = False
        self._ends_s = 0.0
        self._skip = self._left = 0  # writes to let go by after the next time in vain, and from now on

    def __repr__(self) -> str:
        return f"<BusyPoll limit_s={self._limit_s:g} running={self._running} left={self._left}>"

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something was written whose answer is waited for."""
        if self._left:
            self._left -= 1
        elif self._limit_s and not self._running:
            self._running = True
            self._counts.busy_polls += 1
            self._loop = loop
            self._ends_s = self._clock() + self._limit_s
            loop.call_soon(self._turn)

    def _turn(self) -> None:
        assert self._loop is not None
        if self._answered():
            self._running = False
            self._skip = 0
        elif self._clock() < self._ends_s:
            self._loop.call_soon(self._turn)
        else:
            self._running = False
            self._counts.in_vain += 1
            self._skip = self._left = min(SKIPPED_MAX, 2 * self._skip or 1)
