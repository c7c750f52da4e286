"""Meters a stream of server-sent events as it passes: bytes in, bytes out, no IO.

Events are forwarded whole, so that an error can be told between two of them at any time. Only events that can hold
usage, an error or the end are decoded; all others are looked through for a few words and passed as they came. The
one event that may be taken out is the usage chunk we asked a chat provider for and the client did not.

However a stream is cut into chunks, the same bytes come out and the same usage is found. Three rules make that so:
line ends before an event are passed on at once and belong to no event; a carriage return at the very end is held,
for a line feed may follow; and an event above `EVENT_BYTES_MAX` is passed unread wherever it was cut.
"""

import re
from typing import Final

import msgspec

from tollkeeper.domain.usage import NO_USAGE, Usage
from tollkeeper.gateway.dialects.answer import (
    Answer,
    ReportedUsage,
    Served,
    cost_of,
    merged,
    parse_served,
    parse_string,
    parse_usage,
    parts_of,
    usage_of,
)
from tollkeeper.gateway.dialects.base import ABSENT, Endpoint
from tollkeeper.gateway.dialects.kept_answer import Produced, item_ids

EVENT_BYTES_MAX: Final = 2**20
"""Largest event that is held back and read."""
IMAGE_EVENT_BYTES_MAX: Final = 32 * 2**20
"""The same for events that hold an image."""
IMAGE_EVENTS: Final = ("image_generation.completed", "image_edit.completed")
ERROR_CHARS_MAX: Final = 1000
"""Of a provider's error message."""

_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_LINE_ENDS: Final = re.compile(rb"[\r\n]+")
_HAS_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_CR: Final = 13
_FINAL_TYPES: Final = frozenset(
    (
        *("response.completed", "response.incomplete", "response.failed", "message_stop"),
        *("transcript.text.done", "speech.audio.done", "image_generation.completed", "image_edit.completed"),
        "transcription.done",  # Mistral
    )
)
_WORDS: Final = {
    "chat": (b"[DONE]", b'"error"'),
    "completions": (b"[DONE]", b'"error"'),
    "embeddings": (b"[DONE]", b'"error"'),
    "responses": (
        b'"response.created"',
        b'"response.completed"',
        b'"response.incomplete"',
        b'"response.failed"',
        b'"error"',
    ),
    "messages": (b'"message_stop"', b'"error"'),
    "transcriptions": (b'"transcript.text.done"', b'"transcription.done"', b'"error"'),
    "speech": (b'"speech.audio.done"', b'"error"'),
    "images": (b'"image_generation.completed"', b'"error"'),
    "image_edits": (b'"image_edit.completed"', b'"error"'),
}
"""An event with none of these and no usage is of no interest."""


class _Inner(msgspec.Struct):
    """`response` of the Responses format, `message` of Anthropic's."""

    usage: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    tool_usage: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    id: msgspec.Raw = ABSENT


class _Event(msgspec.Struct):
    """What any of the formats may say in one event."""

    type: str | None = None
    usage: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    choices: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    response: _Inner | None = None
    message: _Inner | str | None = None
    error: msgspec.Raw = ABSENT
    size: msgspec.Raw = ABSENT
    quality: msgspec.Raw = ABSENT


class _Bare(msgspec.Struct):
    """An event whose other fields are of unknown kinds."""

    usage: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    choices: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT


_decode_bare = msgspec.json.Decoder(_Bare).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_text = msgspec.json.Decoder().decode


