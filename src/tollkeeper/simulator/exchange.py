"""Performs a `Reply` on a connection: heads, chunks, delays, faults, and the entry in the account. Decides nothing.

The entry is made before the last byte is written, and exactly once, also when the exchange is cancelled because the
client is gone.
"""

import asyncio
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Protocol

from tollkeeper.simulator.account import Account, cut_usage
from tollkeeper.simulator.answers import Events
from tollkeeper.simulator.directives import Fault
from tollkeeper.simulator.service import Received, Reply

BATCH_CHUNKS: Final = 256
"""Chunks written at once where no delay is asked for; after each batch the client's backpressure is obeyed."""
STALL_S_MAX: Final = 600.0
FLUSH_GRACE_S: Final = 0.02
"""Before a reset in the middle of a stream: time for what was written to arrive, as a reset may overtake it."""
FLUSH_ROUNDS_MAX: Final = 250
HUGE_HEADER_BYTES: Final = 256 * 1024
_GARBAGE: Final = b"\x00\xff\xfe\x00 this is not HTTP \xde\xad\xbe\xef\r\n\r\n"
_BAD_LINE: Final = b'data: {"id":"broken","choices":[{"delta":{"content":\n\n'
_BEFORE_ANSWER: Final = frozenset({Fault.RESET, Fault.GARBAGE, Fault.STALL})
_IN_STREAM: Final = frozenset({*_BEFORE_ANSWER, Fault.TRUNCATE, Fault.BAD_JSON})
_TAKES_NO_TIME: Final = frozenset({None, Fault.NO_USAGE, Fault.CLOSE, Fault.HUGE_HEADER})
_REASONS: Final = {int(status): status.phrase for status in HTTPStatus}


class Wire(Protocol):
    """The connection as an exchange sees it."""

    def write(self, data: bytes) -> None:
        """Send, sooner or later; nothing if the client is gone."""

    async def drained(self) -> None:
        """Return when the client keeps up with reading."""

    def unsent_bytes(self) -> int:
        """What was written and has not left yet."""

    def reset(self) -> None:
        """End the connection with a TCP reset."""


@lru_cache(maxsize=2)
def _date(unix_s: int) -> str:
    return formatdate(unix_s, usegmt=True)


@lru_cache(maxsize=1024)
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nserver: tollkeeper-simulator\r\n"


def head(reply: Reply, request: Received, unix_s: int) -> bytes:
    """The answer's head."""
    if reply.events is None:
        framing = f"content-type: {reply.media_type}\r\ncontent-length: {len(reply.body)}\r\n"
    elif request.http_11:
        framing = "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    else:
        framing = "content-type: text/event-stream; charset=utf-8\r\n"
    huge = f"x-huge: {'x' * HUGE_HEADER_BYTES}\r\n" if reply.fault is Fault.HUGE_HEADER else ""
    close = "" if request.keep_alive else "connection: close\r\n"
    return (f"{_status_line(reply.status)}date: {_date(unix_s)}\r\n{reply.headers}{framing}{huge}{close}\r\n").encode(
        "latin-1"
    )


def perform_at_once(reply: Reply, request: Received, wire: Wire, account: Account, unix_s: int) -> bool:
    """Send a whole reply now if nothing in it takes time; else do nothing and return False."""
    if reply.delay_s or reply.fault not in _TAKES_NO_TIME:
        return False
    events = reply.events
    if events is not None and (reply.chunk_delay_s or events.count > BATCH_CHUNKS):
        return False
    if reply.caller is not None:
        account.record(reply.caller, reply.usage, status=reply.status)
    if request.method == "HEAD":
        wire.write(head(reply, request, unix_s))
    elif events is None:
        wire.write(head(reply, request, unix_s) + reply.body)
    else:
        content = events.opening + (events.chunks(0, events.count) if events.count else b"") + events.closing
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if request.http_11 else content
        wire.write(head(reply, request, unix_s) + framed)
    return True


class Exchange:
    """One reply that takes time or breaks. `run` returns True if the connection can be used again."""

    def __init__(self, reply: Reply, request: Received, wire: Wire, account: Account) -> None:
        self._reply, self._request, self._wire, self._account = reply, request, wire, account
        self._begun = False
        self._chunks = 0
        self._recorded = reply.caller is None

    def __repr__(self) -> str:
        return f"<Exchange begun={self._begun} chunks={self._chunks} recorded={self._recorded}>"

    async def run(self, unix_s: int) -> bool:
        """Send the reply. Cancelled: the client is gone, and what was produced until now is recorded."""
        reply = self._reply
        try:
            await self._wire.drained()
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            breaks = reply.fault in _BEFORE_ANSWER and (reply.after is None or reply.events is None)
            if breaks:
                await self._break()
                return False
            self._begun = True
            self._wire.write(head(reply, self._request, unix_s))
            whole = self._body() if reply.events is None else await self._stream(reply.events)
            return whole and self._request.keep_alive and not reply.closes_unannounced
        finally:
            self._record(completed=False)

    def _record(self, *, completed: bool) -> None:
        reply, caller = self._reply, self._reply.caller
        if self._recorded or caller is None:
            return
        self._recorded = True
        status = reply.status if self._begun else 0
        usage = reply.usage if self._begun else None
        cut_at = None if completed or reply.events is None else self._chunks
        if usage is not None and cut_at is not None:
            usage = cut_usage(usage, self._chunks)
        self._account.record(caller, usage, status=status, completed=completed, cut_at_chunk=cut_at)

    def _body(self) -> bool:
        truncated = self._reply.fault is Fault.TRUNCATE
        body = b"" if self._request.method == "HEAD" else self._reply.body
        self._record(completed=not truncated)
        self._wire.write(body[: len(body) // 2] if truncated else body)
        return not truncated

    async def _stream(self, events: Events) -> bool:
        reply, fault = self._reply, self._reply.fault
        self._send(events.opening)
        if fault in _IN_STREAM:
            await self._chunks_to(events, min(events.count, 1 if reply.after is None else reply.after))
            if fault is not Fault.BAD_JSON:
                self._record(completed=False)
                await self._break()
                return False
            self._send(_BAD_LINE)
        await self._chunks_to(events, events.count)
        self._record(completed=True)
        self._send(events.closing)
        if self._request.http_11:
            self._wire.write(b"0\r\n\r\n")
        return True

    async def _chunks_to(self, events: Events, end: int) -> None:
        delay_s = self._reply.chunk_delay_s
        while self._chunks < end:
            if delay_s and self._chunks:
                await asyncio.sleep(delay_s)
            upto = min(end, self._chunks + (1 if delay_s else BATCH_CHUNKS))
            self._send(events.chunks(self._chunks, upto))
            self._chunks = upto
            await self._wire.drained()

    async def _break(self) -> None:
        """Do what the fault does to a connection."""
        match self._reply.fault:
            case Fault.RESET:
                await self._flush()
                self._wire.reset()
            case Fault.GARBAGE:
                self._wire.write(_GARBAGE)
            case Fault.STALL:
                await asyncio.sleep(STALL_S_MAX)
            case _:
                pass

    async def _flush(self) -> None:
        if not self._begun:
            return
        for _ in range(FLUSH_ROUNDS_MAX):
            await asyncio.sleep(FLUSH_GRACE_S)
            if not self._wire.unsent_bytes():
                return

    def _send(self, data: bytes) -> None:
        if not data:
            return
        self._wire.write(b"%x\r\n%b\r\n" % (len(data), data) if self._request.http_11 else data)
