"""HTTP/1.1 on one client's connection, spoken to an application: parsing, framing, order, flow control.

The application is an ASGI one. If it is `Direct`, too, it may take a request as the `Client` that it is instead,
which spares the messages in between.

Requests are answered one at a time, in the order of their arrival; those that come early wait. The head of a
response leaves together with the first part of its body, in one write: a write is a system call here and a wake-up at
the receiver, the dearest steps of a small answer. Framing is ours alone: an application's `transfer-encoding` is left
out, its `content-length` is held to what it sends.

A client that closes its sending side counts as gone, as it does for most servers. A connection knows nothing of
listening, signals or other connections; what all of them share is `Shared`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Protocol, cast, runtime_checkable
from urllib.parse import unquote
from weakref import WeakValueDictionary

import httptools
import msgspec

from tollkeeper.gateway.asgi import Client, Message, Receive, Scope, too_large
from tollkeeper.gateway.asgi import Send as AsgiSend
from tollkeeper.observability.logging import logger

Application = Callable[[Scope, Receive, AsgiSend], Coroutine[Any, Any, None]]

HEADER_BYTES_MAX: Final = 65_536
"""Target and header fields of one request together."""
UNHEARD_BYTES_MAX: Final = 65_536
"""Bytes of which the parser tells nothing yet: of one endless field or trailer, or of chunks that never begin."""
HEADERS_MAX: Final = 200
PIPELINED_MAX: Final = 32
"""Requests that may wait behind the one being answered; a client that sends more is refused."""
BODY_BYTES_BUFFERED: Final = 65_536
"""Unread bytes of a body above which the connection is not read on."""
REPEATED_BYTES_MAX: Final = 2048
"""Largest head that is kept to be known again, one for each connection."""
REPEATED_TRIES: Final = 4
"""Heads kept on one connection, one after the other, until it is given up: this client's are never the same."""
LENGTH: Final = b"content-length"
DIGITS_MAX: Final = 9
ZERO: Final = ord("0")
LINGER_S: Final = 2.0
"""How long a client that was refused may go on sending: closing at once would reset the connection, and the refusal
could be lost on its way."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_WITHOUT_BODY: Final = (204, 304)


class Refused(Exception):
    """A request that is wrong by HTTP's rules or above a bound; raised within the parser's callbacks."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@runtime_checkable
class Direct(Protocol):
    """An application that takes some of its requests as clients."""

    def direct(self, client: Client) -> Coroutine[Any, Any, None] | None:
        """What carries a request out; None: ask again as ASGI wants it."""
        ...


class Shared:
    """What the connections of one listener share. `tick` must be called at least once a second."""

    def __init__(self, application: Application, connections_max: int) -> None:
        self.application, self.connections_max = application, connections_max
        self.direct = application.direct if isinstance(application, Direct) else None
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.repeated: WeakValueDictionary[tuple[bytes, bytes], Repeated] = WeakValueDictionary()
        """At most one for each connection."""
        self.stopping = False
        self.one_left = asyncio.Event()
        """Set when a connection has gone."""
        self.tick()
        self.loop = asyncio.get_running_loop()
        self.log = logger("server")

    def tick(self) -> None:
        """Keep the date of the responses' heads current."""
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()


class Head(msgspec.Struct, frozen=True):
    """A request's head. `fields` has the first value of each name, `headers` all of them in their order."""

    version: str
    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]
    keep_alive: bool