class StreamMeter:
    """One stream. `keep_usage_chunk`: the client asked for it, so it stays.

    `usage`: None until the provider has reported the whole; Anthropic's stream begins with a part, which is not it.
    `produced`: what it leaves at the provider. `complete`: the format's last event was seen. `error`: the message of
    an error event, if one came. `unread`: events passed unread because of their size. All grow as the stream is fed.
    """

    __slots__ = (
        "_buffer",
        "_drawn",
        "_endpoint",
        "_event_bytes_max",
        "_pass",
        "_reported",
        "_searched",
        "_served",
        "_strip",
        "_whole",
        "_words",
        "complete",
        "error",
        "images",
        "model",
        "produced",
        "unread",
    )

    def __init__(self, endpoint: Endpoint, *, keep_usage_chunk: bool = True) -> None:
        self._endpoint = endpoint
        self._strip = not keep_usage_chunk and endpoint.name in ("chat", "completions")
        self._words = _WORDS[endpoint.name]
        self._event_bytes_max = (
            IMAGE_EVENT_BYTES_MAX if endpoint.name in ("images", "image_edits") else EVENT_BYTES_MAX
        )
        self._buffer = bytearray()
        self._searched = 0
        self._pass = False
        self._reported: ReportedUsage | None = None
        self._served = Served()
        self._whole = False
        self.complete = False
        self.images = 0
        self._drawn: tuple[str, str] | None = None
        self.error: str | None = None
        self.model: str | None = None
        self.produced: Produced | None = None
        self.unread = 0

    @property
    def usage(self) -> Usage | None:
        """What the provider reported last, if it is the whole."""
        usage = usage_of(self._endpoint, self._reported, self._served) if self._whole else None
        if self.images:
            usage = msgspec.structs.replace(usage or NO_USAGE, images=self.images)
        return usage

    @property
    def answer(self) -> Answer:
        """Usage, model and stated cost as of now."""
        parts = parts_of(self._endpoint, self._reported, self._served)
        return Answer(self.usage, self.model, cost_of(self._reported), parts, self._drawn)

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they come; the bytes to forward now."""
        if (
            not self._buffer
            and not self._pass
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
            and len(chunk) <= self._event_bytes_max
            and chunk[0] != 10
            and not self._interesting(chunk)
        ):
            return chunk
        self._buffer += chunk
        return self._drain()

    def finish(self) -> bytes:
        """The stream has ended: what was held back, read as an event if it is one."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        if self._pass or not rest:
            return rest
        return b"" if self._taken_out(rest) else rest

    def _interesting(self, data: bytes | bytearray) -> bool:
        # A generator in any() would cost more than all the rest, for every chunk.
        for word in self._words:
            if word in data:
                return True
        return b'"usage"' in data and _HAS_USAGE.search(data) is not None

    def _drain(self) -> bytes:
        """Forward the whole events of the buffer, and an event that has grown too large as it is."""
        buffer = self._buffer
        out: list[bytes] = []
        start = 0
        while True:
            if not self._pass:
                leading = _LINE_ENDS.match(buffer, start)
                if leading is not None:
                    out.append(leading[0])
                    start = leading.end()
            found = _BLANK_LINE.search(buffer, max(start, self._searched))
            if found is None or (found.end() == len(buffer) and buffer[-1] == _CR):
                break
            event = bytes(buffer[start : found.end()])
            start = found.end()
            if self._pass or not self._taken_out(event):
                out.append(event)
            self._pass = False
        held = len(buffer) - start
        if held > self._event_bytes_max and not self._pass:
            self._pass = True
            self.unread += 1
        if self._pass and held > 3:
            # A line end or two may still be part of a blank line.
            out.append(bytes(buffer[start : len(buffer) - 3]))
            start = len(buffer) - 3
        if start:
            del buffer[:start]
        self._searched = max(0, len(buffer) - 3)
        return out[0] if len(out) == 1 else b"".join(out)

    def _taken_out(self, event: bytes) -> bool:
        """Learn from an event; whether it is the usage chunk that the client does not expect."""
        if len(event) > self._event_bytes_max:
            self.unread += 1
            return False
        if not self._interesting(event):
            return False
        data = _data_of(event)
        if data == b"[DONE]":
            self.complete = True
            return False
        read = _read(data)
        return False if read is None else self._learn(read)

    def _learn(self, event: _Event) -> bool:
        message = event.message if isinstance(event.message, _Inner) else None
        inner = event.response or message
        if event.type in _FINAL_TYPES:
            self.complete = True
        self._note_error(event, inner)
        if event.response is not None and (made := parse_string(event.response.id)):
            self.produced = Produced(made, item_ids(event.response.output))
        usage = event.usage if inner is None else inner.usage
        model = event.model if inner is None else inner.model
        if len(model):
            self.model = parse_string(model) or self.model
        if event.type in IMAGE_EVENTS:
            self.images += 1
            self._drawn = (parse_string(event.size) or "", parse_string(event.quality) or "")
        reported = parse_usage(usage) if len(usage) else None
        if reported is None:
            return False
        if self._endpoint.dialect == "anthropic":
            self._reported = merged(self._reported, reported)
            self._whole = self._whole or message is None
        elif usage_of(self._endpoint, reported) is not None:
            self._reported = reported
            self._served = (
                parse_served(event.service_tier)
                if inner is None
                else parse_served(inner.service_tier, inner.output, inner.tool_usage, inner.tools)
            )
            self._whole = True
        return self._strip and _is_empty_list(event.choices)

    def _note_error(self, event: _Event, inner: _Inner | None) -> None:
        raw = event.error if len(event.error) or inner is None else inner.error
        found = _decode_text(raw) if len(raw) else None
        if found is not None:
            said = found.get("message", found) if isinstance(found, dict) else found
            self.error = str(said)[:ERROR_CHARS_MAX]
        elif event.type == "error":
            said = event.message if isinstance(event.message, str) else "error"
            self.error = said[:ERROR_CHARS_MAX]


def _read(data: bytes) -> _Event | None:
    """The event's data; without the fields that have a kind we do not know. None if it is no JSON object."""
    try:
        return _decode_event(data)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    try:
        bare = _decode_bare(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _Event(usage=bare.usage, model=bare.model, choices=bare.choices, service_tier=bare.service_tier)


def _is_empty_list(raw: msgspec.Raw) -> bool:
    value = bytes(raw)
    return value.startswith(b"[") and not value[1:-1].strip()


def _data_of(event: bytes) -> bytes:
    """The data of an event: its `data` lines, each without one leading space, joined by line feeds."""
    if event.startswith(b"data: ") and event.find(b"\n", 6) >= len(event) - 2 and b"\r" not in event:
        return event[6:].rstrip(b"\n")
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)
