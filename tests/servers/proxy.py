"""A TCP proxy before a server of ours on a unix socket, to lose replies and to cut connections."""

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import Self


class Proxy:
    """Forwards to a unix socket. While `swallowing`, what the server says is thrown away; `swallow_from` begins with
    a certain reply, so that this one is lost whatever else happens.

    After `hold_back` what clients say on the connections there are is kept, also beyond a `cut`, and reaches the
    server at `release`: late, as from a network that had it all the time.

    `heard` and `lost` count the bytes that came from clients, and those of the server that were thrown away.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.swallowing = False
        self.port = self.heard = self.lost = 0
        self._awaited: tuple[re.Pattern[bytes], asyncio.Future[None]] | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._late: dict[asyncio.StreamWriter, list[bytes]] = {}
        self._to_server: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.release()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self) -> int:
        """Close every connection; how many there were."""
        open_ones = [writer for writer in self._writers if not writer.is_closing() and writer not in self._late]
        for writer in open_ones:
            writer.close()
        self._writers.clear()
        return len(open_ones) // 2

    @property
    def kept(self) -> int:
        """Bytes held back."""
        return sum(len(data) for kept in self._late.values() for data in kept)

    def swallow_from(self, reply: re.Pattern[bytes]) -> "asyncio.Future[None]":
        """Swallow what the server says from the next read on in which `reply` is found; done once that is lost."""
        lost = asyncio.get_running_loop().create_future()
        self._awaited = reply, lost
        return lost

    def hold_back(self) -> None:
        """Keep what comes from the clients that are connected now."""
        self._late = {writer: [] for writer in self._to_server}

    def release(self) -> None:
        """Let the server have what was kept, and close."""
        for writer, kept in self._late.items():
            writer.write(b"".join(kept))
            writer.close()
        self._late = {}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.close()  # nobody is there
            return
        self._writers += [writer, server_writer]
        self._to_server.add(server_writer)
        self._tasks += [
            asyncio.ensure_future(self._pump(reader, server_writer, replies=False)),
            asyncio.ensure_future(self._pump(server_reader, writer, replies=True)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if replies:
                    self._look_for_reply(data)
                else:
                    self.heard += len(data)
                if writer in self._late:
                    self._late[writer].append(data)
                elif not (replies and self.swallowing):
                    writer.write(data)
                else:
                    self.lost += len(data)
        self._to_server.discard(writer)
        if writer not in self._late:
            writer.close()

    def _look_for_reply(self, data: bytes) -> None:
        if self._awaited is not None and self._awaited[0].search(data):
            self.swallowing = True
            self._awaited[1].set_result(None)
            self._awaited = None
