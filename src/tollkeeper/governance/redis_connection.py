"""One full-duplex connection to Redis: commands of one event-loop tick share a write, replies resolve in order.

`redis-py` connects, authenticates and does TLS; after that its transport is used directly, and tells us what arrives
instead of redis-py's stream: nothing waits for the reply of the command before it, and no task is woken to read.
Order of `send` is order of execution: admissions and settlements rely on it. This file knows nothing of scripts,
clusters or money, and never repeats a command by itself: whoever sent it knows whether that is safe.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from socket import gaierror
from typing import Any, Final, Protocol

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.governance.redis_busy_poll import BusyPoll
from tollkeeper.observability.logging import logger

PENDING_MAX: Final = 20_000
"""Commands without a reply; above it `send` refuses, so that a slow Redis cannot fill our memory."""
BUSY_PENDING_MAX: Final = 4
"""Commands on the way up to which the loop is kept awake for an answer: with more it has enough to do."""
CANCEL_AGAIN_S: Final = 0.05
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 0.5
"""Short, because instances that notice late that Redis is back go on without it: docs/outages.md."""
AWAY_TRIES: Final = 2
"""Failed tries to reconnect after which a server counts as away. One that froze counts so at once."""
CLOSED_TRIES: Final = 6
"""The same for tries that it accepted and then closed, which takes about a second: it is there, and connections are
killed, or it is about to be."""
_UNREACHED: Final = (ConnectionRefusedError, FileNotFoundError, TimeoutError, RedisTimeoutError, gaierror)
BATCHES: Final = 16
"""Buckets of the histogram of batch sizes: 1, 2–3, 4–7, … by powers of two."""
NOT_RUN: Final = frozenset(
    {"NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "READONLY"}
)
"""Errors that say that a command did not run."""
_NO_PASSWORD: Final = frozenset({"NOAUTH", "WRONGPASS", "NOPERM"})

Send = Callable[..., "asyncio.Future[Any]"]
Dial = Callable[[], Awaitable[AbstractConnection]]
"""Where to connect to, asked anew for each try: gives redis-py's connection, not yet connected."""


class ReplyError(StoreUnavailable):
    """Redis answered with an error. `code` is its first word; `sent` is False if the command did not run."""

    def __init__(self, message: str) -> None:
        self.code = message.partition(" ")[0]
        hint = "; is REDIS_PASSWORD right?" if self.code in _NO_PASSWORD else ""
        super().__init__(message + hint, sent=self.code not in NOT_RUN)


class Waiter(Protocol):
    """Who waits for a reply: a future, or what only wants to be told, at once and inside the reading of replies. So
    it must be quick, send nothing and never raise."""

    def done(self) -> bool:
        """Whether nobody waits any more; the reply is then left out."""
        ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: Any, /) -> None: ...


Command = tuple[Waiter, bytes, int]
"""A command on its way: who waits, the bytes as they were sent, and how often it was sent on to somewhere else.
A plain tuple, because one is made for every command."""


class Counters:
    """What connections count, shared by those of a client."""

    __slots__ = ("batches", "busy_polls", "commands", "in_vain", "misses", "reconnects", "stale", "timeouts")

    def __init__(self) -> None:
        self.batches = [0] * BATCHES
        self.busy_polls = self.in_vain = 0
        self.commands = self.misses = self.reconnects = self.stale = self.timeouts = 0


