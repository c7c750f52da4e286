"""Streams put together are the answers that they would have been."""

from typing import Any

import msgspec
import pytest

from tollkeeper.gateway.dialects import ENDPOINTS, reassemble

CHAT = ENDPOINTS["/v1/chat/completions"]


def stream(*events: dict[str, Any] | bytes, newline: bytes = b"\n") -> bytes:
    lines = (b"data: " + (event if isinstance(event, bytes) else msgspec.json.encode(event)) for event in events)
    return b"".join(line + newline * 2 for line in lines)


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_chat_with_tools_choices_and_usage(newline: bytes) -> None:
    call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}
    raw = stream(
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(role="assistant", content="lo"),
        delta(tool_calls=[call]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        delta(1, role="assistant", content="x"),
        b"not json",
        delta(finish="tool_calls"),
        {"id": "c1", "choices": [], "usage": {"prompt_tokens": 1}},
        b"[DONE]",
        newline=newline,
    )
    assert reassemble(CHAT, b": a comment\n\n" + raw) == {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "usage": {"prompt_tokens": 1},
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "t1",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"a":1}'},
                        }
                    ],
                },
            },
            {"index": 1, "message": {"role": "assistant", "content": "x"}},
        ],
    }


def test_a_stream_that_broke_off_is_what_came() -> None:
    raw = stream(delta(role="assistant", content="Hel"), {"error": {"message": "overloaded"}}) + b'data: {"choi'
    found = reassemble(CHAT, raw)
    assert found["choices"][0]["message"]["content"] == "Hel" and found["error"] == {"message": "overloaded"}


def test_messages_with_thinking_and_a_tool() -> None:
    def block(index: int, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": fields}

    def part(index: int, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": fields}

    raw = stream(
        {"type": "message_start", "message": {"id": "m1", "content": [], "usage": {"input_tokens": 3}}},
        block(0, type="thinking", thinking=""),
        part(0, type="thinking_delta", thinking="hm"),
        part(0, type="signature_delta", signature="sig"),
        block(1, type="text", text=""),
        part(1, type="text_delta", text="Hel"),
        part(1, type="text_delta", text="lo"),
        part(1, type="citations_delta", citation={"title": "t"}),
        block(2, type="tool_use", name="f", input={}),
        part(2, type="input_json_delta", partial_json='{"a":'),
        part(2, type="input_json_delta", partial_json="1}"),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    )
    assert reassemble(ENDPOINTS["/v1/messages"], raw) == {
        "id": "m1",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "text", "text": "Hello", "citations": [{"title": "t"}]},
            {"type": "tool_use", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 9},
    }


def test_responses_are_told_whole_at_the_end_and_put_together_before_it() -> None:
    endpoint = ENDPOINTS["/v1/responses"]
    begun = {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}}
    item = {"type": "message", "content": []}
    text = {"type": "response.output_text.delta", "output_index": 0, "delta": "Hel"}
    raw = stream(begun, {"type": "response.output_item.added", "output_index": 0, "item": item}, text, text)
    assert reassemble(endpoint, raw)["output"] == [
        {"type": "message", "content": [{"type": "output_text", "text": "HelHel"}]}
    ]
    whole = {"id": "r", "status": "completed", "output": ["all"]}
    assert reassemble(endpoint, raw + stream({"type": "response.completed", "response": whole})) == whole


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "raw",
    [b"", b"data: [1]\n\n", b"nonsense", b'data: {"choices": [1]}\n\n', b'data: {"type": "message_start"}\n\n',
     b'data: {"choices": [{"delta": 1}]}\n\n', b'data: {"response": {"status": 1}, "output_index": []}\n\n'],
)  # fmt: skip
def test_what_is_no_stream_of_the_format_stays_as_it_came(path: str, raw: bytes) -> None:
    assert isinstance(reassemble(ENDPOINTS[path], raw), bytes | dict)
