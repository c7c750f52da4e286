"""An HTTP proxy that goes wrong in the ways networks and stores do, one request a connection."""

import asyncio
import contextlib
from collections.abc import Callable
from enum import StrEnum


class Fault(StrEnum):
    """What happens to a request."""

    NONE = "none"
    ERROR_500 = "500"
    ERROR_503 = "503"
    FALSE_412 = "put 412"
    """A PUT is refused as if the object were there, which it is not."""
    SLOW_PUT = "put slow"
    """The body of a PUT takes longer than the client waits; it reaches the server all the same, late."""
    SILENT = "silent"
    """Taken, never answered."""
    CUT_PUT_REPLY = "put reply cut"
    """A PUT reaches the server; its answer never reaches the client."""
    CUT_PUT_BODY = "put body cut"
    """Half of a PUT reaches the server, then both sides are cut."""


_ANSWERS = {
    Fault.ERROR_500: b"500 Oops",
    Fault.ERROR_503: b"503 Slow Down",
    Fault.FALSE_412: b"412 Precondition Failed",
}


class FaultyProxy:
    """Listens on `port`, forwards to the server on `upstream_port`. `fault` may be changed at any time."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.fault = Fault.NONE
        self.delay_s = 0.0
        self.slow_s = 0.5
        self.on_put_body: Callable[[], None] | None = None
        """Called when half of a PUT's body has come."""
        self.requests: list[str] = []
        """Their methods."""
        self.targets: list[str] = []
        self.faults = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> "FaultyProxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        method = lines[0].split(b" ")[0].decode()
        self.requests.append(method)
        self.targets.append(lines[0].split(b" ")[1].decode())
        lengths = [int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        body = await reader.readexactly(length // 2)
        if method == "PUT" and self.on_put_body is not None:
            self.on_put_body()
        body += await reader.readexactly(length - length // 2)
        await asyncio.sleep(self.delay_s)
        fault = self.fault
        if fault is not Fault.NONE and (method == "PUT" or not fault.startswith("put")):
            self.faults += 1
        else:
            fault = Fault.NONE
        if fault is Fault.SILENT:
            await asyncio.sleep(3600)
        if fault in _ANSWERS:
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % _ANSWERS[fault])
            await writer.drain()
            return
        if fault is Fault.SLOW_PUT:
            await asyncio.sleep(self.slow_s)
        if fault is Fault.CUT_PUT_BODY:
            body = body[: len(body) // 2]
        request = b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body
        await self._forward(request, writer, answer=fault is Fault.NONE, wait=fault is not Fault.CUT_PUT_BODY)

    async def _forward(self, request: bytes, writer: asyncio.StreamWriter, *, answer: bool, wait: bool) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        try:
            up_writer.write(request)
            await up_writer.drain()
            while wait and (data := await up_reader.read(65536)):
                if answer:
                    writer.write(data)
                    await writer.drain()
        finally:
            up_writer.close()