class RedisConnection:
    """States: *connecting* (first tries since a loss), *up*, *away* (they failed, or it froze), *stopped*.

    `on_refusal` sees each error reply before its caller and may take the command over (True). With `lasting` False a
    lost connection is *stopped* and does not come back.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        shown_url: str,
        dial_timeout_s: float,
        reply_timeout_s: float,
        write_timeout_s: float = 3600.0,
        busy_poll_s: float = 0.0,
        on_connect: Callable[[Send], Awaitable[str | None]] | None = None,
        on_refusal: Callable[["RedisConnection", ReplyError, Command], bool] | None = None,
        counters: Counters | None = None,
        lasting: bool = True,
    ) -> None:
        self.state = "stopped"
        self.reconnects = 0
        self.shown_url = shown_url
        self.counters = counters or Counters()
        self.born_s = self.used_s = 0.0
        self.life = ""
        """What `on_connect` learned of the server: names its life."""
        self._dial = dial
        self._dial_timeout_s = dial_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._write_timeout_s = write_timeout_s
        self._on_connect = on_connect
        self._on_refusal = on_refusal
        self._lasting = lasting
        self._why = "not started"
        self._connection: AbstractConnection | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pending: deque[Command] = deque()
        self._ticks: deque[tuple[float, int]] = deque()  # (when written less `_stalled_s`, commands sent by then)
        self._outgoing: list[bytes] = []
        self._front: list[Command] = []  # goes ahead of `_outgoing`
        self._holds = 0  # reasons not to write
        self._sent = self._answered = 0
        self._awaited = 0  # the last command for whose reply the loop may be kept awake
        self._busy_poll = BusyPoll(busy_poll_s, lambda: self._answered >= self._awaited, self.counters)
        self._stuck_s: float | None = None  # since when the system takes no more bytes
        self._checked_s = 0.0  # when deadlines were last looked at
        self._stalled_s = 0.0  # how long the event loop has stood still; times of deadlines are less this
        self._changed = asyncio.Event()
        self._marks: list[tuple[int, Callable[[], None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._log = logger("governance")

    def __repr__(self) -> str:
        return f"<RedisConnection {self.shown_url} {self.state} pending={len(self._pending)}>"

    @property
    def pending(self) -> int:
        """Commands without a reply."""
        return len(self._pending)

    @property
    def why(self) -> str:
        """Why it is not up."""
        return self._why

    @property
    def peer(self) -> tuple[str, int] | None:
        """Host and port it is connected to; None without a connection, or on a unix socket."""
        host = getattr(self._connection, "host", None)
        return None if host is None else (host, getattr(self._connection, "port", 0))

    async def start(self) -> None:
        """Connect. On failure raises StoreUnavailable and, if lasting, goes on trying in the background."""
        self._loop = asyncio.get_running_loop()
        self._set_state("connecting", "still connecting")
        try:
            await self._connect()
        except StoreUnavailable as error:
            self._set_state("away" if self._lasting else "stopped", str(error))
            if self._lasting:
                self._spawn(self._reconnect())
            raise

    async def stop(self) -> None:
        """Close; commands without a reply fail."""
        self._set_state("stopped", "stopped")
        await end(self._tasks)
        self._set_state("stopped", "stopped")  # one that was just connecting may have finished
        self._drop("stopped")

    def send(self, *parts: Any) -> "asyncio.Future[Any]":
        """Queue one command; the future yields its reply, or ReplyError, or StoreUnavailable if it was lost.

        Raises StoreUnavailable at once, with nothing sent, when there is no connection.
        """
        return self.write(parts)

    def write(self, parts: tuple[Any, ...]) -> "asyncio.Future[Any]":
        """`send`, for parts that are a tuple already."""
        return self.write_packed(hiredis.pack_command(parts))

    def write_packed(self, packed: bytes) -> "asyncio.Future[Any]":
        """`send`, for a command that is packed already."""
        if self.state != "up":
            raise self._away()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._put(future, packed)
        self._awaited = self._sent + len(self._outgoing)
        return future

    def post(self, waiter: Waiter, packed: bytes) -> None:
        """`write_packed`, for a waiter of the caller's, who is in no hurry."""
        if self.state != "up":
            raise self._away()
        self._put(waiter, packed)

    def _away(self) -> StoreUnavailable:
        return StoreUnavailable(f"Redis at {self.shown_url} is away: {self._why}", sent=False)

    def forward(self, command: Command, refused_by: "RedisConnection", *before: Any) -> None:
        """Send on a command that a connection (this one, perhaps) refused, right behind the command `before`.

        It goes ahead of all that is not written yet, and nothing is written until `refused_by` has answered what was
        written there by now, since that may be refused too: order survives. Raises StoreUnavailable at once, with
        nothing sent, when there is no connection.
        """
        if self.state != "up":
            raise self._away()
        if before:
            ignored = self._loop.create_future()
            ignored.add_done_callback(_ignore)
            self._front.append((ignored, hiredis.pack_command(before), 0))
        future, packed, hops = command
        self._front.append((future, packed, hops + 1))
        self._holds += 1
        refused_by._answer_written(self)

    def _answer_written(self, held: "RedisConnection") -> None:
        if held is not self:
            self._flush()  # what is queued here may belong to the same key
        self.after(self._sent, held._release)

    def after(self, count: int, then: Callable[[], None]) -> None:
        """Call `then` when that many commands have been answered, or the connection is lost."""
        self._marks.append((count, then))

    def _enqueue(self, *parts: Any) -> "asyncio.Future[Any]":
        """`send` while connecting. A connection that is lost by then would never write it, nor fail it."""
        if self._writer is None:
            raise StoreUnavailable(f"lost Redis at {self.shown_url}: it closed the connection", sent=False)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._put(future, hiredis.pack_command(parts))
        return future

    def _put(self, waiter: Waiter, packed: bytes) -> None:
        pending = self._pending
        if len(pending) >= PENDING_MAX:
            raise StoreUnavailable(f"Redis at {self.shown_url} has {PENDING_MAX} commands unanswered", sent=False)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(packed)
        pending.append((waiter, packed, 0))

    async def ready(self, timeout_s: float) -> bool:
        """Wait while the first tries to reconnect are under way. True if the connection is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.state == "connecting":
                    self._changed.clear()
                    await self._changed.wait()
        return self.state == "up"

    # Changing over to another connection, in order

    def succeed(self, old: "RedisConnection") -> None:
        """Take over from `old`: what is sent from now on is written once nothing is pending there. Then it closes."""
        self._holds += 1
        old.retire(self._release)

    def retire(self, then: Callable[[], None] | None = None) -> None:
        """Close once nothing is pending. Nothing may be sent any more."""

        def close() -> None:
            self._set_state("stopped", "retired")
            self._drop("retired")
            if then is not None:
                then()

        self._when_drained(close)

    def abandon(self, why: str) -> None:
        """Reconnect (perhaps elsewhere) once what is pending has been answered; nothing is sent until then."""
        connection = self._connection
        if self.state == "up" and connection is not None:
            self._set_state("connecting", why)
            self._when_drained(lambda: self._lost(connection, why))

    def _when_drained(self, then: Callable[[], None]) -> None:
        unanswered = len(self._pending) + len(self._front)
        if unanswered:
            self.after(self._answered + unanswered, lambda: self._when_drained(then))
        else:
            then()

    def _release(self) -> None:
        self._holds -= 1
        self._flush()

    # Writing and reading

    def _flush(self) -> None:
        if self._writer is None or self._holds or not (self._outgoing or self._front):
            return
        if self._front:
            self._put_front()
        count = len(self._outgoing)
        self._sent += count
        self.used_s = self._loop.time()
        self._forget_answered()
        self._ticks.append((self.used_s - self._stalled_s, self._sent))
        try:
            self._writer.write(b"".join(self._outgoing))
        except RuntimeError as error:  # uvloop's, of a transport that is closed, of which we have yet to hear
            assert self._connection is not None, "there is a writer"
            self._lost(self._connection, str(error))
            return
        self._outgoing.clear()
        if self._awaited > self._answered and len(self._pending) <= BUSY_PENDING_MAX:
            self._busy_poll.begin(self._loop)
        self.counters.commands += count
        self.counters.batches[min(count.bit_length(), BATCHES) - 1] += 1

    def _put_front(self) -> None:
        """Between what is written and what is not."""
        unwritten = len(self._outgoing)
        self._pending.rotate(unwritten)
        self._pending.extend(self._front)
        self._pending.rotate(-unwritten)
        self._outgoing[:0] = [packed for _, packed, _ in self._front]
        self._front.clear()

    def _received(self, parser: hiredis.Reader, data: bytes) -> None:
        """Resolve what has come, in order. Raises hiredis.ProtocolError."""
        parser.feed(data)
        pending = self._pending
        while (reply := parser.gets()) is not _NOTHING:
            self._answered += 1
            command = pending.popleft()
            waiter = command[0]
            if waiter.done():
                continue  # whoever waited was cancelled; the command ran all the same
            if isinstance(reply, hiredis.ReplyError):
                self._refused(ReplyError(str(reply)), command)
            else:
                waiter.set_result(reply)
        if self._marks:
            self._reach_marks(self._answered)

    def _refused(self, error: ReplyError, command: Command) -> None:
        if self._on_refusal is None or not self._on_refusal(self, error, command):
            command[0].set_exception(error)

    def _reach_marks(self, answered: float) -> None:
        reached = [then for count, then in self._marks if count <= answered]
        self._marks = [mark for mark in self._marks if mark[0] > answered]
        for then in reached:
            then()

    def _forget_answered(self) -> None:
        """At every write, so that there is never a second's worth of ticks to go through at once."""
        ticks = self._ticks
        while ticks and ticks[0][1] <= self._answered:
            ticks.popleft()

    def _check_deadline(self) -> None:
        """A connection whose oldest command has waited too long is given up: a frozen Redis counts as away.

        Time in which this event loop itself stood still does not count: the answer may have been here all the while,
        and timers run before what has arrived is read.
        """
        self._forget_answered()
        interval_s = min(self._reply_timeout_s, self._write_timeout_s) / 5
        late_s = self._loop.time() - self._checked_s - interval_s
        if late_s > interval_s:
            self._stalled_s += late_s
        self._checked_s = self._loop.time()
        self._watch = self._loop.call_later(interval_s, self._check_deadline)
        now_s, why = self._checked_s - self._stalled_s, ""
        if self._writer is not None and self._writer.transport.get_write_buffer_size():
            self._stuck_s = self._stuck_s or now_s
            if now_s - self._stuck_s > self._write_timeout_s:
                why = f"nothing could be written for {self._write_timeout_s:g} s"
        else:
            self._stuck_s = None
        if self._ticks and now_s - self._ticks[0][0] > self._reply_timeout_s:
            why = f"no answer within {self._reply_timeout_s:g} s"
        if why and self._connection is not None:
            if self.state == "up":
                self.counters.timeouts += len(self._pending)
            self._lost(self._connection, why, frozen=True)

    # Connecting

    async def _connect(self) -> None:
        connection = await self._dialled()
        self._connection = connection
        self._writer = connection._writer
        self._sent = self._answered = self._awaited = 0
        self._ticks.clear()
        self._stuck_s = None
        self._checked_s = self._loop.time()
        self._check_deadline()
        _Replies(self, connection).take_over()
        try:
            if self._on_connect is not None:
                self.life = await self._on_connect(self._enqueue) or ""
        except StoreUnavailable as error:
            self._drop(str(error))
            raise StoreUnavailable(f"cannot use Redis at {self.shown_url}: {error}", sent=False) from error
        if self._connection is not connection:
            raise StoreUnavailable(f"cannot use Redis at {self.shown_url}: it closed the connection", sent=False)
        self.born_s = self.used_s = self._loop.time()
        self._set_state("up")

    async def _dialled(self) -> AbstractConnection:
        connection: AbstractConnection | None = None
        try:
            async with asyncio.timeout(self._dial_timeout_s):
                connection = await self._dial()
                await connection.connect()  # type: ignore[no-untyped-call]
                return connection
        except asyncio.CancelledError:
            if connection is not None:
                _close(connection)
            raise
        except Exception as error:  # whatever it is, uvloop's RuntimeError of a closed transport too: try again
            if connection is not None:
                _close(connection)
            reason = str(error) or f"no answer within {self._dial_timeout_s:g} s"
            reason += _hint(error, reason)
            raise StoreUnavailable(f"cannot connect to Redis at {self.shown_url}: {reason}", sent=False) from error

    def _lost(self, connection: AbstractConnection, why: str, *, frozen: bool = False) -> None:
        if connection is not self._connection:
            return
        was_up = self.state == "up" or self.born_s > 0
        self.born_s = 0.0
        if was_up and self.state != "stopped":
            after = ("away" if frozen else "connecting") if self._lasting else "stopped"
            self._set_state(after, why)
            if self._lasting:
                self._log.warning("redis_lost", url=self.shown_url, why=why)
                self._spawn(self._reconnect())
        self._drop(why)

    def _drop(self, why: str) -> None:
        connection, self._connection, self._writer = self._connection, None, None
        if self._watch is not None:
            self._watch.cancel()
        unsent = len(self._outgoing) + len(self._front)
        pending, self._pending = [*self._pending, *self._front], deque()
        self._outgoing.clear()
        self._front.clear()
        for place, (future, _, _) in enumerate(pending, unsent - len(pending)):
            if not future.done():
                error = StoreUnavailable(f"lost Redis at {self.shown_url}: {why}", sent=place < 0)
                future.set_exception(error)
        self._reach_marks(math.inf)
        if connection is not None:
            _close(connection)

    async def _reconnect(self) -> None:
        delay_s, tries = BACKOFF_MIN_S, 0
        task = asyncio.current_task()
        assert task is not None
        while self.state in ("connecting", "away"):
            tries += 1
            try:
                await self._connect()
            except StoreUnavailable as error:
                if task.cancelling():
                    raise asyncio.CancelledError from error  # swallowed below: see `end`
                self._why = str(error)
                if self.state == "connecting" and tries >= (AWAY_TRIES if _unreached(error) else CLOSED_TRIES):
                    self._log.warning("redis_away", url=self.shown_url, why=str(error))
                    self._set_state("away", str(error))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
            else:
                self.reconnects += 1
                self.counters.reconnects += 1
                self._log.info("redis_back", url=self.shown_url)

    def _set_state(self, state: str, why: str = "") -> None:
        self.state, self._why = state, why
        self._changed.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_NOTHING: Final = object()


