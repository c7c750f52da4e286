"""Bodies read and rewritten: clear refusals, exact bounds of content, and nothing that slips past."""

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.bound import Content
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.gateway.dialects import ENDPOINTS, Call, parse, request, upstream_body

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
PNG = "data:image/png;base64," + "iVBORw0KGgo" * 100


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def read(path: str, body: object) -> Call:
    return parse(ENDPOINTS[path], body if isinstance(body, bytes) else compact(body))


def chat(content: object = "hello", **fields: object) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **fields}


def messages(content: object = "hello", **fields: object) -> dict[str, Any]:
    return {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": content}], **fields}


def responses(item: object = "hello", **fields: object) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "input": item, **fields}


def reason(path: str, body: object) -> str:
    """Why a body has no bound; empty if it has one."""
    content = read(path, body).content
    if content.unbounded is not None:
        return content.unbounded
    stored = f"stored: {content.stored_context}" if content.stored_context else ""
    return stored or ", ".join(f"service tier: {tier}" for tier in content.service_tiers)


def test_a_chat_call() -> None:
    """What steers a call is read, the rest is untouched."""
    call = read(CHAT, chat(stream=True, n=3, max_tokens=7, max_completion_tokens=9, user="u", seed=1))
    assert (call.model, call.stream, call.choices, call.max_output, call.user) == ("gpt-4o-mini", True, 3, 9, "u")
    assert not call.wants_usage_chunk
    assert read(CHAT, chat(stream_options={"include_usage": True}, stream=True)).wants_usage_chunk
    nulls = read(CHAT, chat(stream=None, n=None, max_tokens=None, user=None, stream_options=None, tools=None))
    assert (nulls.stream, nulls.choices, nulls.max_output, nulls.content.unbounded) == (False, 1, None, None)


def test_other_calls() -> None:
    """Each endpoint by its own names: limits, choices, users."""
    call = read(MESSAGES, messages(metadata={"user_id": "u"}, stream=True))
    assert (call.max_output, call.user, call.stream) == (9, "u", True)
    call = read(RESPONSES, responses(max_output_tokens=5))
    assert (call.max_output, call.choices) == (5, 1)
    assert read(RESPONSES, responses()).max_output is None
    assert read(EMBEDDINGS, {"model": "e", "input": ["a", "b"]}).max_output == 0
    call = read(COMPLETIONS, {"model": "m", "prompt": "x", "n": 2, "best_of": 5, "max_tokens": 3})
    assert (call.max_output, call.choices) == (3, 5)
    assert read(COMPLETIONS, {"model": "m", "prompt": "x"}).max_output == 16


@pytest.mark.parametrize(
    ("prompt", "choices"), [("x", 2), (["x"], 2), (["x", "y", "z"], 6), ([1, 2, 3], 2), ([[1], [2, 3]], 4)]
)
def test_every_prompt_of_a_list_is_answered(prompt: object, choices: int) -> None:
    """Three prompts with n = 2 are six answers to pay for."""
    assert read(COMPLETIONS, {"model": "m", "prompt": prompt, "n": 2}).choices == choices


