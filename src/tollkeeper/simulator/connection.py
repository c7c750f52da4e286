"""HTTP/1.1 on one connection: parsing, order of pipelined requests, flow control. Knows nothing of providers.

Requests are answered one at a time in the order of their arrival. A reply that takes no time is written from within
`data_received`, without a task; any other runs as this connection's one task, which is cancelled when the client is
gone. A client that closes its sending side counts as gone, as it does for most servers.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import httptools

from tollkeeper.simulator import openai
from tollkeeper.simulator.account import Account
from tollkeeper.simulator.asks import Refusal
from tollkeeper.simulator.exchange import Exchange, head, perform_at_once
from tollkeeper.simulator.service import Received, Reply, Service

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024
PIPELINED_MAX: Final = 64
"""Requests that may wait behind a slow one before the connection is no longer read."""
LINGER_S: Final = 2.0
"""How long a refused client may go on sending before the connection is closed."""
_HEADERS_KEPT: Final = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"x-request-id",
        b"anthropic-version",
        b"anthropic-beta",
        b"content-type",
        b"api-key",
    }
)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """One client's connection. `live` is the set of open connections, which it enters and leaves by itself."""

    def __init__(
        self, service: Service, account: Account, live: "set[Connection]", now_us: Callable[[], int]
    ) -> None:
        self._service, self._account, self._live, self._now_us = service, account, live, now_us
        self._parser: Any = httptools.HttpRequestParser(self)
        self._waiting: deque[Received] = deque()
        self.task: asyncio.Task[None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._continue_due = False
        self._deaf = False
        self._last_refusal: Refusal | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._reading = True
        self._begin()

    def __repr__(self) -> str:
        return f"<Connection waiting={len(self._waiting)} busy={self.task is not None} deaf={self._deaf}>"

    # ---- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._live.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we closed: whatever is being answered ends now."""
        self._deaf = True
        self._live.discard(self)
        self._waiting.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # refused when its head was complete: the parser skips the body of such a request
        except httptools.HttpParserCallbackError as error:
            if error.__context__ is not None:
                raise error.__context__ from None
            raise
        except httptools.HttpParserError:
            self._last_answer(Refusal(400, "The request is not valid HTTP."))

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The client has caught up."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    # ---- parser

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._expects = False

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, with all or a part of the target."""
        self._url += url
        self._head_bytes += len(url)
        self._check_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._head_bytes += len(name) + len(value)
        name = name.lower()
        if name in _HEADERS_KEPT:
            self._headers[name] = value
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"content-length" and value.isdigit() and int(value) > BODY_BYTES_MAX:
            self._too_large()
        if self._head_bytes > HEAD_BYTES_MAX:
            self._check_head()

    def _check_head(self) -> None:
        if self._head_bytes > HEAD_BYTES_MAX:
            self._last_answer(Refusal(431, "The head of the request is too large."))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._parser.should_upgrade():
            self._last_answer(Refusal(400, "Upgrades of the protocol are not supported."))
        if self._expects and not self._deaf:
            if self.task is None:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self._continue_due = True

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        if self._deaf:
            return
        self._parts.append(part)
        self._body_bytes += len(part)
        if self._body_bytes > BODY_BYTES_MAX:
            self._too_large()

    def on_message_complete(self) -> None:
        """Called by the parser: the request is whole."""
        if self._deaf:
            return
        self._continue_due = False
        parser, parts = self._parser, self._parts
        path, _, query = self._url.decode("latin-1").partition("?")
        http_11 = parser.get_http_version() == "1.1"
        request = Received(
            parser.get_method().decode("ascii"),
            path,
            query,
            self._headers,
            parts[0] if len(parts) == 1 else b"".join(parts),
            http_11 and parser.should_keep_alive(),
            http_11,
        )
        if self.task is None:
            self._answer(request)
        else:
            self._waiting.append(request)
            if self._reading and len(self._waiting) >= PIPELINED_MAX:
                self._reading = False
                self._transport.pause_reading()

    # ---- answers

    def _answer(self, request: Received) -> None:
        reply, unix_s = self._service.answer(request), self._now_us() // 1_000_000
        if self._resumed is None and perform_at_once(reply, request, self, self._account, unix_s):
            if not request.keep_alive or reply.closes_unannounced:
                self._end()
            return
        exchange = Exchange(reply, request, self, self._account)
        self.task = asyncio.get_running_loop().create_task(self._run(exchange, unix_s))

    async def _run(self, exchange: Exchange, unix_s: int) -> None:
        reusable = False
        try:
            reusable = await exchange.run(unix_s)
        finally:
            self.task = None
            if not reusable:
                self._end()
        self._go_on()

    def _go_on(self) -> None:
        """Answer what waited meanwhile."""
        while self._waiting and self.task is None and not self._transport.is_closing():
            self._answer(self._waiting.popleft())
        if self.task is not None or self._transport.is_closing():
            return
        if self._last_refusal is not None:
            self._refuse_and_linger(self._last_refusal)
            return
        if self._continue_due:
            self._continue_due = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _too_large(self) -> None:
        self._last_answer(Refusal(413, f"The body is larger than {BODY_BYTES_MAX} bytes."))

    def _last_answer(self, refusal: Refusal) -> None:
        """Refuse in HTTP's own terms, after what came before is answered; then close."""
        if self._deaf:
            return
        self._deaf = True
        if self.task is None:
            self._refuse_and_linger(refusal)
        else:
            self._last_refusal = refusal

    def _refuse_and_linger(self, refusal: Refusal) -> None:
        """Closing while the client still sends would reset the connection and could destroy the answer."""
        request = Received("POST", "", "", {}, b"", keep_alive=False, http_11=True)
        reply = Reply(refusal.status, openai.error_body(refusal))
        self.write(head(reply, request, self._now_us() // 1_000_000) + reply.body)
        self._transport.write_eof()
        self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def _end(self) -> None:
        """Close when everything written has left."""
        self._deaf = True
        self._transport.close()

    # ---- what an exchange uses

    def write(self, data: bytes) -> None:
        """Send, sooner or later; nothing if the client is gone."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when the client keeps up with reading."""
        if self._resumed is not None:
            await self._resumed

    def unsent_bytes(self) -> int:
        """What was written and has not left yet."""
        return self._transport.get_write_buffer_size()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._deaf = True
        self._transport.abort()

    def abort(self) -> None:
        """End at once; called when the server stops."""
        self._transport.abort()