class Request(Client):
    """One request and its response, as an application sees them: a `Client`, and ASGI's `receive` and `send`."""

    __slots__ = (
        "_begun",
        "_buffered",
        "_chunked",
        "_connection",
        "_delivered",
        "_event",
        "_expects",
        "_left_bytes",
        "_listens",
        "_parts",
        "_silent",
        "done",
        "head",
        "keep_alive",
        "lost",
        "whole",
    )

    def __init__(self, connection: "Connection", head: Head, *, expects: bool = False) -> None:
        super().__init__(head.method, head.path, head.query, head.fields)
        self._connection, self.head = connection, head
        self.keep_alive, self._expects = head.keep_alive, expects
        self._parts: list[bytes] = []
        self._buffered = 0
        self.whole = self._delivered = False  # the body has arrived; the application has all of it
        self.lost = self.done = self._listens = False
        self._event: asyncio.Event | None = None
        self._begun = b""  # the response's head, while nothing of its body is there
        self._left_bytes: int | None = None  # what is missing to the stated length
        self._chunked = self._silent = False

    def __repr__(self) -> str:
        state = "done" if self.done else "lost" if self.lost else "started" if self.started else "open"
        return f"<Request {self.head.method} {self.head.path} {state} whole={self.whole}>"

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
        if self.lost and self._listens:
            self._listens = False
            self._left()

    def give_whole(self, body: bytes) -> None:
        """All of the body at once."""
        self.whole = True
        self._parts.append(body)

    # ---- as a client

    def body_at_once(self, bytes_max: int) -> bytes | None:
        """See `Client`."""
        if not self.whole or self._delivered or len(self._parts) != 1 or self.lost:
            return None
        body = self._parts[0]
        if len(body) > bytes_max:
            raise too_large(bytes_max)
        self._delivered = True
        self._parts, self._buffered = [], 0
        return body

    def _listen(self) -> None:
        self._listens = True
        if self.lost:
            self.wake()

    def _stop_listening(self) -> None:
        self._listens = False

    async def respond(self, status: int, lines: str, body: bytes) -> None:
        """See `Client`."""
        if self._connection.writing_paused is not None:
            await self._connection.drained()
        if self.gone:
            return
        self._open(status, f"{lines}content-length: {len(body)}\r\n".encode("ascii"), len(body))
        if not self.lost:
            self._write_last(self._begun if self._silent else self._begun + body)

    async def start(self, status: int, lines: str) -> None:
        """See `Client`."""
        if not self.gone:
            self._open(status, lines.encode("ascii"), None)

    async def send(self, body: bytes, *, last: bool = False) -> None:
        """See `Client`."""
        if self._connection.writing_paused is not None:
            await self._connection.drained()
        if self.done:
            raise RuntimeError("more of a response after its end")
        if not self.lost:
            self._body(body, last=last)

    # ---- ASGI

    async def receive(self) -> Message:
        """ASGI's `receive`: the body as it arrives, then `http.disconnect` once client or response is gone."""
        while not (self.lost or self.done):
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

    @property
    def scope(self) -> Scope:
        """ASGI's, made anew each time."""
        head, connection, length = self.head, self._connection, self.headers.get(LENGTH)
        headers = list(head.headers)
        if length != head.fields.get(LENGTH):  # of a repeated head
            headers = [(name, length if name == LENGTH and length else value) for name, value in headers]
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": headers,
            "client": connection.client,
            "server": connection.server,
        }

    async def send_message(self, message: Message) -> None:
        """ASGI's `send`; to a client that is gone nothing is sent. Raises RuntimeError for a wrong application."""
        connection = self._connection
        if connection.writing_paused is not None:
            await connection.drained()
        if self.lost:
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
        parts: list[bytes] = []
        length: int | None = None
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = False
                continue
            elif name == b"transfer-encoding":
                continue
            parts += (name, b": ", value, b"\r\n")
        lines = b"".join(parts)
        if not lines.count(b"\n") == lines.count(b"\r") == len(parts) // 4 or b"\0" in lines:
            raise RuntimeError("a line break or NUL in a response's header")
        self._open(status, lines, length)

    # ---- the response

    def _open(self, status: int, lines: bytes, length: int | None) -> None:
        """Make the head, which leaves with the first of the body. `length` is what `lines` state."""
        if self.started and not self._begun:
            raise RuntimeError("a second start of a response")
        self.started = True
        if self.lost:
            return
        self._left_bytes = length
        self._silent = status in _WITHOUT_BODY or self.method == "HEAD"
        if length is None and not self._silent:
            self._chunked = self.head.version == "1.1"
            self.keep_alive = self.keep_alive and self._chunked  # else the connection's end is the body's
        shared = self._connection.shared
        if shared.stopping or not self.whole:  # what is left of the request's body is not read
            self.keep_alive = False
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        if self._chunked:
            lines += b"transfer-encoding: chunked\r\n"
        first = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        self._begun = b"".join((first, lines, shared.date, b"\r\n"))

    def _body(self, body: bytes, *, last: bool) -> None:
        if self._silent:
            data, self._left_bytes = b"", 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if last:
                data += b"0\r\n\r\n"
        else:
            data = body
            if self._left_bytes is not None:
                self._left_bytes -= len(body)
                if self._left_bytes < 0 or (last and self._left_bytes):
                    raise RuntimeError("a response's body is not of the stated length")
        if self._begun:
            data, self._begun = self._begun + data, b""
        if last:
            self._write_last(data)
        elif data:
            self._connection.write(data)

    def _write_last(self, data: bytes) -> None:
        """Write what is left of the response, head included; it is over."""
        self._begun, self.done = b"", True
        connection = self._connection
        if data:
            connection.write(data)
        if self._event is not None:
            self.wake()
        connection.answered(self)

    async def run(self) -> None:
        """The task of the request: the application, and what is answered in its place if it fails."""
        shared = self._connection.shared
        try:
            work = None if shared.direct is None else shared.direct(self)
            await (shared.application(self.scope, self.receive, self.send_message) if work is None else work)
        except Exception:
            shared.log.exception("request_crashed", path=self.head.path)
        finally:
            shared.tasks.discard(self.task)
            if not (self.done or self.lost):
                self._give_up()

    def _give_up(self) -> None:
        """The application ended without an answer, or in the middle of one."""
        if self.started and not self._begun:
            self._connection.abort()  # a cut connection is the only way left to say that the answer is not whole
            return
        self.keep_alive = self._chunked = self._silent = False
        text = b"Internal Server Error"
        self._open(500, b"content-type: text/plain\r\ncontent-length: %d\r\n" % len(text), len(text))
        self._body(text, last=True)


