"""Accepts connections from a listening socket that other processes may accept from, too; one in a turn of the loop.

An event loop's own server accepts all that wait, so that of workers that share a socket the first to wake takes
everything: of 8 connections that came at once one of two workers got all 8. Accepting one a turn, both get about
half, and whoever is busy leaves them to whoever is not. A socket of each worker's own (SO_REUSEPORT) is spread by a
hash instead, blindly, and loses what waits in it when its worker ends. Knows nothing of what is said on a connection.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from tollkeeper.observability.logging import logger

PAUSE_S: Final = 0.5
"""How long nothing is accepted after the system could give us no descriptor or memory for one more connection."""


class Acceptor:
    """Accepts from `start` to `stop`. Closes nothing: the socket is the caller's, connections belong to protocols."""

    def __init__(self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._socket, self._make_protocol = listening, make_protocol
        self._loop = asyncio.get_running_loop()
        self._handing_over: set[asyncio.Task[object]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._log = logger("server")

    def start(self) -> None:
        """Begin, or go on."""
        self._resume = None
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._accept)

    def stop(self) -> None:
        """What waits in the socket is left to whoever else accepts from it."""
        self._loop.remove_reader(self._socket)
        if self._resume is not None:
            self._resume.cancel()

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone again
        except OSError as error:
            self._log.error("accepting_paused", why=error.strerror)
            self._loop.remove_reader(self._socket)
            self._resume = self._loop.call_later(PAUSE_S, self.start)
            return
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._hand_over(connection))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:
            connection.close()  # it broke meanwhile
