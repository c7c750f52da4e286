"""The way to a connected, and for https authenticated, socket: names, addresses, TLS.

Addresses of both families are tried in turn with a head start each (RFC 8305), so that a provider whose IPv6 leads
nowhere is reached all the same. Through a proxy it is the proxy that is looked up, and asked with CONNECT to connect
on; what is authenticated is the provider behind it. Every failure is an UpstreamError with `sent` False. Deadlines
are the caller's.
"""

import asyncio
import os
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Final

from tollkeeper.gateway.egress import Proxy
from tollkeeper.gateway.http1 import Connection
from tollkeeper.gateway.upstream import proxy_refused, unreachable

ADDRESSES_MAX: Final = 8
"""Of one name; more are not tried."""
ADDRESSES_KEPT_S: Final = 10.0
"""How long a name's addresses are used before it is resolved again."""
HEAD_START_S: Final = 0.25
"""RFC 8305, section 5: the delay before the next address is tried as well."""
PROXY_HEAD_BYTES_MAX: Final = 2**14
"""Of a proxy's answer."""
_PROXY_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})[ \r]")

Address = tuple[socket.AddressFamily, int, Any]
"""Family, protocol and socket address."""


class Dialer:
    """Makes connections to one host. `tls` None: plain. `named`: the host as it goes over the wire, for a proxy."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, proxy: Proxy | None = None, named: str = ""
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._proxy, self._authority = proxy, f"{named}:{port}"
        self._addresses: list[Address] = []
        self._resolved_at = 0.0
        self._resolving = asyncio.Lock()

    def __repr__(self) -> str:
        via = "" if self._proxy is None else f" via={self._proxy!r}"
        secure = self._tls is not None
        return f"<Dialer {self._host}:{self._port} tls={secure}{via} addresses={len(self._addresses)}>"

    async def dial(self, make: Callable[[], Connection]) -> Connection:
        """A new connection. Raises UpstreamError."""
        loop = asyncio.get_running_loop()
        try:
            connected = await self._connect(await self._resolve())
            if self._proxy is not None:
                await _tunnel(connected, self._authority, self._proxy)
        except UnicodeError:
            raise unreachable("its name cannot be resolved") from None
        except OSError as error:
            self._addresses = []
            raise unreachable(_reason(error)) from error
        name = self._host.rstrip(".") if self._tls is not None else None
        try:
            _, connection = await loop.create_connection(make, sock=connected, ssl=self._tls, server_hostname=name)
        except OSError as error:
            raise unreachable(_reason(error, tls=self._tls is not None)) from error
        return connection

    async def _resolve(self) -> list[Address]:
        """The addresses, families in turn. One look-up at a time: it takes a thread."""
        async with self._resolving:
            if not self._addresses or time.monotonic() - self._resolved_at > ADDRESSES_KEPT_S:
                its = self._proxy
                host, port = (self._host, self._port) if its is None else (its.host, its.port)
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [(family, protocol, address) for family, _, protocol, _, address in found]
                first = [a for a in addresses if a[0] == addresses[0][0]]
                other = [a for a in addresses if a[0] != addresses[0][0]]
                pairs = zip_longest(first, other)
                self._addresses = [a for pair in pairs for a in pair if a is not None][:ADDRESSES_MAX]
                self._resolved_at = time.monotonic()
            return self._addresses

    async def _connect(self, addresses: list[Address]) -> socket.socket:
        """The first socket to connect. Raises the last OSError if none does."""
        if len(addresses) == 1:
            return await _connect(addresses[0])
        untried, trials = deque(addresses), list[asyncio.Task[socket.socket]]()
        winner: asyncio.Task[socket.socket] | None = None
        failure: BaseException = OSError("no address")
        try:
            while untried or not all(trial.done() for trial in trials):
                if untried:
                    trials.append(asyncio.get_running_loop().create_task(_connect(untried.popleft())))
                running = [trial for trial in trials if not trial.done()]
                head_start_s = HEAD_START_S if untried else None
                done, _ = await asyncio.wait(running, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED)
                for trial in done:
                    error = trial.exception()
                    if error is None:
                        winner = trial
                        return trial.result()
                    failure = error
            raise failure
        finally:
            await _dismiss([trial for trial in trials if trial is not winner])


async def _dismiss(trials: list[asyncio.Task[socket.socket]]) -> None:
    """End the trials that did not win, and close what they came to."""
    for trial in trials:
        trial.cancel()
    for result in await asyncio.gather(*trials, return_exceptions=True):
        if isinstance(result, socket.socket):
            result.close()


async def _connect(address: Address) -> socket.socket:
    family, protocol, where = address
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _tunnel(sock: socket.socket, authority: str, proxy: Proxy) -> None:
    """Have the proxy connect on. Raises UpstreamError or OSError; the socket is closed then."""
    loop = asyncio.get_running_loop()
    own = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.credentials else ""
    try:
        await loop.sock_sendall(sock, f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n{own}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = await loop.sock_recv(sock, PROXY_HEAD_BYTES_MAX)
            if not data:
                raise unreachable("its proxy closed the connection")
            head += data
            if len(head) > PROXY_HEAD_BYTES_MAX:
                raise unreachable("its proxy's answer is not valid HTTP")
        status = _PROXY_STATUS.match(head)
        if status is not None and not status[1].startswith(b"2"):
            raise proxy_refused(int(status[1]))
        # A server behind it says nothing before we do: what comes with the head is nobody's.
        if status is None or head.index(b"\r\n\r\n") + 4 != len(head):
            raise unreachable("its proxy's answer is not valid HTTP")
    except BaseException:
        sock.close()
        raise


def _reason(error: OSError, *, tls: bool = False) -> str:
    """The cause without host and address."""
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its TLS certificate is not valid"
    if tls:
        return "TLS failed"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"
