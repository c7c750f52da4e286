"""The HTTP listener: uvicorn, with the bounds that it lacks, around one ASGI application.

Knows nothing of what the application does.
"""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.observability.logging import logger
from tollkeeper.settings import ServerSettings

HEADER_BYTES_MAX: Final = 65_536
"""Target and header fields of one request together; more closes the connection."""
HEADER_TIMEOUT_S: Final = 15.0
"""Longest time from the first byte of a request, or from the connection's start, to the end of its header."""
KEEP_ALIVE_S: Final = 75
"""Idle connections are kept longer than SDKs keep them, so that these never meet one that is just being closed."""
BACKLOG: Final = 2048


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 with a bound on a request's header, and the start of its arrival for a deadline."""

    header_since_s: float | None = None
    header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.header_since_s = self.loop.time()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.header_since_s = self.loop.time()
        self.header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.header_since_s = None
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self.header_bytes += size
        if self.header_bytes > HEADER_BYTES_MAX:
            raise ValueError("header too large")  # llhttp turns it into a parse error: 400 and the connection closed


class Server(uvicorn.Server):
    """Calls `on_listening` once connections are accepted; leaves signals alone; closes slow connections."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._close_slow(asyncio.get_running_loop().time() - HEADER_TIMEOUT_S)
        return await super().on_tick(counter)

    def _close_slow(self, since_s: float) -> None:
        for connection in list(self.server_state.connections):
            started_s = getattr(connection, "header_since_s", None)
            if started_s is not None and started_s < since_s:
                connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class LogBridge(logging.Handler):
    """Brings what uvicorn reports, tracebacks of the application included, into our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = self.format(record).partition("\n")[2] or None
        logger("server").error("listener_error", message=record.getMessage(), trace=trace)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything else is started. Raises ConfigurationError saying why not."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(f"server.host: {host!r} is not an address to listen on ({error.strerror})") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _refusal(error, host, port) from None
    return bound


def _refusal(error: OSError, host: str, port: int) -> ConfigurationError:
    reasons = {
        errno.EADDRINUSE: f"port {port} of {host} is in use; choose another with --port or TOLLKEEPER_PORT",
        errno.EACCES: f"port {port} needs privileges; choose one above 1023 with --port or TOLLKEEPER_PORT",
        errno.EADDRNOTAVAIL: f"{host} is not an address of this machine; set --host or TOLLKEEPER_HOST",
    }
    return ConfigurationError(reasons.get(error.errno or 0, f"cannot listen on {host}:{port}: {error.strerror}"))


def url_of(bound: socket.socket) -> str:
    """The address a client on this machine uses: `http://127.0.0.1:8080`."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run(
    application: Any,
    bound: socket.socket,
    settings: ServerSettings,
    on_listening: Callable[[], None],
    on_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then stop accepting and wait for requests in flight, up to the drain timeout.

    A second signal stops waiting. `on_stopping` is called at the first one.
    """
    config = uvicorn.Config(
        application,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=settings.connections_max,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    server = Server(config, on_listening)
    bridge = LogBridge()
    logging.getLogger("uvicorn.error").addHandler(bridge)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
        else:
            server.should_exit = True
            on_stopping()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await server.serve(sockets=[bound])
    except OSError as error:
        if server.started:
            raise
        raise _refusal(error, *bound.getsockname()[:2]) from None
    finally:
        logging.getLogger("uvicorn.error").removeHandler(bridge)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
