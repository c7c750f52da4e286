"""Usage as reported equals what genai-prices reads, and garbage is no usage."""

import json
from typing import Any

import pytest
from genai_prices import extract_usage
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects import ENDPOINTS, read_answer, read_usage
from tollkeeper.gateway.dialects.answer import TOKENS_MAX

CHAT = ENDPOINTS["/v1/chat/completions"]
EMBEDDINGS = ENDPOINTS["/v1/embeddings"]
RESPONSES = ENDPOINTS["/v1/responses"]
MESSAGES = ENDPOINTS["/v1/messages"]

COUNT = st.integers(0, 10**9)


def oracle(answer: dict[str, Any], provider: str, flavor: str) -> Usage:
    """genai-prices' reading in our names."""
    found = vars(extract_usage(answer, provider_id=provider, api_flavor=flavor).usage)
    return Usage(
        input_tokens=found.get("input_tokens", 0),
        output_tokens=found.get("output_tokens", 0),
        cached_tokens=found.get("cache_read_tokens", 0),
        cache_write_tokens=found.get("cache_write_tokens", 0),
        cache_write_1h_tokens=found.get("cache_write_1h_tokens", 0),
        reasoning_tokens=found.get("output_reasoning_tokens", 0),
        input_audio_tokens=found.get("input_audio_tokens", 0),
        output_audio_tokens=found.get("output_audio_tokens", 0),
    )


def _maybe(draw: st.DrawFn, values: dict[str, int]) -> dict[str, int | None] | None:
    """A zero may also be null or missing, and so may the object if all are."""
    written: dict[str, int | None] = {}
    for name, value in values.items():
        form = draw(st.sampled_from(("number", "null", "missing"))) if value == 0 else "number"
        if form != "missing":
            written[name] = value if form == "number" else None
    return written if any(values.values()) or draw(st.booleans()) else None


@st.composite
def chat_answers(draw: st.DrawFn) -> dict[str, Any]:
    cached, write, heard, plain = draw(COUNT), draw(COUNT), draw(COUNT), draw(COUNT)
    spoken, reasoning, text = draw(COUNT), draw(COUNT), draw(COUNT)
    prompt, completion = cached + write + heard + plain, spoken + reasoning + text
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": _maybe(
            draw, {"cached_tokens": cached, "cache_write_tokens": write, "audio_tokens": heard}
        ),
        "completion_tokens_details": _maybe(draw, {"audio_tokens": spoken, "reasoning_tokens": reasoning}),
    }
    if draw(st.booleans()):
        usage["total_tokens"] = prompt + completion
    return {"id": "x", "model": "gpt-4o", "choices": [{"message": {"content": "é"}}], "usage": usage}


@given(chat_answers())
def test_chat_equals_genai_prices(answer: dict[str, Any]) -> None:
    assert read_usage(CHAT, json.dumps(answer).encode()) == oracle(answer, "openai", "chat")


@given(COUNT, COUNT, COUNT, COUNT, COUNT)
def test_responses_equal_genai_prices(cached: int, write: int, plain: int, reasoning: int, text: int) -> None:
    answer = {
        "model": "gpt-4o",
        "output": [],
        "usage": {
            "input_tokens": cached + write + plain,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": write},
            "output_tokens": reasoning + text,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": cached + write + plain + reasoning + text,
        },
    }
    assert read_usage(RESPONSES, json.dumps(answer).encode()) == oracle(answer, "openai", "responses")


@given(COUNT)
def test_embeddings_equal_genai_prices(tokens: int) -> None:
    answer = {
        "model": "text-embedding-3-small",
        "data": [],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    assert read_usage(EMBEDDINGS, json.dumps(answer).encode()) == oracle(answer, "openai", "embeddings")


@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.booleans())
def test_anthropic_equals_genai_prices(
    plain: int, cached: int, write_5m: int, write_1h: int, output: int, split: bool
) -> None:
    usage: dict[str, Any] = {
        "input_tokens": plain,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": write_5m + write_1h,
        "output_tokens": output,
        "service_tier": "standard",
        "server_tool_use": None,
    }
    if split:
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": write_5m, "ephemeral_1h_input_tokens": write_1h}
    answer = {"type": "message", "model": "claude-sonnet-4-5", "usage": usage}
    read = read_usage(MESSAGES, json.dumps(answer).encode())
    assert read == oracle(answer, "anthropic", "default")
    assert read is not None
    assert read.input_tokens == plain + cached + write_5m + write_1h


def test_the_model_is_echoed() -> None:
    """Also where usage is missing."""
    assert read_answer(CHAT, b'{"model":"gpt-4o-mini-2024-07-18","usage":null}').model == "gpt-4o-mini-2024-07-18"
    assert read_answer(CHAT, b'{"model":5}').model is None


def test_reasoning_beside_the_completion_is_output() -> None:
    """xAI and Gemini leave it out of completion_tokens, but not out of the total."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 115,
        "completion_tokens_details": {"reasoning_tokens": 100},
    }
    read = read_usage(CHAT, json.dumps({"usage": usage}).encode())
    assert read is not None
    assert (read.output_tokens, read.reasoning_tokens) == (105, 100)


def test_caches_as_others_spell_them() -> None:
    """DeepSeek's hits and Moonshot's field count as cached."""
    for name in ("prompt_cache_hit_tokens", "cached_tokens"):
        usage = {"prompt_tokens": 10, "completion_tokens": 5, name: 8}
        read = read_usage(CHAT, json.dumps({"usage": usage}).encode())
        assert read is not None
        assert read.cached_tokens == 8


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"{}",
        b'{"usage":5}',
        b'{"usage":{}}',
        b'{"usage":{"prompt_tokens":1}}',
        b'{"usage":{"prompt_tokens":-1,"completion_tokens":1}}',
        b'{"usage":{"prompt_tokens":"1","completion_tokens":1}}',
        b'{"usage":{"prompt_tokens":1.5,"completion_tokens":1}}',
        b'{"usage":{"prompt_tokens":1e400,"completion_tokens":1}}',
        b'{"usage":{"prompt_tokens":true,"completion_tokens":1}}',
        b'{"usage":{"prompt_tokens":%d,"completion_tokens":1}}' % (TOKENS_MAX + 1),
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"completion_tokens_details":{"reasoning_tokens":2}}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens_details":[]}}',
        b'{"usage":' + b"[" * 50_000,
    ],
)
def test_garbage_is_no_usage(body: bytes) -> None:
    """Negative, absurd, contradictory or unreadable: the hold is charged instead."""
    assert read_usage(CHAT, body) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(body: bytes) -> None:
    for endpoint in ENDPOINTS.values():
        read_answer(endpoint, body)
        read_answer(endpoint, b'{"usage":' + body + b"}")
