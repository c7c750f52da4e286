"""Usage as reported equals what genai-prices reads, and garbage is no usage."""

import json
from typing import Any

import pytest
from genai_prices import extract_usage
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.dialects import ENDPOINTS, read_answer, read_usage
from tollkeeper.gateway.dialects.answer import read_any_answer, read_plain_answer
from tollkeeper.gateway.dialects.base import TOKENS_MAX
from tollkeeper.simulator.openai import usage_json

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
        citation_tokens=found.get("output_citation_tokens", 0),
        web_searches=found.get("web_searches", 0),
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


ODD: st.SearchStrategy[Any] = st.sampled_from(
    (None, -1, 1.5, "default", "priority", "auto", [{"type": "web_search_call"}], {}, True, 2**41)
)
FEW = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 7, 8, None))
DETAIL = st.dictionaries(
    st.sampled_from(
        (
            *("cached_tokens", "cache_write_tokens", "image_tokens"),
            *("reasoning_tokens", "audio_tokens", "accepted_prediction_tokens"),
        )
    ),
    FEW,
)


@st.composite
def plain_or_not(draw: st.DrawFn) -> dict[str, Any]:
    """An answer to a chat with at most one thing in it that is out of the common."""
    usage: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"prompt_tokens": FEW, "completion_tokens": FEW},
            optional={
                "total_tokens": FEW,
                "prompt_tokens_details": DETAIL,
                "completion_tokens_details": DETAIL,
            },
        )
    )
    if draw(st.booleans()) and None not in usage.values():
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"] + draw(st.integers(-1, 2))
    answer: dict[str, Any] = {"model": "m", "usage": usage}
    where = draw(st.sampled_from((None, answer, usage, usage.get("prompt_tokens_details"))))
    if where is not None:
        names = ("model", "usage", "service_tier", "output", "tool_usage", "cost", "citation_tokens", "new")
        where[draw(st.sampled_from((*names, *usage)))] = draw(ODD)
    return answer


SOLD = {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@given(plain_or_not())
@example(SOLD | {"output": [{"type": "web_search_call"}]})
@example(SOLD | {"tool_usage": {"web_search": {"num_requests": 2}}})
@example(SOLD | {"service_tier": "priority"})
def test_a_plain_chat_is_read_as_any_answer(answer: dict[str, Any]) -> None:
    """The quick way to read the usual answer never tells anything else than the one that reads all of them."""
    body = json.dumps(answer).encode()
    assert read_answer(CHAT, body) == read_any_answer(CHAT, body)
    assert read_answer(CHAT, body[:-1]) == read_any_answer(CHAT, body[:-1])


USUAL = {
    "openai": b'"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}',
    "openai with cache writes": b'"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":0,"audio_tokens":0}',
    "vllm": b'"prompt_tokens":12,"total_tokens":20,"completion_tokens":8,"prompt_tokens_details":null',
    "simulator": usage_json(Usage(12, 20)).encode()[1:-1],
}


@pytest.mark.parametrize("usage", USUAL.values(), ids=USUAL)
def test_usual_answers_are_read_in_one_pass(usage: bytes) -> None:
    """A field that no decoder of the quick way knows makes every answer six times as dear."""
    body = b'{"model":"m","choices":[],"usage":{%b},"service_tier":"default"}' % usage
    assert read_plain_answer(body) == read_any_answer(CHAT, body)


@given(chat_answers())
def test_a_plain_report_is_read_as_any_report(answer: dict[str, Any]) -> None:
    """The same of reports that are right."""
    body = json.dumps(answer).encode()
    assert read_answer(CHAT, body) == read_any_answer(CHAT, body)


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


@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.integers(0, 9), st.booleans())
def test_anthropic_equals_genai_prices(
    plain: int, cached: int, write_5m: int, write_1h: int, output: int, searches: int, split: bool
) -> None:
    usage: dict[str, Any] = {
        "input_tokens": plain,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": write_5m + write_1h,
        "output_tokens": output,
        "service_tier": "standard",
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 1} if searches else None,
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


def test_cache_writes_in_the_dialect_of_openai() -> None:
    """A proxy in between passes Anthropic's fields on beside totals that include them."""
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 8,
        "cache_creation": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 2},
    }
    assert read_usage(CHAT, json.dumps({"usage": usage}).encode()) == Usage(20, 5, 4, 8, 2)
    assert read_usage(CHAT, json.dumps({"usage": usage | {"prompt_tokens": 11}}).encode()) is None