@pytest.mark.parametrize(
    ("body", "fault", "words", "param"),
    [
        (b"", Fault.MALFORMED, "could not parse the JSON body", None),
        (b"{", Fault.MALFORMED, "could not parse the JSON body", None),
        (b'{"model":"m"}x', Fault.MALFORMED, "trailing characters", None),
        (b'{"model":"m","n":NaN}', Fault.MALFORMED, "could not parse", None),
        (b'{"model":"\xff"}', Fault.MALFORMED, "not valid UTF-8 (byte 10)", None),
        (b'{"model":"m","messages":["\xed\xa0\x80"]}', Fault.MALFORMED, "not valid UTF-8", None),
        (b'{"model":"\\ud800"}', Fault.MALFORMED, "unpaired surrogate", None),
        (b'{"model":"m","messages":' + b"[" * 50_000, Fault.MALFORMED, "nested too deep", None),
        (b"[]", Fault.INVALID, "must be a JSON object, not an array", None),
        (b"null", Fault.INVALID, "must be a JSON object, not null", None),
        (b'"x"', Fault.INVALID, "must be a JSON object, not a string", None),
        (b"{}", Fault.INVALID, "You must provide a model parameter", "model"),
        (chat(model=""), Fault.INVALID, "You must provide a model parameter", "model"),
        (chat(model=None), Fault.INVALID, "'model': expected a string, but got null", "model"),
        ({"model": "m"}, Fault.INVALID, "Missing required parameter: 'messages'.", "messages"),
        (chat(messages={}), Fault.INVALID, "'messages': expected an array, but got an object", "messages"),
        (chat(messages="x"), Fault.INVALID, "'messages': expected an array, but got a string", "messages"),
        (chat(messages=None), Fault.INVALID, "'messages': expected an array, but got null", "messages"),
        (chat(messages=[]), Fault.INVALID, "'messages' is empty", "messages"),
        (b'{"model":"m","messages":[ \n ]}', Fault.INVALID, "'messages' is empty", "messages"),
        (chat(n=0), Fault.INVALID, "'n': it must be at least 1.", "n"),
        (chat(n=129), Fault.INVALID, "'n': it must be at most 128.", "n"),
        (chat(n="2"), Fault.INVALID, "'n': expected an integer or null, but got a string", "n"),
        (chat(n=1.5), Fault.INVALID, "'n': expected an integer or null, but got a number", "n"),
        (chat(n=True), Fault.INVALID, "'n': expected an integer or null, but got a boolean", "n"),
        (chat(max_tokens=-1), Fault.INVALID, "'max_tokens': it must be at least 0.", "max_tokens"),
        (chat(max_tokens=2**40), Fault.INVALID, "'max_tokens': it must be at most 2147483647.", "max_tokens"),
        (chat(max_tokens=10**30), Fault.INVALID, "'max_tokens'", "max_tokens"),
        (chat(stream="yes"), Fault.INVALID, "'stream': expected a boolean or null", "stream"),
        (chat(stream_options=1), Fault.INVALID, "'stream_options': expected an object or null", "stream_options"),
        (
            chat(stream_options={"include_usage": "x"}),
            Fault.INVALID,
            "'stream_options.include_usage': expected a boolean or null",
            "stream_options.include_usage",
        ),
        (chat(user=5), Fault.INVALID, "'user': expected a string or null", "user"),
    ],
)
def test_bad_bodies_are_refused_with_words(body: object, fault: Fault, words: str, param: str | None) -> None:
    """The message says what is wrong and where, as clearly as the provider's own."""
    with pytest.raises(RequestError) as caught:
        read(CHAT, body)
    assert caught.value.fault is fault
    assert words in caught.value.message
    assert caught.value.param == param


def test_anthropic_needs_a_limit() -> None:
    """As at Anthropic itself."""
    with pytest.raises(RequestError, match="Missing required parameter: 'max_tokens'"):
        read(MESSAGES, {"model": "c", "messages": [{"role": "user", "content": "x"}]})


FREE = [
    (CHAT, chat()),
    (CHAT, chat([{"type": "text", "text": "x"}], temperature=0.5, stop=["a"], seed=4, logit_bias={"5": 1})),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])),
    (CHAT, chat(modalities=["text"], service_tier="auto", response_format={"type": "json_object"})),
    (CHAT, chat(prompt_cache_retention="24h")),
    (
        CHAT,
        {
            "model": "m",
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": {}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "22"},
            ],
        },
    ),
    (CHAT, chat([{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}])),
    (RESPONSES, responses(tools=[{"type": "function", "name": "f", "parameters": {}, "strict": True}])),
    (RESPONSES, responses([{"role": "user", "content": [{"type": "input_text", "text": "x"}]}])),
    (
        RESPONSES,
        responses(
            [
                {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": PNG}]},
                {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "22"},
            ],
            instructions="be brief",
            background=True,
            reasoning={"effort": "low"},
        ),
    ),
    (MESSAGES, messages(system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}])),
    (
        MESSAGES,
        messages(
            [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
            ],
            tools=[{"name": "f", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}],
            thinking={"type": "enabled", "budget_tokens": 5},
            service_tier="standard_only",
            context_management={"edits": [{"type": "clear_tool_uses_20250919", "keep": 3}]},
        ),
    ),
    (COMPLETIONS, {"model": "m", "prompt": "x", "suffix": "y", "echo": True}),
    (EMBEDDINGS, {"model": "m", "input": [[1, 2], [3]], "dimensions": 5}),
]


