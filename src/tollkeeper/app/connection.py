"""HTTP/1.1 on one client's connection, spoken to an ASGI application: parsing, framing, order, flow control.

Requests are answered one at a time, in the order of their arrival; those that come early wait. The head of a
response leaves together with the first part of its body, in one write: a write is a system call here and a wake-up at
the receiver, the dearest steps of a small answer. Framing is ours alone: an application's `transfer-encoding` is left
out, its `content-length` is held to what it sends.

A client that closes its sending side counts as gone, as it does for most servers. A connection knows nothing of
listening, signals or other connections; what all of them share is `Shared`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools

from tollkeeper.observability.logging import logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

HEADER_BYTES_MAX: Final = 65_536
"""Target and header fields of one request together."""
HEADERS_MAX: Final = 200
PIPELINED_MAX: Final = 32
"""Requests that may wait behind the one being answered; a client that sends more is refused."""
BODY_BYTES_BUFFERED: Final = 65_536
"""Unread bytes of a body above which the connection is not read on."""
LINGER_S: Final = 2.0
"""How long a client that was refused may go on sending: closing at once would reset the connection, and the refusal
could be lost on its way."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = (b"connection", b"close")
ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_WITHOUT_BODY: Final = (204, 304)


class Refused(Exception):
    """A request that is wrong by HTTP's rules or above a bound; raised within the parser's callbacks."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Shared:
    """What the connections of one listener share. `tick` must be called at least once a second."""

    def __init__(self, application: Application, connections_max: int) -> None:
        self.application, self.connections_max = application, connections_max
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.one_left = asyncio.Event()
        """Set when a connection has gone."""
        self.tick()
        self.loop = asyncio.get_running_loop()
        self.log = logger("server")

    def tick(self) -> None:
        """Keep the date of the responses' heads current."""
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()


