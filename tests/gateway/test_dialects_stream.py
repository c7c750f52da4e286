"""Streams are metered as they pass: the same bytes and usage however they are cut."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects import ENDPOINTS, StreamMeter
from tollkeeper.gateway.dialects.stream import EVENT_BYTES_MAX

CHAT = ENDPOINTS["/v1/chat/completions"]
RESPONSES = ENDPOINTS["/v1/responses"]
MESSAGES = ENDPOINTS["/v1/messages"]


def sse(value: object, event: str | None = None) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def delta(text: str) -> bytes:
    return sse({"model": "gpt-4o-mini-x", "choices": [{"delta": {"content": text}}], "usage": None})


USAGE_CHUNK = sse(
    {
        "model": "gpt-4o-mini-x",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
)
DONE = b"data: [DONE]\n\n"
CHAT_STREAM = delta("Grüße ") + b": keep-alive\n\n" + delta('a "usage":{ word') + delta("") + USAGE_CHUNK + DONE
CHAT_USAGE = Usage(input_tokens=9, output_tokens=3)

START = sse(
    {
        "type": "message_start",
        "message": {
            "model": "claude-x",
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 7,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
                "output_tokens": 1,
            },
        },
    },
    "message_start",
)
TEXT = sse({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "héllo"}}, "content_block_delta")
DELTA = sse(
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 42}}, "message_delta"
)
STOP = sse({"type": "message_stop"}, "message_stop")
ANTHROPIC_STREAM = START + sse({"type": "ping"}, "ping") + TEXT + DELTA + STOP
ANTHROPIC_USAGE = Usage(22, 42, 5, 7, 4)

RESPONSES_STREAM = (
    sse(
        {"type": "response.created", "response": {"model": "gpt-x", "usage": None, "error": None}}, "response.created"
    )
    + sse({"type": "response.output_text.delta", "delta": "hi"}, "response.output_text.delta")
    + sse(
        {
            "type": "response.completed",
            "response": {"model": "gpt-x", "usage": {"input_tokens": 4, "output_tokens": 2}, "error": None},
        },
        "response.completed",
    )
)


def run(meter: StreamMeter, chunks: Iterator[bytes] | list[bytes]) -> bytes:
    return b"".join(meter.feed(chunk) for chunk in chunks) + meter.finish()


def cut(data: bytes, random: Random) -> Iterator[bytes]:
    while data:
        size = random.choice((1, 2, 3, 10, 100, 10_000))
        yield data[:size]
        data = data[size:]


def test_a_chat_stream_for_a_client_that_did_not_ask() -> None:
    """The extra chunk is taken out, everything else passes byte for byte."""
    meter = StreamMeter(CHAT, keep_usage_chunk=False)
    assert run(meter, [CHAT_STREAM]) == CHAT_STREAM.replace(USAGE_CHUNK, b"")
    assert (meter.usage, meter.model, meter.complete, meter.error) == (CHAT_USAGE, "gpt-4o-mini-x", True, None)


def test_a_chat_stream_for_a_client_that_asked() -> None:
    """Nothing is taken out."""
    meter = StreamMeter(CHAT, keep_usage_chunk=True)
    assert run(meter, [CHAT_STREAM]) == CHAT_STREAM
    assert meter.usage == CHAT_USAGE


def test_usage_in_a_chunk_with_choices_stays() -> None:
    """Some providers report it with the last words: those are the client's."""
    last = sse({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    meter = StreamMeter(CHAT, keep_usage_chunk=False)
    assert run(meter, [last, DONE]) == last + DONE
    assert meter.usage == Usage(1, 2)


def test_anthropic_usage_is_merged() -> None:
    """The start states the input, the delta the whole output; before the delta nothing is known for certain."""
    meter = StreamMeter(MESSAGES)
    assert meter.feed(START + TEXT) == START + TEXT
    assert (meter.usage, meter.complete) == (None, False)
    assert meter.feed(DELTA + STOP) == DELTA + STOP
    assert (meter.usage, meter.model, meter.complete) == (ANTHROPIC_USAGE, "claude-x", True)


def test_responses() -> None:
    """Usage comes with the last event."""
    meter = StreamMeter(RESPONSES)
    assert run(meter, [RESPONSES_STREAM]) == RESPONSES_STREAM
    assert (meter.usage, meter.model, meter.complete, meter.error) == (Usage(4, 2), "gpt-x", True, None)


def test_what_a_stream_tells_beside_its_usage() -> None:
    """Service tier, searches and stated cost are read as from a whole answer."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "cost": 0.25}
    meter = StreamMeter(CHAT, keep_usage_chunk=False)
    run(meter, [sse({"choices": [], "service_tier": "flex", "usage": usage}), DONE])
    assert (meter.usage, meter.answer.cost) == (Usage(1, 2, service_tier="flex"), b"0.25")
    response = {
        "service_tier": "priority",
        "output": [{"type": "web_search_call", "action": {"type": "search"}}],
        "usage": {"input_tokens": 4, "output_tokens": 2},
    }
    meter = StreamMeter(RESPONSES)
    run(meter, [sse({"type": "response.completed", "response": response}, "response.completed")])
    assert meter.usage == Usage(4, 2, web_searches=1, service_tier="priority")
    meter = StreamMeter(MESSAGES)
    start = {"input_tokens": 1, "output_tokens": 1, "service_tier": "standard", "speed": "fast"}
    delta = {"output_tokens": 9, "server_tool_use": {"web_search_requests": 3}}
    first = sse({"type": "message_start", "message": {"usage": start}}, "message_start")
    run(meter, [first, sse({"type": "message_delta", "delta": {}, "usage": delta}, "message_delta"), STOP])
    assert meter.usage == Usage(1, 9, web_searches=3, service_tier="fast")


STREAMS: list[tuple[Any, bytes, Usage]] = [
    (CHAT, CHAT_STREAM, CHAT_USAGE),
    (MESSAGES, ANTHROPIC_STREAM, ANTHROPIC_USAGE),
    (RESPONSES, RESPONSES_STREAM, Usage(4, 2)),
]


@given(
    st.sampled_from(STREAMS),
    st.sampled_from((b"\n", b"\r\n", b"\r")),
    st.sampled_from((b"", b"\n", b"\r\n", b": hello\n\n")),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=True),
)
def test_any_cut_gives_the_same(
    stream: tuple[Any, bytes, Usage], end: bytes, head: bytes, keep: bool, whole: bool, random: Random
) -> None:
    """Line ends of each kind, events cut anywhere, many in a chunk, the last one perhaps without its blank line."""
    endpoint, data, usage = stream
    data = (head + data).replace(b"\n", end)
    if not whole:
        data = data.rstrip(b"\r\n")
    one, many = (StreamMeter(endpoint, keep_usage_chunk=keep) for _ in range(2))
    expected = run(one, [data])
    assert run(many, cut(data, random)) == expected
    for meter in (one, many):
        assert (meter.usage, meter.complete, meter.error) == (usage, True, None)
    if keep or endpoint is not CHAT:
        assert expected == data
    else:
        assert len(expected) == len(data) - len(USAGE_CHUNK.replace(b"\n", end))


PIECES = st.lists(
    st.sampled_from(
        (
            *(b"\n", b"\r", b"\r\n", b"\n\n", b"data: x", b"data:", b"[DONE]", b": c"),
            *(USAGE_CHUNK, USAGE_CHUNK[:-1], DONE),
            b'data: {"error":{"message":"bad"}}',
            b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        )
    ),
    max_size=12,
).map(b"".join)


@given(PIECES, st.booleans(), st.randoms(use_true_random=True))
def test_any_cut_of_anything_gives_the_same(data: bytes, keep: bool, random: Random) -> None:
    """Also of streams that no provider should send."""
    one, many = (StreamMeter(CHAT, keep_usage_chunk=keep) for _ in range(2))
    expected = run(one, [data])
    assert run(many, cut(data, random)) == expected
    assert (one.usage, one.complete, one.error) == (many.usage, many.complete, many.error)
    if keep:
        assert expected == data


def test_only_whole_events_are_forwarded() -> None:
    """So that an error can be told between two events."""
    meter = StreamMeter(CHAT)
    first = delta("x")
    assert meter.feed(first[:-1]) == b""
    assert meter.feed(first[-1:] + b"data: {") == first
    assert meter.finish() == b"data: {"


def test_data_on_several_lines_is_one_event() -> None:
    """As the standard of server-sent events has it."""
    event = b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    meter = StreamMeter(CHAT, keep_usage_chunk=False)
    assert run(meter, [event]) == b""
    assert meter.usage == Usage(1, 2)


@pytest.mark.parametrize("size", [1000, 70_000])
def test_a_huge_event_is_passed_unread(size: int) -> None:
    """Held back up to a mebibyte, then passed and counted; what follows is read again."""
    huge = b'data: {"choices":[],"usage":{"prompt_tokens":5},"x":"' + b"y" * (EVENT_BYTES_MAX + 5000) + b'"}\n\n'
    data = huge + USAGE_CHUNK + DONE
    for chunks in ([data], [data[i : i + size] for i in range(0, len(data), size)]):
        meter = StreamMeter(CHAT, keep_usage_chunk=False)
        held = 0
        out = b""
        for chunk in chunks:
            out += meter.feed(chunk)
            held = max(held, len(meter._buffer))
        assert out + meter.finish() == huge + DONE
        assert held <= EVENT_BYTES_MAX
        assert (meter.unread, meter.usage, meter.complete) == (1, CHAT_USAGE, True)


@pytest.mark.parametrize(
    ("endpoint", "event", "message"),
    [
        (CHAT, sse({"error": {"message": "overloaded", "type": "server_error"}}), "overloaded"),
        (CHAT, sse({"error": "plain"}), "plain"),
        (MESSAGES, sse({"type": "error", "error": {"type": "overloaded_error", "message": "Over"}}, "error"), "Over"),
        (RESPONSES, sse({"type": "error", "code": "x", "message": "Sorry", "param": None}, "error"), "Sorry"),
        (RESPONSES, sse({"type": "response.failed", "response": {"error": {"message": "Fail"}}}), "Fail"),
    ],
)
def test_errors_in_a_stream_are_noted(endpoint: Any, event: bytes, message: str) -> None:
    """And passed on."""
    meter = StreamMeter(endpoint)
    assert run(meter, [event]) == event
    assert meter.error == message
    assert meter.usage is None


def test_garbage_passes_and_teaches_nothing() -> None:
    """Broken JSON, usage of wrong types, absurd numbers, fields of unknown kinds."""
    for data in (
        b'data: {"usage":{"prompt_tokens"\n\n',
        b'data: {"usage":{"prompt_tokens":-1,"completion_tokens":1}}\n\n',
        b'data: {"usage":{"prompt_tokens":1e99,"completion_tokens":1}}\n\n',
        b'data: {"error":\xff}\n\n',
        b'data: ["usage":{}]\n\n',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}',
        b"<html>[DONE]</html>",
    ):
        meter = StreamMeter(CHAT, keep_usage_chunk=False)
        assert run(meter, [data]) == data
        assert (meter.usage, meter.complete, meter.error) == (None, False, None)
    meter = StreamMeter(CHAT)
    run(meter, [sse({"type": 5, "message": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})])
    assert meter.usage == Usage(1, 2)


def test_a_later_report_replaces_an_earlier_one() -> None:
    """Providers that report in every chunk report totals; garbage after it takes nothing back."""
    meter = StreamMeter(CHAT)
    for n in (1, 2, 3):
        meter.feed(sse({"choices": [{}], "usage": {"prompt_tokens": 5, "completion_tokens": n}}))
    meter.feed(sse({"choices": [{}], "usage": {"prompt_tokens": "?"}}))
    assert meter.usage == Usage(5, 3)