class Repeated(msgspec.Struct, frozen=True, weakref=True):
    """A head that clients have sent, to know it again: SDKs repeat theirs to the byte, but for the body's length.

    `before` and `after` are what stands around the length's digits. What is equal to them was parsed, and found
    valid, already. Connections of one client share it, for as long as one of them lives: there are secrets in it.
    """

    before: bytes
    after: bytes
    digits: bytes
    head: Head

    @classmethod
    def of(cls, data: bytes, head: Head) -> "Repeated | None":
        """Of a request that `data` holds to the byte; None if its head is not worth it or not simple."""
        length, lower = head.fields.get(LENGTH, b""), data[:REPEATED_BYTES_MAX].lower()
        end, name = lower.find(b"\r\n\r\n") + 4, lower.find(b"\r\ncontent-length:")
        if end < 4 or name < 0 or lower.count(LENGTH, 0, end) != 1 or not _plain(length) or not head.keep_alive:
            return None
        begin = data.index(length, name)
        stop = begin + len(length)
        if data[name:begin].split(b":")[1].strip(b" \t") or data[stop : stop + 2] != b"\r\n":
            return None
        return cls(data[:begin], data[stop:end], length, head) if len(data) - end == int(length) else None

    def length_in(self, data: bytes) -> bytes | None:
        """The length's digits, if `data` is to the byte a request with this head; None if it is not."""
        if not data.startswith(self.before):
            return None
        begin = len(self.before)
        stop = data.find(b"\r", begin, begin + DIGITS_MAX + 1)
        if stop < 0 or not data.startswith(self.after, stop):
            return None
        digits = data[begin:stop]
        if digits != self.digits and not _plain(digits):
            return None
        return digits if len(data) == stop + len(self.after) + int(digits) else None


