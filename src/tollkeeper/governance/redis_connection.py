"""One full-duplex connection to Redis: commands of one event-loop tick share a write, replies resolve in order.

`redis-py` connects, authenticates and does TLS; after that its streams are used directly, one writer and one reader,
so that nothing waits for the reply of the command before it. Order of `send` is order of execution: admissions and
settlements rely on it. This file knows nothing of scripts or money, and never repeats a command: whoever sent it
knows whether that is safe.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from tollkeeper.domain.errors import ConfigurationError, StoreUnavailable
from tollkeeper.observability.logging import logger
from tollkeeper.settings import mask_url

PENDING_MAX: Final = 20_000
"""Commands without a reply; above it `send` refuses, so that a slow Redis cannot fill our memory."""
READ_BYTES: Final = 2**18
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0


Send = Callable[..., "asyncio.Future[Any]"]


class ReplyError(Exception):
    """Redis answered with an error: the command ran not at all, or failed. `code` is its first word."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]


class RedisConnection:
    """States: *connecting* (first try since a loss), *up*, *away* (a try has failed), *stopped*."""

    def __init__(
        self,
        url: str,
        *,
        dial_timeout_s: float,
        reply_timeout_s: float,
        on_connect: Callable[[Send], Awaitable[None]] | None = None,
    ) -> None:
        self.state = "stopped"
        self.reconnects = 0
        self.shown_url = mask_url(url)
        self._dial_timeout_s = dial_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._on_connect = on_connect
        self._why = "not started"
        self._pool = _pool(url, dial_timeout_s)
        self._connection: AbstractConnection | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._ticks: deque[tuple[float, int]] = deque()  # (when written, commands sent by then)
        self._outgoing: list[bytes] = []
        self._sent = self._answered = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._log = logger("governance")

    def __repr__(self) -> str:
        return f"<RedisConnection {self.shown_url} {self.state} pending={len(self._pending)}>"

    async def start(self) -> None:
        """Connect. On failure raises StoreUnavailable and goes on trying in the background."""
        self._loop = asyncio.get_running_loop()
        self._set_state("connecting")
        try:
            await self._connect()
        except StoreUnavailable as error:
            self._set_state("away", str(error))
            self._spawn(self._reconnect())
            raise

    async def stop(self) -> None:
        """Close; commands without a reply fail."""
        self._set_state("stopped", "stopped")
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._drop("stopped")

    def send(self, *parts: Any) -> "asyncio.Future[Any]":
        """Queue one command; the future yields its reply, or ReplyError, or StoreUnavailable if it was lost.

        Raises StoreUnavailable at once, with nothing sent, when there is no connection.
        """
        if self.state != "up":
            raise StoreUnavailable(f"Redis at {self.shown_url} is away: {self._why}", sent=False)
        return self._enqueue(*parts)

    def _enqueue(self, *parts: Any) -> "asyncio.Future[Any]":
        if len(self._pending) >= PENDING_MAX:
            raise StoreUnavailable(f"Redis at {self.shown_url} has {PENDING_MAX} commands unanswered", sent=False)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(parts))
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append(future)
        return future

    async def ready(self, timeout_s: float) -> bool:
        """Wait while a first reconnection is under way. True if the connection is up."""
        deadline = self._loop.time() + timeout_s
        while self.state == "connecting" and self._loop.time() < deadline:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - self._loop.time())
            except TimeoutError:
                break
        return self.state == "up"

    # Writing and reading

    def _flush(self) -> None:
        if self._writer is None or not self._outgoing:
            return
        self._sent += len(self._outgoing)
        self._ticks.append((self._loop.time(), self._sent))
        self._writer.write(b"".join(self._outgoing))
        self._outgoing.clear()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        parser = hiredis.Reader(notEnoughData=_NOTHING)
        why = "Redis closed the connection"
        try:
            while data := await reader.read(READ_BYTES):
                parser.feed(data)
                while (reply := parser.gets()) is not _NOTHING:
                    self._answered += 1
                    future = self._pending.popleft()
                    if future.done():
                        continue  # whoever waited was cancelled; the command ran all the same
                    if isinstance(reply, hiredis.ReplyError):
                        future.set_exception(ReplyError(str(reply)))
                    else:
                        future.set_result(reply)
        except (OSError, hiredis.ProtocolError) as error:
            why = str(error) or type(error).__name__
        await self._lost(why)

    def _check_deadline(self) -> None:
        """A connection whose oldest command has waited too long is given up: a frozen Redis counts as away."""
        while self._ticks and self._ticks[0][1] <= self._answered:
            self._ticks.popleft()
        self._watch = self._loop.call_later(self._reply_timeout_s / 5, self._check_deadline)
        if self._ticks and self._loop.time() - self._ticks[0][0] > self._reply_timeout_s:
            self._spawn(self._lost(f"no answer within {self._reply_timeout_s:g} s"))

    # Connecting

    async def _connect(self) -> None:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._dial_timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            await _close(connection)
            reason = str(error) or f"no answer within {self._dial_timeout_s:g} s"
            raise StoreUnavailable(f"cannot connect to Redis at {self.shown_url}: {reason}", sent=False) from error
        self._connection = connection
        reader, self._writer = connection._reader, connection._writer  # its streams; nothing else is reading
        assert reader is not None
        self._sent = self._answered = 0
        self._ticks.clear()
        self._spawn(self._read(reader))
        self._check_deadline()
        if self._on_connect is not None:
            await self._on_connect(self._enqueue)
        self._set_state("up")

    async def _lost(self, why: str) -> None:
        was_up = self.state == "up"
        if was_up:
            self._set_state("connecting", why)
            self._log.warning("redis_lost", url=self.shown_url, why=why)
        await self._drop(why)
        if was_up:
            self._spawn(self._reconnect())

    async def _drop(self, why: str) -> None:
        connection, self._connection, self._writer = self._connection, None, None
        if self._watch is not None:
            self._watch.cancel()
        self._outgoing.clear()
        pending, self._pending = self._pending, deque()
        for future in pending:
            if not future.done():
                future.set_exception(StoreUnavailable(f"lost Redis at {self.shown_url}: {why}"))
        if connection is not None:
            await _close(connection)

    async def _reconnect(self) -> None:
        delay_s = BACKOFF_MIN_S
        while self.state in ("connecting", "away"):
            try:
                await self._connect()
            except StoreUnavailable as error:
                if self.state == "connecting":
                    self._log.warning("redis_away", url=self.shown_url, why=str(error))
                self._set_state("away", str(error))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
            else:
                self.reconnects += 1
                self._log.info("redis_back", url=self.shown_url)

    def _set_state(self, state: str, why: str = "") -> None:
        self.state, self._why = state, why
        self._changed.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_NOTHING: Final = object()


def _pool(url: str, dial_timeout_s: float) -> ConnectionPool:
    try:
        return ConnectionPool.from_url(
            url,
            protocol=2,
            socket_connect_timeout=dial_timeout_s,
            socket_timeout=dial_timeout_s,
            retry=Retry(NoBackoff(), 0),
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
    except ValueError as error:
        raise ConfigurationError(f"store.redis_url (REDIS_URL): {error}") from None


async def _close(connection: AbstractConnection) -> None:
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError):
        return
