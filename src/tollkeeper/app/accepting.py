"""Accepts connections from a listening socket that other processes may accept from, too; one in a turn of the loop,
unless turns are long.

An event loop's own server accepts all that wait, so that of workers that share a socket the first to wake takes
everything: of 8 connections that came at once one of two workers got all 8. Accepting one a turn, both get about
half, and whoever is busy leaves them to whoever is not. A socket of each worker's own (SO_REUSEPORT) is spread by a
hash instead, blindly, and loses what waits in it when its worker ends.

A turn takes as long as everything that is ready in it. Under load one a turn would let those who come late wait for
seconds, the longer the more came before them; so whatever waited through a turn is accepted at a rate instead, in
which the turns of a worker that is not busy still have room for one. Knows nothing of what is said on a connection.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Final

from tollkeeper.observability.logging import logger

ACCEPT_EACH_S: Final = 0.0002
"""Of the connections that wait through a turn of the loop one more is accepted for each such part of it."""
ACCEPTED_MAX: Final = 64
"""Accepted in one turn at most."""
PAUSE_S: Final = 0.5
"""How long nothing is accepted after the system could give us no descriptor or memory for one more connection."""


class Acceptor:
    """Accepts from `start` to `stop`. Closes nothing: the socket is the caller's, connections belong to protocols."""

    def __init__(self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._socket, self._make_protocol = listening, make_protocol
        self._loop = asyncio.get_running_loop()
        self._handing_over: set[asyncio.Task[object]] = set()
        self._backlog = select.poll()
        self._waiting_since: float | None = None  # since when there is known to be a backlog
        self._resume: asyncio.TimerHandle | None = None
        self._log = logger("server")

    def start(self) -> None:
        """Begin, or go on."""
        self._resume = self._waiting_since = None
        self._socket.setblocking(False)
        self._backlog.register(self._socket, select.POLLIN)
        self._loop.add_reader(self._socket, self._accept)

    def stop(self) -> None:
        """What waits in the socket is left to whoever else accepts from it."""
        self._loop.remove_reader(self._socket)
        if self._resume is not None:
            self._resume.cancel()

    def _accept(self) -> None:
        since, self._waiting_since = self._waiting_since, None
        more = 0 if since is None else int((self._loop.time() - since) / ACCEPT_EACH_S)
        for _ in range(1 + min(more, ACCEPTED_MAX - 1)):
            if not self._accept_one():
                return
        if self._backlog.poll(0):
            self._waiting_since = self._loop.time()

    def _accept_one(self) -> bool:
        """False: none is there, or none can be had."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker was faster, or the client has gone again
        except OSError as error:
            self._log.error("accepting_paused", why=error.strerror)
            self._loop.remove_reader(self._socket)
            self._resume = self._loop.call_later(PAUSE_S, self.start)
            return False
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._hand_over(connection))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)
        return True

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:
            connection.close()  # it broke meanwhile