def _plain(digits: bytes) -> bool:
    """A number as everybody reads it, above 0."""
    return digits.isdigit() and digits[0] != ZERO and len(digits) <= DIGITS_MAX


class Connection(asyncio.Protocol):
    """One client. `idle_since` and `header_since` (the loop's time, None: neither) are for who ends slow ones."""

    __slots__ = (
        "_body_bytes",
        "_current",
        "_deaf",
        "_expects",
        "_header_bytes",
        "_headers",
        "_newest",
        "_parser",
        "_reading",
        "_refusal",
        "_repeated",
        "_transport",
        "_tries",
        "_unheard_bytes",
        "_url",
        "_waiting",
        "client",
        "header_since",
        "idle_since",
        "lingers_since",
        "server",
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
        self._body_bytes = self._unheard_bytes = 0
        self._reading = True
        self._repeated: Repeated | None = None
        self._tries = REPEATED_TRIES
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
        self.client, self.server = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.shared.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._deaf:
            return
        between = self._current is None and self._newest is None and self.header_since is None
        if between and self._repeated is not None:
            digits = self._repeated.length_in(data)
            if digits is not None and len(self.shared.connections) <= self.shared.connections_max:
                self._serve_again(self._repeated, digits, data)
                return
        heard = self._newest, self._header_bytes, self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the request is answered as if it had not asked; nothing after it is HTTP
            for request in filter(None, (self._current, *self._waiting)):
                request.keep_alive = False
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refused):
                raise
            self._refuse(error.__context__)
        except httptools.HttpParserError:
            self._refuse(Refused(400, "The request is not valid HTTP."))
        else:
            if between and self._tries:
                self._keep_head(data)
            if heard == (self._newest, self._header_bytes, self._body_bytes):
                self._bound_unheard(len(data))
            else:
                self._unheard_bytes = 0

    def _bound_unheard(self, size: int) -> None:
        """So many bytes came that told nothing: the parser may be keeping them."""
        self._unheard_bytes += size
        if self._unheard_bytes > UNHEARD_BYTES_MAX:
            self._refuse(Refused(400, "The request's header is too large."))

    def _serve_again(self, repeated: Repeated, digits: bytes, data: bytes) -> None:
        """A request whose head is known."""
        self.idle_since = None
        request = Request(self, repeated.head)
        if digits != repeated.digits:
            request.headers = {**repeated.head.fields, LENGTH: digits}
        request.give_whole(data[-int(digits) :])
        self._start(request)

    def _keep_head(self, data: bytes) -> None:
        """Know this head again, if `data` is one request to the byte."""
        request = self._current
        if request is None or not request.whole or self._waiting or self._expects:
            return
        repeated = Repeated.of(data, request.head)
        if repeated is not None:
            self._tries -= 1
            known = self.shared.repeated.setdefault((repeated.before, repeated.after), repeated)
            self._repeated = known if self._tries else None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we closed."""
        self._deaf = True
        self.shared.connections.discard(self)
        self.shared.one_left.set()
        for request in (self._current, *self._waiting):
            if request is not None and not request.done:
                request.lost = True
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
        headers.append((name.lower(), value))

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
        headers, self._headers = self._headers, []  # trailers come after the header is complete and belong nowhere
        fields = dict(reversed(headers))
        self._expects = fields.get(b"expect", b"").lower() == b"100-continue"
        head = Head(
            version,
            parser.get_method().decode("ascii"),
            unquote(path) if "%" in path else path,
            raw_path,
            query,
            headers,
            fields,
            version == "1.1" and parser.should_keep_alive(),
        )
        request = self._newest = Request(self, head, expects=self._expects)
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
        self._body_bytes += len(part)
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
        if not self._reading:
            self.read_on()
        task = request.task = self.shared.loop.create_task(request.run())
        self.shared.tasks.add(task)

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
            current.lost, self._current = True, None
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
