"""A provider that streams at a given pace, and says in each chunk when it was written. A process of its own.

`python -m benchmarks.pacer PORT`. A chat request's text names the pace: `[[pace every_ms=20 chunks=100]]`. The time
is that of the machine's monotonic clock, so a reader on the same machine knows how long a chunk was on its way.
"""

import asyncio
import re
import sys
import time
from typing import Any, Final

import uvloop

HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BEFORE: Final = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1764000000,'
    b'"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":" '
)
AFTER: Final = b'"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
USAGE: Final = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}}\n\n'
DONE: Final = b"data: [DONE]\n\n"
PACE: Final = re.compile(rb"\[\[pace every_ms=(\d+) chunks=(\d+)\]\]")
LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def framed(data: bytes) -> bytes:
    """One chunk of the transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Pacer(asyncio.Protocol):
    """One connection: a request, its stream, the next request."""

    def __init__(self) -> None:
        self._got = b""
        self._left = self._made = 0
        self._every_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, mark, body = self._got.partition(b"\r\n\r\n")
        if not mark:
            return
        length = LENGTH.search(head)
        if len(body) < (0 if length is None else int(length[1])):
            return
        self._got = b""
        pace = PACE.search(body)
        every_ms, chunks = (20, 10) if pace is None else (int(pace[1]), int(pace[2]))
        self._every_s, self._left, self._made = every_ms / 1000, chunks, 0
        self._transport.write(HEAD)
        self._timer = self._loop.call_later(self._every_s, self._next)

    def _next(self) -> None:
        self._left -= 1
        self._made += 1
        event = framed(b"%b%d%b" % (BEFORE, time.monotonic_ns(), AFTER))
        if self._left > 0:
            self._timer = self._loop.call_later(self._every_s, self._next)
        else:
            event += framed(USAGE % (self._made, 12 + self._made)) + framed(DONE) + b"0\r\n\r\n"
        self._transport.write(event)


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Pacer, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
