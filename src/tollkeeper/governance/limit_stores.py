"""Where limiters keep their state: Redis, or this process's memory.

A limiter asks with the name of a decision (`allow` or `bucket`), a key and numbers; a store answers with `Answer`.
On Redis a decision is a script of that name, in memory its twin in the domain. Nothing here knows what limits are
for, or checks what callers hand in: that is limiters.py.
"""

import asyncio
import random
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from itertools import count
from time import monotonic
from typing import Any, Final, Literal, Protocol, runtime_checkable

from tollkeeper.domain.bucket import Bucket
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.limits import US_PER_S, Answer, AskStatus, ask_window
from tollkeeper.domain.windows import RunLog
from tollkeeper.governance.redis_connection import ReplyError

Decision = Literal["allow", "bucket"]

ATTEMPTS_MAX: Final = 8
"""Sends of one ask; the deadline ends most series earlier."""
BACKOFF_MIN_S: Final = 0.005
BACKOFF_MAX_S: Final = 0.5
SWEEP_EVERY: Final = 10_000
"""Asks of a memory store between two sweeps of what has no more effect."""


class LimitStore(Protocol):
    """One atomic step a call."""

    async def ask(
        self,
        decision: Decision,
        key: str,
        numbers: tuple[int, ...],
        *,
        request: str | None = None,
        remember_ms: int = 0,
    ) -> Answer:
        """Decide. `numbers` of *allow*: window, tick (µs), limit, weight; of *bucket*: rate a minute, burst, cost.

        `request` makes the ask idempotent for `remember_ms`: once allowed, it is allowed again without being counted.
        None: it is never repeated once it may have run; "" : the store makes an id if its connection needs one.
        Raises StoreUnavailable.
        """
        ...

    async def look(self, decision: Decision, key: str, numbers: tuple[int, ...]) -> Answer:
        """The state; `numbers` as for `ask`, without the last. Raises StoreUnavailable."""
        ...

    async def forget(self, decision: Decision, key: str) -> None:
        """As if the key had never been asked. Raises StoreUnavailable."""
        ...


@runtime_checkable
class ScriptRunner(Protocol):
    """What is needed of a client: RedisClient has it."""

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        idempotent: bool = False,
        within_s: float | None = None,
    ) -> Any:
        """Run one of `scripts/` by name. What certainly did not run may be repeated, what may have run only if it is
        `idempotent`; for `within_s` seconds (None: the client's own patience). Raises StoreUnavailable, whose `sent`
        tells whether it may have run."""
        ...


class RedisLimits:
    """A `LimitStore` on Redis. Redis' clock decides; the clocks of clients do not matter.

    No ask takes effect more than `deadline_s` after it was made, even if Redis was frozen in between: it carries the
    deadline in Redis' time, learned from replies. The first ask is preceded by one for the state only, to learn it.
    `time_us` is for tests: a clock handed to the scripts instead of the server's.
    """

    def __init__(
        self, client: ScriptRunner, *, deadline_s: float = 3.0, time_us: Callable[[], int] | None = None
    ) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._time_us = time_us
        self._offset_us: int | None = None
        self._nonce = secrets.token_urlsafe(9)
        self._numbers = count()

    async def ask(
        self,
        decision: Decision,
        key: str,
        numbers: tuple[int, ...],
        *,
        request: str | None = None,
        remember_ms: int = 0,
    ) -> Answer:
        until_s = monotonic() + self._deadline_s
        again = int(bool(request))
        if request == "":
            # `#` and `.`: never equal to an id of a caller, see key_part.
            request, remember_ms = f"#{self._nonce}.{next(self._numbers):x}", int(2000 * self._deadline_s)
        keys = (key,) if request is None else (key, f"{key}:{request}")
        lost = None
        for attempt in range(ATTEMPTS_MAX):
            try:
                if self._offset_us is None:
                    await self._learn(decision, key, numbers)
                packed = self._packed(self._server_us(until_s), *numbers, remember_ms, again)
                reply = await self._client.run(decision, keys, packed, within_s=until_s - monotonic())
                answer = self._answer(reply)
            except StoreUnavailable as error:
                if isinstance(error, ReplyError) or not error.sent or request is None:
                    raise lost or error from error
                lost, again = error, 1
            else:
                if answer.status is not AskStatus.LATE:
                    return answer
                if attempt == 0 and monotonic() < until_s:
                    continue  # Redis' clock has jumped, and is known now
            delay_s = random.uniform(0.5, 1.0) * min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**attempt)  # noqa: S311 - jitter
            if monotonic() + delay_s >= until_s:
                break
            await asyncio.sleep(delay_s)
        raise lost or StoreUnavailable(f"Redis did not decide within {self._deadline_s:g} s")

    async def look(self, decision: Decision, key: str, numbers: tuple[int, ...]) -> Answer:
        packed = self._packed(0, *numbers, 0, 0, 0)
        return self._answer(await self._client.run(decision, (key,), packed, idempotent=True))

    async def forget(self, decision: Decision, key: str) -> None:
        await self._client.run("reset", (key,), (1 if decision == "allow" else 0,), idempotent=True)

    def _packed(self, *numbers: int) -> tuple[bytes]:
        """The scripts' one argument."""
        given = 0 if self._time_us is None else self._time_us()
        return (_PACK[len(numbers)](given, *numbers),)

    def _answer(self, reply: Sequence[int]) -> Answer:
        status, now_us, amount, wait_us, reset_us = reply
        self._offset_us = now_us - int(monotonic() * US_PER_S)
        return Answer(_STATUS[status], now_us, amount, None if wait_us < 0 else wait_us, reset_us)

    async def _learn(self, decision: Decision, key: str, numbers: tuple[int, ...]) -> None:
        """Learn Redis' time from any reply."""
        await self.look(decision, key, numbers[:-1])

    def _server_us(self, here_s: float) -> int:
        """A time of `monotonic` on Redis' clock. It is early by the time a reply takes: the safe side."""
        assert self._offset_us is not None
        return int(here_s * US_PER_S) + self._offset_us


