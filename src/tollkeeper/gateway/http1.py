"""One HTTP/1.1 connection to a provider: one request at a time, never pipelined, and a strict reader of the answer.

The parser (llhttp, by httptools, without leniency) refuses folded or bare line ends, control characters, signs and
overflow in lengths, a length given twice, and length together with chunks. What it lets pass and this file refuses:
other transfer codings than exactly one `chunked`, HTTP but 1.0 and 1.1, statuses outside 100 to 599, a switch of
protocols. What it does not bound and this file does: the head, the number of fields and of 1xx answers, chunk
extensions and trailers. A connection is used again only after an answer that ended by its own framing, with nothing
after it; in any doubt it is closed.

The parser does not report fields one by one: providers send some twenty, of which five are looked at. The head's
bytes, once the parser has found them valid, are searched for these (`Headers`).

It knows nothing of addresses, of other connections or of who waits for one: see `http1_pool.py`.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol, cast

import httptools

from tollkeeper.domain.errors import UpstreamError
from tollkeeper.gateway.upstream import (
    HEADERS_MAX,
    KEEPALIVE_S,
    RESPONSE_BYTES_MAX,
    Body,
    cut,
    hung_up,
    no_answer,
    not_http,
    silent,
    too_large,
)
from tollkeeper.settings import ProviderSettings

HEAD_BYTES_MAX: Final = 2**16
"""Of one answer, the 1xx before it included."""
INFORMATIONAL_MAX: Final = 16
"""1xx answers before the answer."""
OVERHEAD_BYTES_MAX: Final = 2**16
"""Chunk extensions and trailers between two pieces of a body."""
BUFFER_BYTES_MAX: Final = 2**18
"""Above this nothing is read from a provider until the reader has taken what is here."""
WRITE_BYTES: Final = 2**18
"""Larger requests are written in pieces, each when the one before has left, so that others have their turn."""
NAMES_MAX: Final = 64
"""Names of headers kept as they start a line; a dozen are asked for."""
TIMER_SLACK_S: Final = 0.002
"""Timers of some event loops tick in milliseconds and fire that much early."""
LENGTH, CODING = b"\r\ncontent-length:", b"\r\ntransfer-encoding:"
"""As these fields start within a head in lower case."""
VERSIONS: Final = (b"HTTP/1.1 ", b"HTTP/1.0 ")


class _Refused(Exception):
    """Raised within a callback to make the parser stop."""


class Owner(Protocol):
    """Whoever keeps connections."""

    def idle(self, connection: "Connection") -> None:
        """An answer came to a clean end: the connection may carry the next request."""
        ...

    def made(self, connection: "Connection") -> None:
        """It has a socket. Called once."""
        ...

    def closed(self, connection: "Connection") -> None:
        """It will carry no more requests. Called once."""
        ...

    def lost(self, connection: "Connection") -> None:
        """Its socket is gone. Called once, after `closed`."""
        ...


class Headers(Mapping[str, str]):
    """Response headers by case-insensitive name; the first of several counts.

    They are looked for when asked for, in a head that the parser has found valid: status line and fields, each with
    its line end, none folded.
    """

    __slots__ = ("_head", "_lower")

    def __init__(self, head: bytes) -> None:
        self._head, self._lower = head, head.lower()

    def raw(self, start: bytes) -> bytes | None:
        """The value of the first field that starts so, with the line end before it: as `CODING` does."""
        found = self._lower.find(start)
        if found < 0:
            return None
        begin = found + len(start)
        return self._head[begin : self._head.index(b"\r\n", begin)].strip(b" \t")

    def count(self, start: bytes) -> int:
        """How many fields start so."""
        return self._lower.count(start)

    def __getitem__(self, name: str) -> str:
        value = self.raw(_start(name))
        if value is None:
            raise KeyError(name)
        return value.decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping, without the exception in between."""
        value = self.raw(_start(name))
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        fields = self._lower.split(b"\r\n")[1:-1]
        return iter(dict.fromkeys([field.partition(b":")[0].decode("latin-1") for field in fields]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@lru_cache(NAMES_MAX)
def _start(name: str) -> bytes:
    return b"\r\n%b:" % name.lower().encode("latin-1", "replace")


NO_HEADERS: Final = Headers(b"")


class Http1Response:
    """`UpstreamResponse`, filled by its connection as bytes arrive. What has arrived before an error can be read.

    A body without length ends with the connection; whether it is whole only its content can tell.
    """

    __slots__ = (
        "_buffered",
        "_connection",
        "_ends_at",
        "_error",
        "_idle_timeout_s",
        "_parts",
        "_waiter",
        "headers",
        "received",
        "status",
    )

    def __init__(self, connection: "Connection", idle_timeout_s: float, ends_at: float) -> None:
        self._connection: Connection | None = connection
        self._idle_timeout_s, self._ends_at = idle_timeout_s, ends_at
        self.status = 0
        self.headers: Mapping[str, str] = NO_HEADERS
        self.received = 0
        self._parts: list[bytes] = []
        self._buffered = 0
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        how = "failed" if self._error is not None else "whole" if self._connection is None else "open"
        return f"<Http1Response {self.status} {how} received={self.received} buffered={self._buffered}>"

    async def read(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes:
        """See `UpstreamResponse.read`."""
        chunk = await self.next_chunk()
        if self.received > bytes_max:
            raise too_large(bytes_max)
        if not chunk or (self._connection is None and self._error is None and not self._parts):
            return chunk
        chunks = [chunk]
        while chunk := await self.next_chunk():
            if self.received > bytes_max:
                raise too_large(bytes_max)
            chunks.append(chunk)
        return b"".join(chunks)

    def whole(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes | None:
        """See `UpstreamResponse.whole`."""
        parts = self._parts
        if self._connection is not None or self._error is not None or len(parts) != 1:
            return None
        if self._buffered != self.received or self.received > bytes_max:
            return None
        self._buffered = 0
        return parts.pop()

    async def next_chunk(self) -> bytes:
        """See `UpstreamResponse.next_chunk`. All that has arrived comes in one chunk."""
        parts = self._parts
        while not parts:
            if self._error is not None:
                raise self._error
            if self._connection is None:
                return b""
            await self.arrival(self._connection.loop.time() + self._idle_timeout_s)
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered = 0
        if self._connection is not None:
            self._connection.read_on()
        return chunk

    def close(self) -> None:
        """See `UpstreamResponse.close`. An unfinished exchange ends here, and the provider sees it at once."""
        if self._connection is not None:
            self._connection.fail(cut())

    # ---- what its connection uses

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for something to arrive."""
        return self._waiter is not None and not self._waiter.done()

    async def change(self, until: float) -> bool:
        """Wait for anything to happen; False once the exchange has come to its end."""
        if self._connection is not None:
            await self.arrival(until)
        return self._connection is not None

    async def arrival(self, until: float) -> None:
        """Wait for the head, or anything else, to come. `until`: the latest time, by the loop's clock.

        Raises UpstreamError once it will not come.
        """
        if self._error is not None:
            raise self._error
        connection = self._connection
        assert connection is not None and self._waiter is None
        self._waiter = connection.loop.create_future()
        connection.expire(min(until, self._ends_at))
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Something happened."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def tail(self) -> bytes:
        """The last piece of the body that nobody has taken yet."""
        return self._parts[-1] if self._parts else b""

    def add(self, part: bytes) -> bool:
        """Take a piece of the body; whether there is too much of it here."""
        self._parts.append(part)
        self.received += len(part)
        self._buffered += len(part)
        return self._buffered > BUFFER_BYTES_MAX

    def end(self, error: UpstreamError | None) -> None:
        """Nothing more will arrive. Without an error the body is whole."""
        self._connection, self._error = None, error
        self.wake()


class Connection(asyncio.Protocol):
    """A connection is idle, or has one response in the making, or is closed for good."""

    __slots__ = (
        "_arrived",
        "_complete",
        "_expires_at",
        "_fires_at",
        "_has_length",
        "_head_bytes",
        "_informational",
        "_keep_alive",
        "_overhead_bytes",
        "_owner",
        "_parser",
        "_reading",
        "_requests",
        "_response",
        "_timer",
        "_to_eof",
        "_transport",
        "_unsent",
        "_writable",
        "closed",
        "loop",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner, self.loop = owner, loop
        self._parser: Any = httptools.HttpResponseParser(self)
        self._response: Http1Response | None = None
        self.closed = False
        self._reading = self._writable = True
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._expires_at = self._fires_at = 0.0
        self._unsent = False
        self._begin()

    def _begin(self) -> None:
        self._arrived = b""  # of the head, and what came with its end
        self._head_bytes = self._overhead_bytes = self._informational = 0
        self._complete = self._keep_alive = self._to_eof = self._has_length = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "idle" if self._response is None else repr(self._response)
        return f"<Connection {state} requests={self._requests} reading={self._reading} writable={self._writable}>"

    # ---- what its owner uses

    def usable(self) -> bool:
        """Whether a request can be written: no byte, end or error has come since the last answer, and it is young."""
        return not self.closed and not self._transport.is_closing() and self.loop.time() < self._expires_at

    async def exchange(self, head: bytes, body: Body, settings: ProviderSettings, ends_at: float) -> Http1Response:
        """Write the request and wait for the head of the answer. `ends_at`: when all of it must be over.

        Raises UpstreamError with `sent` True, whatever happens. A request that is refused before all of it is
        written (413) is not written to its end.
        """
        until = self.loop.time() + settings.first_byte_timeout_s
        if isinstance(body, bytes) and len(body) <= WRITE_BYTES:
            response = self.ask(head + body, settings, ends_at)
        else:
            response = self.ask(head, settings, ends_at)
            await self._write(response, (body,) if isinstance(body, bytes) else body, until)
        while not response.status:
            await response.arrival(until)
        return response

    def ask(self, data: bytes, settings: ProviderSettings, ends_at: float) -> Http1Response:
        """Write a request, or the beginning of one; the answer is still to come, all of it by `ends_at`."""
        assert self._response is None
        self._requests += 1
        response = self._response = Http1Response(self, settings.idle_timeout_s, ends_at)
        self._transport.write(data)
        return response

    async def _write(self, response: Http1Response, pieces: Sequence[bytes | memoryview], until: float) -> None:
        self._unsent = True
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                self._transport.write(rest[:WRITE_BYTES])
                rest = rest[WRITE_BYTES:]
                while not self._writable:
                    if not await response.change(until) or response.status >= 300:
                        return
        self._unsent = False

    def read_on(self) -> None:
        """The reader has caught up."""
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def fail(self, error: UpstreamError) -> None:
        """End the exchange, if there is one, and the connection, at once."""
        response, self._response = self._response, None
        self.close()
        if response is not None:
            response.end(error)

    def close(self) -> None:
        """Carry no more requests. What was not sent yet is dropped: nobody will read the answer."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        self._owner.closed(self)

    def _rest(self) -> None:
        """From now on it is idle, until it is too old."""
        self.expire(self.loop.time() + KEEPALIVE_S)

    # ---- time: one timer, which is put off lazily, since most deadlines are never met

    def expire(self, at: float) -> None:
        """Set the time at which waiting, for bytes or for the next request, has taken too long."""
        self._expires_at = at
        if self._timer is not None:
            if self._fires_at <= at:
                return
            self._timer.cancel()
        self._fires_at = at
        self._timer = self.loop.call_later(max(0.0, at - self.loop.time()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        response = self._response
        if response is not None and not response.waited_for:
            return  # it is the reader who takes its time
        if self.loop.time() + TIMER_SLACK_S < self._expires_at:
            self.expire(self._expires_at)
        elif response is None:
            self.close()
        else:
            self.fail(silent() if response.status else no_answer())

    # ---- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._owner.made(self)
        self._rest()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        response = self._response
        if response is None:
            self.close()  # nothing was asked
            return
        had_head, received = response.status != 0, response.received
        if not had_head:
            self._arrived += data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._complete:  # whatever comes after it, this answer is whole
                self._finish(response, reusable=False)
            else:
                self.fail(cut() if response.status else not_http())
            if error.__context__ is not None and not isinstance(error.__context__, _Refused):
                raise error.__context__ from None  # a defect of ours
            return
        if self._complete:
            self._finish(response, self._keep_alive and self._ends_clean(data))
        else:
            self._goes_on(response, len(data), had_head, received)

    def _goes_on(self, response: Http1Response, size: int, had_head: bool, received: int) -> None:
        """The answer is not whole yet; before the last bytes, `size`, it was as the other arguments say."""
        if not response.status:
            if self._head_bytes + len(self._arrived) > HEAD_BYTES_MAX:
                self.fail(not_http())
        elif response.received != received:
            self._overhead_bytes = 0
            response.wake()
        elif not had_head:
            response.wake()
        else:
            self._overhead_bytes += size
            if self._overhead_bytes > OVERHEAD_BYTES_MAX:
                self.fail(cut())

    def eof_received(self) -> None:
        """The provider sends no more: the end of a body without length, else an untimely one."""
        self._end_of_input(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._end_of_input(exc)
        self._parser = None  # which knows this object: a circle that only the collector would find
        self._owner.lost(self)

    def _end_of_input(self, error: Exception | None) -> None:
        response = self._response
        if response is None:
            self.close()
        elif self._to_eof and error is None:
            self._finish(response, reusable=False)
        else:
            self.fail(cut() if response.status else hung_up())

    def _ends_clean(self, data: bytes) -> bool:
        """Whether nothing comes after the answer that ended within `data`.

        The parser refuses all that does but empty lines, which it skips without a word. In doubt False, which only
        costs a reuse.
        """
        assert self._response is not None
        if self._has_length and (tail := self._response.tail()):
            return data.endswith(tail)
        return data.endswith(b"\r\n") and not data.endswith(b"\r\n\r\n\r\n")

    def _finish(self, response: Http1Response, reusable: bool) -> None:
        """The answer is whole."""
        self._response = None
        transport = self._transport
        if reusable and not self._unsent and not transport.get_write_buffer_size() and not transport.is_closing():
            if not self._reading:
                self.read_on()
            self._begin()
            self._rest()
            self._owner.idle(self)
        else:
            self.close()
        response.end(None)

    def pause_writing(self) -> None:
        """The provider reads more slowly than we write."""
        self._writable = False

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable = True
        if self._response is not None and self._unsent:
            self._response.wake()

    # ---- parser

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of each answer, the 1xx included."""
        if self._complete:
            raise _Refused

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        response = self._response
        assert response is not None
        status: int = self._parser.get_status_code()
        head = self._take_head()
        if not head.startswith(VERSIONS) or status > 599:
            raise _Refused
        if status < 200:
            self._informational += 1
            if status < 100 or status == 101 or self._informational > INFORMATIONAL_MAX:
                raise _Refused
            return
        headers = Headers(head)
        lengths, coding = headers.count(LENGTH), headers.raw(CODING)
        if lengths > 1 or (
            coding is not None and (lengths or headers.count(CODING) > 1 or coding.lower() != b"chunked")
        ):
            raise _Refused
        self._has_length = lengths == 1
        self._to_eof = not lengths and coding is None and status not in (204, 304)
        self._arrived = b""
        response.headers, response.status = headers, status

    def _take_head(self) -> bytes:
        """The head that the parser has just come to the end of, taken from what has arrived."""
        arrived = self._arrived.lstrip(b"\r\n")  # empty lines before an answer, which the parser skips
        end = arrived.find(b"\r\n\r\n") + 2
        head, self._arrived = arrived[:end], arrived[end + 2 :]
        self._head_bytes += len(head)
        if end < 2 or self._head_bytes > HEAD_BYTES_MAX or head.count(b"\n") - 1 > HEADERS_MAX:
            raise _Refused
        return head

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        assert self._response is not None
        if self._response.add(part) and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of each answer, the 1xx included."""
        assert self._response is not None
        if self._response.status:
            self._complete, self._keep_alive = True, self._parser.should_keep_alive()
