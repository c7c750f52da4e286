"""Keeps an exchange's bodies for its log record, by reference and within bounds. Off: no object, no cost.

What passes through is never changed or waited for here. A stream is kept as the provider's raw events, whatever the
client saw of them, and put together later as the answer that it would have been without streaming.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from tollkeeper.domain.bodies import SLACK_BYTES, Body, BodyLogging, ByteBudget, CapturedBodies
from tollkeeper.domain.policy import Principal
from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.dialects import Endpoint, reassemble
from tollkeeper.settings import LogSettings

CAPTURED_BYTES_MAX: Final = 64 * 2**20
"""Kept for all exchanges in flight and all records being redacted; above it bodies are cut."""
RAW_PER_TEXT: Final = 32
"""A stream's events are so many times longer than the text in them, or more."""
STREAM_BYTES_MAX: Final = 4 * 2**20
NO_BODIES_HEADER: Final = b"x-tollkeeper-log-bodies"
"""`off`: this request's bodies are not for the log, whatever its key says. Clients cannot turn them on."""

OFF: Final = BodyLogging.OFF
_decode = msgspec.json.Decoder().decode


class Capture:
    """The bodies of one exchange."""

    __slots__ = ("_budget", "_bytes_max", "_chunks", "_cut", "_endpoint", "_request", "_room", "_stream", "_taken")

    def __init__(self, budget: ByteBudget, bytes_max: int, endpoint: Endpoint, *, stream: bool = False) -> None:
        self._budget, self._bytes_max, self._endpoint = budget, bytes_max, endpoint
        self._request: bytes | None = None
        self._chunks: list[bytes] = []
        self._cut = [False, False]
        self._stream = stream
        self._room = 0
        self._taken = 0

    def request(self, body: bytes) -> None:
        """The request's body as the client sent it."""
        self._request = self._kept(body, self._bytes_max + SLACK_BYTES, 0)

    def response(self, body: bytes) -> None:
        """A whole answer, the provider's or our own; the last one counts unless a stream has begun."""
        if not self._chunks or not self._stream:
            self._stream = False
            self._chunks = [self._kept(body, self._bytes_max + SLACK_BYTES, 1)]

    def again(self) -> None:
        """Another attempt follows: what the last one answered is not what the client gets."""
        self._chunks, self._stream = [], False
        self._cut[1] = False

    def streams(self) -> None:
        """The answer is a stream, of which `chunk` will tell."""
        self._stream = True
        self._room = min(STREAM_BYTES_MAX, self._bytes_max * RAW_PER_TEXT)

    def chunk(self, data: bytes) -> None:
        """Part of a stream, as the provider sent it."""
        if self._room <= 0:
            self._cut[1] = True
            return
        kept = self._kept(data, self._room, 1)
        self._room -= len(data)
        if kept:
            self._chunks.append(kept)

    def _kept(self, data: bytes, room: int, side: int) -> bytes:
        if len(data) > room:
            data = data[:room]
            self._cut[side] = True
        if not self._budget.take(len(data)):
            self._cut[side] = True
            return b""
        self._taken += len(data)
        return data

    def captured(self) -> CapturedBodies:
        """What was kept, for the log. Nothing is kept from here on."""
        return CapturedBodies(self._bytes_max, self._read, self._done)

    def _done(self) -> None:
        self._budget.give(self._taken)
        self._taken = 0
        self._request, self._chunks = None, []

    def _read(self) -> tuple[Body | None, Body | None]:
        request = None if self._request is None else Body(_value(self._request), self._cut[0])
        raw = b"".join(self._chunks)
        if not raw and not self._cut[1]:
            return request, None
        return request, Body(reassemble(self._endpoint, raw) if self._stream else _value(raw), self._cut[1])


def _value(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


def capturing(settings: LogSettings, budget: ByteBudget) -> Callable[[Client, Principal, Endpoint], Capture | None]:
    """How an exchange is captured, by its key's policy, else by the settings; None if it is not."""
    sizes = {BodyLogging.TRUNCATED: settings.body_truncated_bytes, BodyLogging.FULL: settings.body_bytes_max}
    default = BodyLogging(settings.bodies)

    def capture(client: Client, principal: Principal, endpoint: Endpoint) -> Capture | None:
        mode = principal.log_bodies or default
        if mode is OFF or client.header(NO_BODIES_HEADER).lower() == b"off":
            return None
        return Capture(budget, sizes[mode], endpoint)

    return capture