@pytest.mark.parametrize(("path", "body"), FREE)
def test_what_is_known_has_a_bound(path: str, body: object) -> None:
    """Ordinary requests of both SDKs are served to keys with a budget."""
    assert reason(path, body) == ""


COSTLY = [
    (CHAT, chat([{"type": "file", "file": {"file_id": "f"}}]), "file"),
    (CHAT, chat([{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]), "input_audio"),
    (CHAT, chat([{"type": "video_url", "video_url": {"url": "x"}}]), "video_url"),
    (CHAT, chat([{"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AA"}}]), "data URL"),
    (CHAT, chat([{"type": "image_url", "image_url": {"url": "x", "file_id": "f"}}]), "file_id"),
    (CHAT, chat([{"type": "image_url"}]), "image"),
    (CHAT, chat([{"type": "text", "text": "x", "File": {}}]), "File"),
    (CHAT, chat([["nested"]]), "type"),
    (CHAT, chat({"type": "file"}), "content"),
    (CHAT, chat(messages=["x"]), "message"),
    (CHAT, chat(messages=[{"role": "assistant", "audio": {"id": "audio_1"}}]), "audio"),
    (CHAT, chat(messages=[{"role": "user", "content": "x", "images": ["AA"]}]), "images"),
    (CHAT, chat(modalities=["text", "audio"]), "modalities"),
    (CHAT, chat(modalities="audio"), "modalities"),
    (CHAT, chat(audio={"voice": "x"}), "audio"),
    (CHAT, chat(web_search_options={}), "web search"),
    (CHAT, chat(service_tier="priority"), "service tier: priority"),
    (CHAT, chat(prompt_cache_retention="12h"), "prompt_cache_retention"),
    (RESPONSES, responses(prompt_cache_retention=5), "prompt_cache_retention"),
    (CHAT, chat(service_tier=["priority"]), "service tier"),
    (CHAT, chat(best_of=5), "best_of"),
    (CHAT, chat(N=5), "'N'"),
    (RESPONSES, responses(n=5), "'n'"),
    (CHAT, chat(extra_body={"x": 1}), "extra_body"),
    (CHAT, chat(tools=[{"type": "web_search"}]), "web_search"),
    (CHAT, chat(tools={"type": "web_search"}), "tool"),
    (RESPONSES, responses(tools=[{"type": "function", "name": "f"}, {"type": "mcp", "server_url": "x"}]), "mcp"),
    (RESPONSES, responses(tools=[{"type": "code_interpreter", "container": {"type": "auto"}}]), "code_interpreter"),
    (RESPONSES, responses(tools=[{"type": "image_generation"}]), "image_generation"),
    (RESPONSES, responses(tools=[{"type": "file_search", "vector_store_ids": []}]), "file_search"),
    (RESPONSES, responses(previous_response_id="r"), "stored: previous_response_id"),
    (RESPONSES, responses(conversation={"id": "c"}), "stored: conversation"),
    (RESPONSES, responses(prompt={"id": "p"}), "stored prompt"),
    (RESPONSES, responses([{"id": "msg_1"}]), "stored: input"),
    (RESPONSES, responses([{"type": "item_reference", "id": "msg_1"}]), "stored: input"),
    (RESPONSES, responses([{"type": None, "id": "msg_1"}]), "stored: input"),
    (RESPONSES, responses([{"type": "message", "id": "msg_1"}]), "stored: input"),
    (RESPONSES, responses([{"type": "message", "id": "msg_1", "role": "user", "content": None}]), "stored: input"),
    (RESPONSES, responses([{"type": "reasoning", "id": "r", "summary": []}]), "stored: input"),
    (RESPONSES, responses([{"type": "computer_call_output", "output": {}}]), "computer_call_output"),
    (RESPONSES, responses([{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]), "input_file"),
    (MESSAGES, messages([{"type": "document", "source": {"type": "base64", "data": "AA"}}]), "PDF"),
    (MESSAGES, messages([{"type": "document", "source": {"type": "text", "url": "x"}}]), "PDF"),
    (
        MESSAGES,
        messages([{"type": "tool_result", "content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}]),
        "PDF",
    ),
    (MESSAGES, messages([{"type": "container_upload", "file_id": "f"}]), "container_upload"),
    (MESSAGES, messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "web_search_20250305"),
    (MESSAGES, messages(mcp_servers=[{}]), "mcp_servers"),
    (MESSAGES, messages(speed="fast"), "service tier: fast"),
    (MESSAGES, messages(inference_geo="us"), "service tier: us"),
    (
        MESSAGES,
        messages(inference_geo="us", speed="fast"),
        "service tier: fast, service tier: us, service tier: fast us",
    ),
    (MESSAGES, messages(inference_geo=["us"]), "inference_geo"),
    (MESSAGES, messages(container="c"), "container"),
    (MESSAGES, messages(context_management={"edits": [{"type": "compact_20260112"}]}), "context_management"),
    (EMBEDDINGS, {"model": "m", "input": [{"image": "x"}]}, "input"),
    (COMPLETIONS, {"model": "m", "prompt": {"id": "p"}}, "prompt"),
]


@pytest.mark.parametrize(("path", "body", "words"), COSTLY)
def test_what_cannot_be_bounded_says_why(path: str, body: object, words: str) -> None:
    """The reason names the field, part or tool at fault."""
    assert words in reason(path, body)


def _escaped(random: Random, text: str) -> str:
    """The JSON string of an ASCII text with some letters escaped, as any JSON reader takes it."""
    return '"' + "".join(f"\\u{ord(c):04x}" if random.random() < 0.3 else c for c in text) + '"'


def _written(random: Random, value: object) -> str:
    """A JSON text of a value with odd escapes and spaces."""
    space = random.choice(("", "", " ", "\n\t"))
    if isinstance(value, dict):
        inner = ",".join(f"{space}{_escaped(random, str(k))}{space}:{_written(random, v)}" for k, v in value.items())
        return f"{{{inner}{space}}}"
    if isinstance(value, list):
        return f"[{','.join(_written(random, v) + space for v in value)}{space}]"
    if isinstance(value, str) and len(value) < 50:
        return _escaped(random, value)
    return json.dumps(value)


@given(st.sampled_from(COSTLY), st.sampled_from(FREE), st.randoms(use_true_random=True))
def test_disguise_does_not_help(costly: tuple[str, object, str], free: tuple[str, object], random: Random) -> None:
    """Escaped letters and spaces change nothing: what has no bound has none, what has one keeps images and text."""
    assert reason(costly[0], _written(random, costly[1]).encode()) != ""
    path, body = free
    plain, odd = read(path, body), read(path, _written(random, body).encode())
    assert odd.content.unbounded is None
    assert odd.content.images == plain.content.images
    assert odd.content.text_bytes >= plain.content.text_bytes
    assert odd.content.cache_write == plain.content.cache_write
    assert (odd.max_output, odd.choices) == (plain.max_output, plain.choices)


@pytest.mark.parametrize(
    "message",
    [
        '{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}],"content":"x"}',
        '{"role":"user","content":"x","content":[{"type":"image_url","image_url":{"url":"x"}}]}',
        '{"role":"user","content":[{"type":"file","file":{},"type":"text","text":"x"}]}',
        '{"role":"user","content":[{"type":"file","type":"text","text":"x"}]}',
        '{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:application/pdf;base64,A","url":"x"}}]}',
        '{"role":"user","c\\u006fntent":[{"type":"image_url","image_url":"x"}],"content":"x"}',
    ],
)
def test_a_key_given_twice_has_no_bound(message: str) -> None:
    """A provider that takes the first where we take the last would see another request."""
    assert reason(CHAT, f'{{"model":"m","messages":[{message}]}}'.encode()) != ""


@pytest.mark.parametrize(
    "item",
    [
        '{"type":"reasoning","id":"r","type":"message","role":"user","content":"x"}',
        '{"type":"message","role":"user","content":null,"content":"x"}',
        '{"type":"item_reference","id":"m","type":"message","role":"user","content":"x"}',
    ],
)
def test_an_item_given_twice_has_no_bound(item: str) -> None:
    """Nor can a reference hide behind a message."""
    assert reason(RESPONSES, f'{{"model":"m","input":[{item}]}}'.encode()) != ""


def test_images_count_by_number_not_by_bytes() -> None:
    """The payload is not text; the rest of the body is."""
    body = compact(chat([{"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "what?"}]))
    content = read(CHAT, body).content
    assert (content.images, content.text_bytes) == (1, len(body) - len(PNG))
    body = compact(messages([{"type": "image", "source": {"type": "base64", "data": "A" * 999}}] * 2))
    content = read(MESSAGES, body).content
    assert (content.images, content.text_bytes) == (2, len(body) - 2 * 999)


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_bytes_bound_the_text(value: object) -> None:
    """However a body is written, its bytes are at least the UTF-8 bytes of all strings in it."""

    def size(node: object) -> int:
        if isinstance(node, str):
            return len(node.encode("utf-8", "replace"))
        if isinstance(node, dict):
            return sum(size(k) + size(v) for k, v in node.items())
        return sum(size(item) for item in node) if isinstance(node, list) else 0

    try:
        body = json.dumps(chat("x", metadata=value)).encode()
        content = read(CHAT, body).content
    except (UnicodeEncodeError, RequestError):
        return
    assert content.text_bytes >= size(value)


def test_cache_writes_are_seen() -> None:
    """At Anthropic where cache_control stands anywhere, escaped or not; at OpenAI always."""
    assert read(CHAT, chat()).content.cache_write
    plain = read(MESSAGES, messages()).content
    assert not plain.cache_write
    for control in ('"cache_control"', '"cache\\u005fcontrol"'):
        body = compact(messages())[:-1] + f',{control}:{{"ttl":"1\\u0068"}}}}'.encode()
        content = read(MESSAGES, body).content
        assert content.cache_write
        assert content.cache_write_1h


def test_tools_and_predictions_are_paid_for() -> None:
    """A preamble for tools; rejected predictions as output."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert read(CHAT, chat(tools=tools)).content.extra_input_tokens == 1024
    prediction = {"type": "content", "content": "x" * 100}
    assert read(CHAT, chat(prediction=prediction)).content.extra_output_tokens >= 100


def decoded(body: bytes) -> dict[str, Any]:
    pairs = json.loads(body, object_pairs_hook=lambda p: p)
    assert len({k for k, _ in pairs}) == len(pairs), "a key is sent twice"
    return json.loads(body)  # type: ignore[no-any-return]


def test_the_model_is_replaced_and_the_rest_kept() -> None:
    """Values keep their bytes: numbers, spaces and escapes are the client's."""
    body = b'{"model":"a/b", "temperature":1.50, "messages":[ {"role":"user","content":"\\u00e9"} ]}'
    sent = upstream_body(read(CHAT, body), model='b"x')
    assert sent == b'{"model":"b\\"x","temperature":1.50,"messages":[ {"role":"user","content":"\\u00e9"} ]}'


def test_usage_is_asked_for_in_streams() -> None:
    """Only in the formats that report it only when asked; other options of the client stay."""
    options = {"include_usage": False, "include_obfuscation": False}
    sent = decoded(upstream_body(read(CHAT, chat(stream=True, stream_options=options)), model="m"))
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    for path, body, expected in (
        (CHAT, chat(stream=True), {"include_usage": True}),
        (CHAT, chat(stream=True, stream_options=None), {"include_usage": True}),
        (COMPLETIONS, {"model": "m", "prompt": "x", "stream": True}, {"include_usage": True}),
        (CHAT, chat(), None),
        (CHAT, chat(stream=False), None),
        (RESPONSES, responses(stream=True), None),
        (MESSAGES, messages(stream=True), None),
    ):
        assert decoded(upstream_body(read(path, body), model="m")).get("stream_options") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [(None, None), ({"include_usage": True}, None), ({"include_usage": True, "x": 1}, {"x": 1})],
)
def test_usage_is_not_asked_for_where_that_is_refused(options: Any, expected: Any) -> None:
    """Mistral reports it unasked and answers 422 to `include_usage`, whoever sent it."""
    call = read(CHAT, chat(stream=True, stream_options=options))
    assert decoded(upstream_body(call, model="m", asks_usage=False)).get("stream_options") == expected


@pytest.mark.parametrize("stated", [{}, {"max_tokens": None}])
def test_the_default_limit_of_completions_is_written_out(stated: dict[str, object]) -> None:
    """The bound counts on it, so the provider must too."""
    call = read(COMPLETIONS, {"model": "m", "prompt": "x", **stated})
    assert decoded(upstream_body(call, model="m"))["max_tokens"] == call.max_output == 16


def test_repeated_keys_are_sent_once() -> None:
    """At the top level and in the options we read, what we read is what is sent."""
    body = (
        b'{"model":"a","model":"b","n":99,"n":1,"messages":[{"role":"user","content":"x"}],"stream":true,'
        b'"stream_options":{"include_usage":false,"x":1,"x":2,"include_usage":true}}'
    )
    call = read(CHAT, body)
    assert (call.model, call.choices, call.wants_usage_chunk) == ("b", 1, True)
    sent = upstream_body(call, model=call.model)
    assert decoded(sent)["n"] == 1
    assert sent.count(b'"include_usage"') == sent.count(b'"x":') == 1


def test_an_injected_limit_takes_the_place_of_the_clients() -> None:
    """So that no provider heeds one that is not in the bound."""
    sent = decoded(
        upstream_body(
            read(CHAT, chat(max_tokens=5, max_completion_tokens=8)), model="m", output_limit=("max_tokens", 8)
        )
    )
    assert sent["max_tokens"] == 8
    assert "max_completion_tokens" not in sent
    sent = decoded(upstream_body(read(RESPONSES, responses()), model="m", output_limit=("max_output_tokens", 4)))
    assert sent["max_output_tokens"] == 4


PART = st.fixed_dictionaries(
    {"type": st.sampled_from(("text", "text", "image_url", "tool_use"))}, optional={"text": st.text(max_size=2)}
)
SAID = st.text(max_size=2) | st.lists(PART, max_size=2) | st.none()
CONVERSATION = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": SAID}, optional={"name": st.just("1h"), "audio": st.none() | st.just(1)}
    ),
    max_size=2,
)
OPTIONS = st.dictionaries(
    st.sampled_from(("n", "max_tokens", "stream", "temperature", "tools", "service_tier", "user", "metadata", "new")),
    st.none() | st.integers(0, 3) | st.booleans() | st.just("flex") | st.just({"cache_control": "1h"}),
    max_size=4,
)


@given(st.sampled_from((CHAT, MESSAGES)), CONVERSATION, CONVERSATION, OPTIONS, st.booleans())
def test_a_conversation_of_text_is_read_as_any(
    path: str, said: list[Any], earlier: list[Any], options: dict[str, Any], twice: bool
) -> None:
    """The quick way to read text never tells anything else than the one that reads all there is."""
    body = compact({"model": "m", "max_tokens": 1, **options, "messages": said})
    if twice:
        body = b'{"messages":%b,' % compact(earlier) + body[1:]

    def outcome() -> Any:
        try:
            return parse(ENDPOINTS[path], body)
        except RequestError as error:
            return error.fault, error.message, error.param

    quick = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "_decode_text", {})
        slow = outcome()
    if isinstance(quick, Call) and quick.content.plain:
        assert slow.content == Content(text_bytes=len(body), cache_write=True)
        slow = msgspec.structs.replace(slow, content=quick.content)
    assert quick == slow


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_garbage_is_refused_never_raised(body: bytes) -> None:
    """Any bytes are a call or a RequestError."""
    for endpoint in ENDPOINTS.values():
        try:
            parse(endpoint, body)
        except RequestError as error:
            assert error.message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "role", "image_url", "url", "source", "data", "id", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON, JSON, JSON)
def test_odd_types_are_never_raised(one: object, two: object, three: object) -> None:
    """Whatever stands where messages, input, tools or system should be: a call, or a RequestError."""
    for endpoint in ENDPOINTS.values():
        body = {
            "model": "m",
            "max_tokens": 1,
            "messages": [one],
            "input": [two],
            "prompt": one,
            "tools": [three],
            "system": two,
            "context_management": three,
            "service_tier": one,
        }
        try:
            call = parse(endpoint, msgspec.json.encode(body))
        except RequestError:
            continue
        assert upstream_body(call, model="m")
