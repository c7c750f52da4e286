"""`Upstream` on our own connections: a pool for each provider, and the head of the request.

The connection used last is taken first, so that after a burst the others grow old and close. Requests that find none
wait in order. Nothing is ever sent twice: a connection that is found closed before a request is written is passed
over, and what goes wrong after that is the caller's to know. It knows nothing of how answers are read (`http1.py`).
"""

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tollkeeper.domain.errors import Fault, UpstreamError
from tollkeeper.gateway.egress import Proxy, tls_context
from tollkeeper.gateway.http1 import WRITE_BYTES, Connection
from tollkeeper.gateway.http1_dial import Dialer
from tollkeeper.gateway.upstream import (
    NO_HEADERS,
    Body,
    FixedHeaders,
    RequestHeaders,
    UpstreamResponse,
    hung_up,
    no_connection,
    unreachable,
    unusable_url,
)
from tollkeeper.settings import ProviderSettings

WAITERS_MAX: Final = 10_000
"""Requests that wait for a connection to one provider; more are refused at once."""
CLOSE_TIMEOUT_S: Final = 1.0
"""Longest wait for the event loop to let go of closed sockets."""
HEADS_MAX: Final = 64
"""Beginnings of requests kept, by path and fixed headers; there are about as many as endpoints."""
NAMES_MAX: Final = 64
"""Header names known to be good; there are a dozen."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
"""RFC 9110, section 5.1, in lower case as ours are."""
_LINES: Final = re.compile(r"(?:[\x21-\x7e]+: [\t\x20-\x7e]*+\r\n)*+")
"""Names and values in ASCII; no line ends but ours."""
_PATH: Final = re.compile(r"/[\x21-\x7e]*")
_OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "expect"})
"""What frames the request or the connection is nobody else's to say."""