def test_caches_as_others_spell_them() -> None:
    """DeepSeek's hits and Moonshot's field count as cached."""
    for name in ("prompt_cache_hit_tokens", "cached_tokens"):
        usage = {"prompt_tokens": 10, "completion_tokens": 5, name: 8}
        read = read_usage(CHAT, json.dumps({"usage": usage}).encode())
        assert read is not None
        assert read.cached_tokens == 8


@given(COUNT, COUNT, COUNT, COUNT, st.integers(0, 99))
def test_perplexity_equals_genai_prices(prompt: int, text: int, reasoning: int, cited: int, searches: int) -> None:
    """Reasoning and citations stand beside completion and total, and are output."""
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": text,
        "total_tokens": prompt + text,
        "citation_tokens": cited,
        "reasoning_tokens": reasoning,
        "num_search_queries": searches,
    }
    answer = {"model": "sonar-deep-research", "usage": usage}
    assert read_usage(CHAT, json.dumps(answer).encode()) == oracle(answer, "perplexity", "default")


def test_parts_by_what_is_seen_and_heard() -> None:
    """Audio and images, cached and not, on both sides."""
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {
            "cached_tokens": 30,
            "cached_tokens_details": {"text_tokens": 5, "audio_tokens": 15, "image_tokens": 10},
            "audio_tokens": 40,
            "image_tokens": 20,
        },
        "completion_tokens_details": {"audio_tokens": 10, "image_tokens": 20},
    }
    assert read_usage(CHAT, json.dumps({"usage": usage}).encode()) == Usage(
        *(100, 50, 30, 0, 0, 0, 40, 10),
        cached_audio_tokens=15,
        input_image_tokens=20,
        cached_image_tokens=10,
        output_image_tokens=20,
    )


def test_cache_writes_told_only_by_their_lifetimes() -> None:
    """Their sum is what was written."""
    creation = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation": creation}
    assert read_usage(MESSAGES, json.dumps({"usage": usage}).encode()) == Usage(8, 1, 0, 7, 4)


@pytest.mark.parametrize(
    ("told", "tier"),
    [
        ("priority", "priority"),
        ("flex", "flex"),
        ("default", ""),
        ("auto", ""),
        (None, ""),
        (5, ""),
        ("x" * 99, "x" * 32),
    ],
)
def test_the_service_tier_that_was_served(told: object, tier: str) -> None:
    """OpenAI tells it beside the usage, Anthropic within; what is standard or unreadable has no name."""
    chat = {"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "service_tier": told}
    read = read_usage(CHAT, json.dumps(chat).encode())
    assert read is not None
    assert read.service_tier == tier
    message = {"usage": {"input_tokens": 1, "output_tokens": 1, "service_tier": told}}
    read = read_usage(MESSAGES, json.dumps(message).encode())
    assert read is not None
    assert read.service_tier == tier


def test_fast_mode_is_a_service_tier() -> None:
    """Anthropic's `speed` has prices of its own, whatever the tier."""
    usage = {"input_tokens": 1, "output_tokens": 1, "service_tier": "standard", "speed": "fast"}
    read = read_usage(MESSAGES, json.dumps({"usage": usage}).encode())
    assert read is not None
    assert read.service_tier == "fast"


def test_searches_are_counted_among_the_items() -> None:
    """The Responses format has no count: searches cost, opening a page and looking through it does not."""
    items = [
        {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
        {"type": "web_search_call"},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "web_search_call", "action": {"type": "find_in_page"}},
        {"type": "file_search_call", "queries": []},
        {"type": "message", "content": [{"type": "output_text", "text": "web_search_call"}]},
    ]
    answer = {"output": items, "usage": {"input_tokens": 1, "output_tokens": 1}}
    read = read_usage(RESPONSES, json.dumps(answer).encode())
    assert read is not None
    assert (read.web_searches, read.file_searches) == (2, 1)


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        ("0.00014", b"0.00014"),
        ("1.4e-05", b"1.4e-05"),
        ('"0.5"', b'"0.5"'),
        ('{"input_tokens_cost": 0.1, "total_cost": 0.006}', b"0.006"),
        ('{"total": 1}', b""),
        ("null", b"null"),
    ],
)
def test_a_stated_cost_keeps_its_digits(cost: str, text: bytes) -> None:
    """The text of the number, never a float."""
    body = b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":%s}}' % cost.encode()
    assert read_answer(CHAT, body).cost == text
    assert read_answer(CHAT, b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}').cost == b""


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
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens_details":{"image_tokens":2}}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"completion_tokens_details":{"image_tokens":2}}}',
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
