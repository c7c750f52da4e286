"""The way to a connected, and for https authenticated, socket: names, addresses, TLS.

Addresses of both families are tried in turn with a head start each (RFC 8305), so that a provider whose IPv6 leads
nowhere is reached all the same. Proxies and their variables are not read. Every failure is an UpstreamError with
`sent` False. Deadlines are the caller's.
"""

import asyncio
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Final

from tollkeeper.gateway.http1 import Connection
from tollkeeper.gateway.upstream import unreachable

ADDRESSES_MAX: Final = 8
"""Of one name; more are not tried."""
ADDRESSES_KEPT_S: Final = 10.0
"""How long a name's addresses are used before it is resolved again."""
HEAD_START_S: Final = 0.25
"""RFC 8305, section 5: the delay before the next address is tried as well."""

Address = tuple[socket.AddressFamily, int, Any]
"""Family, protocol and socket address."""


def tls_context() -> ssl.SSLContext:
    """Certificates and names are checked against the system's authorities, or those of `SSL_CERT_FILE`."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Dialer:
    """Makes connections to one host. `tls` None: plain."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._addresses: list[Address] = []
        self._resolved_at = 0.0
        self._resolving = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Dialer {self._host}:{self._port} tls={self._tls is not None} addresses={len(self._addresses)}>"

    async def dial(self, make: Callable[[], Connection]) -> Connection:
        """A new connection. Raises UpstreamError."""
        loop = asyncio.get_running_loop()
        try:
            connected = await self._connect(await self._resolve())
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
                found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
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


def _reason(error: OSError, *, tls: bool = False) -> str:
    """The cause without host and address."""
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its TLS certificate is not valid"
    if tls:
        return "TLS failed"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"