_PACK: Final = {count: struct.Struct(f"<{count + 1}d").pack for count in (6, 7)}
_STATUS: Final = {status.value: status for status in AskStatus}


def wall_clock_us() -> int:
    """Unix µs of this machine."""
    return time.time_ns() // 1000


class MemoryLimits:
    """A `LimitStore` in this process: for one process, for tests, and for what carries on while Redis is away.

    Each ask is done when it returns, without IO. Its memory is bounded by the keys in use: a window's log is at most
    6,000 runs and is dropped two windows after its last request, a bucket when it is full.
    """

    def __init__(self, now_us: Callable[[], int] = wall_clock_us) -> None:
        self.now_us = now_us
        self._logs: dict[str, RunLog] = {}
        self._buckets: dict[str, Bucket] = {}
        self._requests: dict[str, int] = {}  # key of a request id → until when it is remembered (µs)
        self._asks = 0

    def __repr__(self) -> str:
        return f"<MemoryLimits windows={len(self._logs)} buckets={len(self._buckets)}>"

    async def ask(
        self,
        decision: Decision,
        key: str,
        numbers: tuple[int, ...],
        *,
        request: str | None = None,
        remember_ms: int = 0,
    ) -> Answer:
        now_us = self.now_us()
        self._asks += 1
        if self._asks % SWEEP_EVERY == 0:
            self.sweep(now_us)
        if not request:
            return self._decide(decision, key, now_us, numbers)
        request_key = f"{key}:{request}"
        if self._requests.get(request_key, 0) > now_us:
            return self._decide(decision, key, now_us, (*numbers[:-1], 0))
        answer = self._decide(decision, key, now_us, numbers)
        if answer.status is AskStatus.ALLOWED and numbers[-1]:
            self._requests[request_key] = now_us + remember_ms * 1000
        return answer

    def _decide(self, decision: Decision, key: str, now_us: int, numbers: tuple[int, ...]) -> Answer:
        if decision == "bucket":
            bucket = self._buckets.get(key) or Bucket()
            answer = bucket.ask(now_us, *numbers)
            if bucket.full_us > now_us:
                self._buckets[key] = bucket
            return answer
        window_us, tick_us, limit, weight = numbers
        log = self._logs.get(key) or RunLog(window_us, tick_us, now_us)
        answer = ask_window(log, now_us, limit, weight)
        if log.runs:
            self._logs[key] = log
        return answer

    async def look(self, decision: Decision, key: str, numbers: tuple[int, ...]) -> Answer:
        return self._decide(decision, key, self.now_us(), (*numbers, 0))

    async def forget(self, decision: Decision, key: str) -> None:
        kept: dict[str, Any] = self._logs if decision == "allow" else self._buckets
        kept.pop(key, None)

    def sweep(self, now_us: int) -> None:
        """Drop what has no more effect: the counterpart of key expiry."""
        for key in [k for k, log in self._logs.items() if log.last_us + 2 * log.window_us <= now_us]:
            del self._logs[key]
        for key in [k for k, bucket in self._buckets.items() if bucket.full_us <= now_us]:
            del self._buckets[key]
        for key in [k for k, until_us in self._requests.items() if until_us <= now_us]:
            del self._requests[key]
