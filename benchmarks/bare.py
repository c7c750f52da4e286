"""The limit: what asyncio and hiredis can do at best. One protocol, one write a tick, replies resolve in order.

No reconnection, no deadline, no TLS, no redirection: to compare with, not to use.
"""

import asyncio
import hashlib
from collections import deque
from typing import Any

import hiredis

from tollkeeper.governance.scripts import source


class Bare(asyncio.Protocol):
    """Connect with `open`."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: Any  # uvloop's is none of asyncio's classes

    @classmethod
    async def open(cls, path: str) -> "Bare":
        _, protocol = await asyncio.get_running_loop().create_unix_connection(cls, path)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future = self._waiting.popleft()
            if isinstance(reply, hiredis.ReplyError):
                future.set_exception(RuntimeError(str(reply)))
            else:
                future.set_result(reply)

    def send(self, *parts: Any) -> "asyncio.Future[Any]":
        """The reply to come."""
        future = self._loop.create_future()
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(parts))
        self._waiting.append(future)
        return future

    def _flush(self) -> None:
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    async def load(self, script: str) -> str:
        """The digest of one of our scripts, loaded."""
        text = source(script)
        await self.send("SCRIPT", "LOAD", text)
        return hashlib.sha1(text.encode()).hexdigest()

    def close(self) -> None:
        """At once."""
        self._transport.abort()
