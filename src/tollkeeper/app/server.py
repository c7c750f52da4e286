"""The HTTP listener: accepts connections, ends slow and idle ones, and stops in order.

What is said on a connection is connection.py's matter, what it means the application's.
"""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from tollkeeper.app.accepting import Acceptor
from tollkeeper.app.connection import LINGER_S, Application, Connection, Shared
from tollkeeper.app.systemd import passed_socket
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import ServerSettings

HEADER_TIMEOUT_S: Final = 15.0
"""Longest time from the first byte of a request, or from the connection's start, to the end of its header."""
KEEP_ALIVE_S: Final = 75.0
"""Idle connections are kept longer than SDKs keep them, so that these never meet one that is just being closed."""
SWEEP_S: Final = 0.25
"""How often connections are looked at that have taken too long."""
LAST_REQUEST_S: Final = 1.0
"""How long a stop leaves idle connections open: a client that is between two requests hears `connection: close` in
its next answer, instead of losing a request to a connection that is just being closed."""
CANCEL_S: Final = 5.0
"""How long requests that were cut off at a stop may take to settle."""
BACKLOG: Final = 2048


def bind(host: str, port: int, section: str = "server") -> socket.socket:
    """A socket bound to the address of a section of the settings, or, for [server], the one that systemd passes.

    Raises ConfigurationError saying why not.
    """
    passed = passed_socket() if section == "server" else None
    if passed is not None:
        return passed
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(
            f"{section}.host: {host!r} is not an address to listen on ({error.strerror})"
        ) from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _refusal(error, host, port, section) from None
    return bound


def listen(bound: socket.socket) -> None:
    """Let connections come. Raises ConfigurationError."""
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        raise _refusal(error, *bound.getsockname()[:2]) from None


def _refusal(error: OSError, host: str, port: int, section: str = "server") -> ConfigurationError:
    if section != "server":
        return ConfigurationError(f"{section}.port: cannot listen on {host}:{port}: {error.strerror}")
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
    application: Application,
    bound: socket.socket,
    settings: ServerSettings,
    on_listening: Callable[[], None],
    on_stopping: Callable[[], None] = lambda: None,
    *,
    also: Sequence[tuple[Application, socket.socket]] = (),
) -> None:
    """Serve until SIGINT or SIGTERM, then stop accepting and wait for requests in flight, up to the drain timeout.

    A second signal stops waiting. `on_stopping` is called at the first one. `also` are other applications with
    listeners of their own, each with as many connections.
    """
    loop = asyncio.get_running_loop()
    served = [(Shared(each, settings.connections_max), sock) for each, sock in ((application, bound), *also)]
    stopping, cut_off = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            cut_off.set()
            for shared, _ in served:
                shared.one_left.set()
        else:
            stopping.set()
            on_stopping()

    sweepers = [asyncio.create_task(_sweep(shared)) for shared, _ in served]
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        acceptors = []
        for shared, sock in served:
            listen(sock)
            acceptors.append(Acceptor(sock, partial(Connection, shared)))
            acceptors[-1].start()
        on_listening()
        await stopping.wait()
        for acceptor in acceptors:
            acceptor.stop()
        await asyncio.gather(*(_drain(shared, cut_off, settings.drain_timeout_s) for shared, _ in served))
    finally:
        for sweeper in sweepers:
            sweeper.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _sweep(shared: Shared) -> None:
    """Keep the date current and end what takes too long."""
    while True:
        shared.tick()
        now_s = shared.loop.time()
        for connection in tuple(shared.connections):
            for since, most_s in (
                (connection.header_since, HEADER_TIMEOUT_S),
                (connection.idle_since, KEEP_ALIVE_S),
                (connection.lingers_since, LINGER_S),
            ):
                if since is not None and now_s - since > most_s:
                    connection.abort()
        await asyncio.sleep(SWEEP_S)


async def _drain(shared: Shared, cut_off: asyncio.Event, timeout_s: float) -> None:
    """Let requests in flight end by themselves, then cut them off."""
    shared.stopping = True
    with suppress(TimeoutError):
        async with asyncio.timeout(min(LAST_REQUEST_S, timeout_s)):
            while shared.connections and not cut_off.is_set():
                shared.one_left.clear()
                await shared.one_left.wait()
    for connection in tuple(shared.connections):
        connection.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while shared.tasks and not cut_off.is_set():
                waiting = [asyncio.ensure_future(cut_off.wait()), *shared.tasks]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                waiting[0].cancel()
    for task in tuple(shared.tasks):
        task.cancel()
    if shared.tasks:
        await asyncio.wait(tuple(shared.tasks), timeout=CANCEL_S)
    for connection in tuple(shared.connections):
        connection.close()