class _Replies(asyncio.Protocol):
    """What arrives on one of redis-py's connections, once that has connected."""

    def __init__(self, owner: RedisConnection, connection: AbstractConnection) -> None:
        self._owner, self._connection = owner, connection
        self._parser = hiredis.Reader(notEnoughData=_NOTHING)

    def take_over(self) -> None:
        """From redis-py's stream, with what that has heard already."""
        reader, writer = self._connection._reader, self._connection._writer
        assert reader is not None and writer is not None, "it has connected"
        writer.transport.set_protocol(self)
        if reader._buffer:  # type: ignore[attr-defined]
            self.data_received(bytes(reader._buffer))  # type: ignore[attr-defined]
        if reader._eof or writer.transport.is_closing():  # type: ignore[attr-defined]
            self.connection_lost(reader.exception())

    def data_received(self, data: bytes) -> None:
        if self._connection is not self._owner._connection:
            return
        try:
            self._owner._received(self._parser, data)
        except hiredis.ProtocolError as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        why = "Redis closed the connection" if exc is None else str(exc) or type(exc).__name__
        self._owner._lost(self._connection, why)


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel until all are done. Once is not enough: up to Python 3.11 `asyncio.wait_for`, under which redis-py
    connects, swallows a cancellation that comes together with what it waits for."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


def _unreached(error: BaseException | None) -> bool:
    """Whether a try to connect failed before the server accepted it."""
    while error is not None:
        if isinstance(error, _UNREACHED):
            return True
        error = error.__cause__ or error.__context__
    return False


def _ignore(future: "asyncio.Future[Any]") -> None:
    """Its error shows in the command that follows."""
    if not future.cancelled():
        future.exception()


def _hint(error: Exception, reason: str) -> str:
    """What the operator may want to change."""
    if isinstance(error, AuthenticationError):
        return "; is REDIS_PASSWORD right?"
    if "CERTIFICATE_VERIFY_FAILED" in reason or "certificate verify failed" in reason:
        return "; ssl_ca_certs must name the CA of the server's certificate"
    return ""


def _close(connection: AbstractConnection) -> None:
    """At once: whatever is not written yet has failed already, and a frozen server would never take it."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    connection._parser.on_disconnect()  # type: ignore[no-untyped-call]
    connection._close()  # type: ignore[no-untyped-call]