class Pool:
    """The connections to one provider: at most `connections_max`, those being made included. `host` may be empty."""

    def __init__(self, settings: ProviderSettings, dialer: Dialer, host: str, prefix: str) -> None:
        self._settings, self._dialer = settings, dialer
        self._host, self._prefix = host, prefix
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._live: set[Connection] = set()
        self._sockets: set[Connection] = set()
        self._slots = settings.connections_max
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._heads: dict[tuple[str, str, FixedHeaders], str] = {}
        self._names: set[str] = set()
        self._closed = False
        self._all_lost = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"<Pool live={len(self._live)} idle={len(self._idle)} slots={self._slots} waiting={len(self._waiting)}"
            f"{' closed' if self._closed else ''}>"
        )

    async def send(self, path: str, headers: Mapping[str, str], body: Body, method: str = "POST") -> UpstreamResponse:
        """See `Upstream.send`."""
        length = len(body) if isinstance(body, bytes) else sum(map(len, body))
        head = self._head(method, path, headers, length)
        settings, now = self._settings, self._loop.time()
        ends_at = now + settings.total_timeout_s
        connection = self._take()
        if connection is None:
            connection = await self._acquire()
            now = self._loop.time()
        if length > WRITE_BYTES or not isinstance(body, bytes):
            return await connection.exchange(head, body, settings, ends_at)
        until = now + settings.first_byte_timeout_s
        response = connection.ask(head + body, settings, ends_at)
        while not response.status:
            await response.arrival(until)
        return response

    def _head(self, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        """Request line and headers in one piece; nothing that could end a line early gets into it."""
        fixed, own = (headers.fixed, headers.own) if type(headers) is RequestHeaders else (NO_HEADERS, headers)
        start = self._heads.get((method, path, fixed))
        if start is None:
            start = self._start(method, path, fixed)
        return f"{start}{self._lines(own)}content-length: {length}\r\n\r\n".encode("ascii")

    def _start(self, method: str, path: str, fixed: FixedHeaders) -> str:
        if not self._host:
            raise unusable_url()
        if not _PATH.fullmatch(self._prefix + path):
            raise _unsendable()
        start = f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._host}\r\n{self._lines(fixed)}"
        if len(self._heads) < HEADS_MAX:
            self._heads[method, path, fixed] = start
        return start

    def _lines(self, headers: Mapping[str, str]) -> str:
        if len(headers) == 1:
            ((name, value),) = headers.items()
            if name in self._names and value.isascii() and value.isprintable():
                return f"{name}: {value}\r\n"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or not _LINES.fullmatch(lines) or not self._named_well(headers):
            raise _unsendable()
        return lines

    def _named_well(self, headers: Mapping[str, str]) -> bool:
        if headers.keys() <= self._names:
            return True
        if not all(_NAME.fullmatch(name) and name not in _OURS for name in headers):
            return False
        if len(self._names) < NAMES_MAX:
            self._names.update(headers)
        return True

    # ---- taking a connection

    def _take(self) -> Connection | None:
        """An idle one. Those that turn out closed are forgotten."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.close()
        return None

    async def _acquire(self) -> Connection:
        """A new one, or the next that becomes free. Raises UpstreamError, with `sent` False."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                while True:
                    if self._closed:
                        raise unreachable("the gateway stops")
                    if self._slots > 0:
                        self._slots -= 1
                        return await self._dial()
                    connection = await self._wait()
                    if connection is None:
                        return await self._dial()
                    if connection.usable():
                        return connection
                    connection.close()
        except TimeoutError:
            raise no_connection() from None

    async def _dial(self) -> Connection:
        """Make a connection, for a slot that is the caller's already."""
        connection: Connection | None = None
        try:
            connection = await self._dialer.dial(lambda: Connection(self, self._loop))
            if self._closed or not connection.usable():
                connection.close()
                raise unreachable("it closed the connection at once")
            self._live.add(connection)
            return connection
        finally:
            if connection not in self._live:
                self._free_slot()

    async def _wait(self) -> Connection | None:
        """A connection that became free, or None with the right to make one."""
        if len(self._waiting) >= WAITERS_MAX:
            raise no_connection()
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(waiter)
            elif waiter.exception() is None:  # it came too late
                connection = waiter.result()
                if connection is None:
                    self._free_slot()
                elif connection.usable():
                    self.idle(connection)
            raise

    def _next_waiter(self) -> "asyncio.Future[Connection | None] | None":
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _free_slot(self) -> None:
        waiter = self._next_waiter()
        if waiter is None:
            self._slots += 1
        else:
            waiter.set_result(None)

    # ---- what connections tell

    def idle(self, connection: Connection) -> None:
        """See `http1.Owner`."""
        waiter = self._next_waiter() if self._waiting else None
        if waiter is None:
            self._idle.append(connection)
        else:
            waiter.set_result(connection)

    def closed(self, connection: Connection) -> None:
        """See `http1.Owner`."""
        if connection in self._live:
            self._live.remove(connection)
            with contextlib.suppress(ValueError):
                self._idle.remove(connection)
            self._free_slot()

    def made(self, connection: Connection) -> None:
        """See `http1.Owner`."""
        self._sockets.add(connection)

    def lost(self, connection: Connection) -> None:
        """See `http1.Owner`."""
        self._sockets.discard(connection)
        if not self._sockets:
            self._all_lost.set()

    async def close(self) -> None:
        """End all exchanges and wait until the sockets are closed."""
        self._closed = True
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(unreachable("the gateway stops"))
        for connection in tuple(self._sockets):
            connection.fail(hung_up())
        if self._sockets:
            self._all_lost.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._all_lost.wait()


class Http1Upstream:
    """`Upstream` of this file. Must be made inside a running event loop. Providers without a proxy may be left out of
    `proxies`."""

    def __init__(
        self, providers: Mapping[str, ProviderSettings], proxies: Mapping[str, Proxy | None] | None = None
    ) -> None:
        urls = {name: urlsplit(provider.base_url) for name, provider in providers.items()}
        contexts: dict[str | None, ssl.SSLContext] = {}
        self._pools: dict[str, Pool] = {}
        for name, url in urls.items():
            host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
            named = f"[{host}]" if ":" in host else _ascii(host)
            tls, ca_file = None, providers[name].tls_ca_file
            if url.scheme == "https":
                tls = contexts.get(ca_file)
                if tls is None:
                    tls = contexts[ca_file] = tls_context(ca_file)
            dialer = Dialer(host, port, tls, (proxies or {}).get(name), named)
            shown = named if url.port is None or not named else f"{named}:{port}"
            prefix = quote(url.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
            self._pools[name] = Pool(providers[name], dialer, shown, prefix)

    def __repr__(self) -> str:
        return f"<Http1Upstream {self._pools!r}>"

    def send(
        self, provider: str, path: str, headers: Mapping[str, str], body: Body, method: str = "POST"
    ) -> Coroutine[Any, Any, UpstreamResponse]:
        """See `Upstream.send`."""
        return self._pools[provider].send(path, headers, body, method)

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.close()


def _ascii(host: str) -> str:
    """The name as it goes over the wire; empty if it is none."""
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


def _unsendable() -> UpstreamError:
    return UpstreamError(Fault.INTERNAL, "The request's headers cannot be sent.", sent=False)
