"""A TCP proxy before a server of ours on a unix socket, to lose replies and to cut connections."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Self


class Proxy:
    """Forwards to a unix socket. While `swallowing`, what the server says is thrown away."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.swallowing = False
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.close()  # nobody is there
            return
        self._writers += [writer, server_writer]
        self._tasks += [
            asyncio.ensure_future(self._pump(reader, server_writer, replies=False)),
            asyncio.ensure_future(self._pump(server_reader, writer, replies=True)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not (replies and self.swallowing):
                    writer.write(data)
        writer.close()
