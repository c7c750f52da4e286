"""What a supervisor and a worker say to each other over a pair of sockets: either may ask the other about a topic.

A message is a length and MessagePack. Unknown topics get an empty answer, so that a supervisor and workers of
different releases get on, as they do while a new release is rolled out. The channel's end is the other one's death.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from tollkeeper.domain.errors import TollkeeperError, Unavailable

METRICS: Final = "metrics"
"""Metrics in Prometheus' text format: a worker's own, or, asked of the supervisor, of all."""
SYNC: Final = "sync"
"""Write spend to the database now; asked of the supervisor: all others."""
READY: Final = "ready"
"""Told to the supervisor: this worker accepts connections."""
ALIVE: Final = "alive"
"""Asked of a worker, which shows by any answer that its event loop runs."""
MESSAGE_BYTES_MAX: Final = 64 * 2**20
ASKED_MAX: Final = 64
"""Questions under way from one side; more are refused."""
_LENGTH: Final = struct.Struct(">I")

GONE: Final = "the process at the other end of the channel is gone"

Answer = Callable[[], Awaitable[bytes]]


class Gone(Unavailable):
    """The process at the other end has closed its end, or died."""


class _Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    number: int
    topic: str


class _Told(msgspec.Struct, frozen=True, array_like=True, tag="told"):
    number: int
    content: bytes
    error: str = ""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Ask | _Told).decode


class Channel:
    """One end. `topics` says what the other side may ask; each answer is made in a task of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.topics: dict[str, Answer] = {}
        self._reader, self._writer = reader, writer
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._ended = False

    @classmethod
    async def over(cls, end: socket.socket, topics: Mapping[str, Answer] | None = None) -> "Channel":
        """A channel over one end of a socket pair, which belongs to it from now on."""
        channel = cls(*await asyncio.open_connection(sock=end))
        channel.topics.update(topics or {})
        return channel

    async def run(self) -> None:
        """Answer until the other side is gone; whoever still waits for an answer then gets `Gone`."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MESSAGE_BYTES_MAX:
                    return
                message = _decode(await self._reader.readexactly(length))
                if isinstance(message, _Told):
                    self._told(message)
                elif len(self._answering) < ASKED_MAX:
                    task = asyncio.create_task(self._answer(message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            return
        finally:
            self.close()

    def close(self) -> None:
        """Say nothing more."""
        self._ended = True
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(Gone(GONE))
        for task in self._answering:
            task.cancel()
        self._writer.close()

    async def ask(self, topic: str, timeout_s: float) -> bytes:
        """The other side's answer. Raises `Gone`; `Unavailable` if it is too slow, or its answer is a failure."""
        if self._ended:
            raise Gone(GONE)
        if len(self._asked) >= ASKED_MAX:
            raise Unavailable("the process at the other end of the channel does not answer")
        self._number = number = self._number + 1
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(_Ask(number, topic))
            async with asyncio.timeout(timeout_s):
                content: bytes = await answer
                return content
        except TimeoutError:
            raise Unavailable(f"no answer about {topic} within {timeout_s:g} s") from None
        finally:
            del self._asked[number]

    def _told(self, message: _Told) -> None:
        waiting = self._asked.get(message.number)
        if waiting is None or waiting.done():
            return  # nobody waits any more
        if message.error:
            waiting.set_exception(Unavailable(message.error))
        else:
            waiting.set_result(message.content)

    async def _answer(self, message: _Ask) -> None:
        answer = self.topics.get(message.topic)
        try:
            told = _Told(message.number, b"" if answer is None else await answer())
        except TollkeeperError as error:
            told = _Told(message.number, b"", str(error) or type(error).__name__)
        self._send(told)

    def _send(self, message: _Ask | _Told) -> None:
        data = _encode(message)
        if not self._ended:
            self._writer.write(_LENGTH.pack(len(data)) + data)