class Request:
    """One request and its response, as ASGI's `receive` and `send` see them."""

    __slots__ = (
        "_buffered",
        "_chunked",
        "_connection",
        "_delivered",
        "_event",
        "_expects",
        "_head",
        "_left",
        "_on_gone",
        "_parts",
        "_silent",
        "done",
        "gone",
        "keep_alive",
        "scope",
        "started",
        "whole",
    )

    def __init__(self, connection: "Connection", scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self._connection, self.scope = connection, scope
        self.keep_alive, self._expects = keep_alive, expects
        self._parts: list[bytes] = []
        self._buffered = 0
        self.whole = self._delivered = False  # the body has arrived; the application has all of it
        self.gone = self.started = self.done = False
        self._event: asyncio.Event | None = None
        self._on_gone: Callable[[], None] | None = None
        self._head = b""  # of the response, while nothing of its body is there
        self._left: int | None = None  # what is missing to the stated length
        self._chunked = self._silent = False

    def __repr__(self) -> str:
        state = "done" if self.done else "gone" if self.gone else "started" if self.started else "open"
        return f"<Request {self.scope['method']} {self.scope['path']} {state} whole={self.whole}>"

    # ---- what the connection tells

    def add(self, part: bytes) -> bool:
        """A part of the body; whether too much of it waits to be read."""
        self._parts.append(part)
        self._buffered += len(part)
        self.wake()
        return self._buffered > BODY_BYTES_BUFFERED

    def wake(self) -> None:
        """Something has changed for who waits in `receive`."""
        if self._event is not None:
            self._event.set()
        if self.gone and self._on_gone is not None:
            on_gone, self._on_gone = self._on_gone, None
            on_gone()

    # ---- what an application may know of this server: `receive` is a method of this object

    def when_gone(self, act: Callable[[], None] | None) -> None:
        """Call back once when the client leaves before its answer is over; None: no more. To be told spares a task
        that waits in `receive`, which is 2 kB for each open stream."""
        self._on_gone = act
        if act is not None and self.gone:
            self.wake()

    # ---- ASGI

    async def receive(self) -> Message:
        """ASGI's `receive`: the body as it arrives, then `http.disconnect` once client or response is gone."""
        while not (self.gone or self.done):
            if self._parts or (self.whole and not self._delivered):
                parts = self._parts
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                self._parts, self._buffered = [], 0
                self._delivered = self.whole
                if not self.whole:
                    self._connection.read_on()
                return {"type": "http.request", "body": body, "more_body": not self.whole}
            if self._expects and not self.started:
                self._expects = False
                self._connection.write(CONTINUE)
            if self._event is None:
                self._event = asyncio.Event()
            self._event.clear()
            await self._event.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI's `send`; to a client that is gone nothing is sent. Raises RuntimeError for a wrong application."""
        connection = self._connection
        if connection.writing_paused is not None:
            await connection.drained()
        if self.gone:
            return
        if not self.started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"a response begins with http.response.start, not {message['type']!r}")
            self._start(message["status"], message.get("headers", ()))
            return
        if self.done or message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']!r} after the {'end' if self.done else 'start'} of a response")
        self._body(message.get("body", b""), last=not message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        count = 1
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = False
                continue
            elif name == b"transfer-encoding":
                continue
            lines += (name, b": ", value, b"\r\n")
            count += 1
        self._silent = status in _WITHOUT_BODY or self.scope["method"] == "HEAD"
        if self._left is None and not self._silent:
            self._chunked = self.scope["http_version"] == "1.1"
            self.keep_alive = self.keep_alive and self._chunked  # else the connection's end is the body's
        shared = self._connection.shared
        if shared.stopping or not self.whole:  # what is left of the request's body is not read
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
            count += 1
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
            count += 1
        lines += (shared.date, b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != count + 2 or head.count(b"\r") != count + 2 or b"\0" in head:
            raise RuntimeError("a line break or NUL in a response's header")
        self.started, self._head = True, head

    def _body(self, body: bytes, *, last: bool) -> None:
        if self._silent:
            data, self._left = b"", 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if last:
                data += b"0\r\n\r\n"
        else:
            data = body
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (last and self._left):
                    raise RuntimeError("a response's body is not of the stated length")
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.write(data)
        if last:
            self.done = True
            self.wake()
            self._connection.answered(self)

    async def run(self) -> None:
        """The task of the request: the application, and what is answered in its place if it fails."""
        shared = self._connection.shared
        try:
            await shared.application(self.scope, self.receive, self.send)
        except Exception:
            shared.log.exception("request_crashed", path=self.scope["path"])
        finally:
            if not (self.done or self.gone):
                self._give_up()

    def _give_up(self) -> None:
        """The application ended without an answer, or in the middle of one."""
        if self.started and not self._head:
            self._connection.abort()  # a cut connection is the only way left to say that the answer is not whole
            return
        self._head, self._left, self._chunked, self._silent = b"", None, False, False
        text = b"Internal Server Error"
        self._start(500, ((b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text)), CLOSE))
        self._body(text, last=True)


class Connection(asyncio.Protocol):
    """One client. `idle_since` and `header_since` (the loop's time, None: neither) are for who ends slow ones."""

    __slots__ = (
        "_client",
        "_current",
        "_deaf",
        "_expects",
        "_header_bytes",
        "_headers",
        "_newest",
        "_parser",
        "_reading",
        "_refusal",
        "_server",
        "_transport",
        "_url",
        "_waiting",
        "header_since",
        "idle_since",
        "lingers_since",
        "shared",
        "writing_paused",
    )

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._parser: Any = httptools.HttpRequestParser(self)
        self._current: Request | None = None  # being answered
        self._newest: Request | None = None  # whose body is arriving
        self._waiting: list[Request] = []  # at most `PIPELINED_MAX`; an empty deque would be 600 bytes
        self._refusal: Refused | None = None  # to be told after what came before it
        self._deaf = False  # nothing more is taken from this client
        self._reading = True
        self.writing_paused: asyncio.Future[None] | None = None
        self.header_since: float | None = shared.loop.time()
        self.idle_since: float | None = None
        self.lingers_since: float | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<Connection {self._current!r} waiting={len(self._waiting)} deaf={self._deaf}>"

    # ---- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._client, self._server = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.shared.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the request is answered as if it had not asked; nothing after it is HTTP
            for request in (self._current, *self._waiting):
                if request is not None:
                    request.keep_alive = False
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refused):
                raise
            self._refuse(error.__context__)
        except httptools.HttpParserError:
            self._refuse(Refused(400, "The request is not valid HTTP."))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we closed."""
        self._deaf = True
        self.shared.connections.discard(self)
        self.shared.one_left.set()
        for request in (self._current, *self._waiting):
            if request is not None and not request.done:
                request.gone = True
                request.wake()
        self._waiting.clear()
        self.resume_writing()
        self._parser = None  # which knows this object: a circle that only the collector would find

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        if self.writing_paused is None:
            self.writing_paused = self.shared.loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up, or is gone."""
        paused, self.writing_paused = self.writing_paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    # ---- parser

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._expects = False

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._begin()
        self.idle_since, self.header_since = None, self.shared.loop.time()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, with all or a part of the target."""
        self._url += url
        if len(self._url) > HEADER_BYTES_MAX:
            raise Refused(400, "The request's target is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for the trailers of a chunked body, too: these are bounded and dropped."""
        self._header_bytes += len(name) + len(value)
        headers = self._headers
        if self._header_bytes > HEADER_BYTES_MAX or len(headers) >= HEADERS_MAX:
            raise Refused(400, "The request's header is too large.")
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.header_since = None
        parser, raw_path, query = self._parser, self._url, b""
        if not raw_path.startswith(b"/"):
            raw_path, query = _absolute(raw_path)
        elif b"?" in raw_path:
            raw_path, _, query = raw_path.partition(b"?")
        try:
            path = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(400, "The request's target has characters that must be percent-encoded.") from None
        version = parser.get_http_version()
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            # trailers come after the header is complete and belong nowhere
            "headers": self._headers,
            "client": self._client,
            "server": self._server,
        }
        self._headers = []
        keep_alive = version == "1.1" and parser.should_keep_alive()
        request = self._newest = Request(self, scope, keep_alive=keep_alive, expects=self._expects)
        if len(self.shared.connections) > self.shared.connections_max:
            raise Refused(503, "The gateway has too many connections. Try again shortly.")
        if self._current is None:
            self._start(request)
        elif len(self._waiting) < PIPELINED_MAX:
            self._waiting.append(request)
            self._stop_reading()
        else:
            raise Refused(400, "Too many requests were sent without waiting for their answers.")

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        request = self._newest
        if request is not None and not request.done and request.add(part):
            self._stop_reading()

    def on_message_complete(self) -> None:
        """Called by the parser: the request is whole."""
        request, self._newest = self._newest, None
        if request is not None:
            request.whole = True
            request.wake()

    # ---- requests in their order

    def _start(self, request: Request) -> None:
        self._current = request
        self.read_on()
        task = self.shared.loop.create_task(request.run())
        self.shared.tasks.add(task)
        task.add_done_callback(self.shared.tasks.discard)

    def answered(self, request: Request) -> None:
        """A response has been written to its end."""
        self._current = None
        if not request.keep_alive or self.shared.stopping:
            self._waiting.clear()
            self._end(linger=not request.whole)
        elif self._waiting:
            self._start(self._waiting.pop(0))
        elif self._refusal is not None:
            self._tell(self._refusal)
        else:
            self.idle_since = self.shared.loop.time()
            self.read_on()

    def _refuse(self, refusal: Refused) -> None:
        """The last that is answered on this connection, after what came before."""
        self._deaf = True
        current = self._current
        if current is not None and current is self._newest and not current.started:
            # its body became unreadable: it will never be whole
            current.gone, self._current = True, None
            current.wake()
        if self._current is None:
            self._tell(refusal)
        else:
            self._refusal = refusal

    def _tell(self, refusal: Refused) -> None:
        text = refusal.message.encode()
        lines = (
            _STATUS_LINES[refusal.status],
            b"content-type: text/plain\r\nconnection: close\r\n",
            self.shared.date,
        )
        self.write(b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(lines), len(text), text))
        self._end(linger=True)

    def _end(self, *, linger: bool) -> None:
        self._deaf = True
        self.header_since = self.idle_since = None
        if linger and not self._transport.is_closing():
            self.lingers_since = self.shared.loop.time()
            self.read_on()
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self._transport.close()

    # ---- what requests and the listener use

    def write(self, data: bytes) -> None:
        """Send; nothing if the client is gone."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when the client keeps up with reading, or is gone."""
        if self.writing_paused is not None:
            await asyncio.shield(self.writing_paused)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Read from the client again."""
        if not self._reading and not self._waiting and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def stop(self) -> None:
        """Take no further request: an idle connection is closed, any other after its answer."""
        if self._current is None:
            self.close()

    def close(self) -> None:
        """End when what was written has left."""
        self._end(linger=False)

    def abort(self) -> None:
        """End at once."""
        self._deaf = True
        self._transport.abort()


def _absolute(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target that is not a path: `http://host/path?query`, or `*`."""
    if url == b"*":
        return b"*", b""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        raise Refused(400, "The request's target is not valid.") from None
    return parsed.path or b"/", parsed.query or b""
