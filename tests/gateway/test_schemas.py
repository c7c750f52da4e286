"""What clients and providers get from the gateway is what the published OpenAPI documents and the SDKs' models say.

The documents tell what must be there and of which kind; the SDKs' models, read strictly, also which names there are:
what a model does not know is a name that was made up here.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import anthropic.types
import msgspec
import openai.types
import openai.types.audio
import openai.types.chat
import openai.types.responses
import openai.types.shared
import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent

from tests.gateway.conftest import Stand, chat, message
from tests.gateway.published import complaints
from tests.gateway.test_media import wav
from tollkeeper.domain.errors import Fault
from tollkeeper.gateway.dialects import ENDPOINTS, error_body, error_event, parse, upstream_body

Dialect = Literal["openai", "anthropic"]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
PNG = "data:image/png;base64,aGVsbG8="


UNKNOWN_THERE = ".store"
"""What OpenAI sends and documents, and its SDK's model of a response does not have."""


def unknown(value: Any, where: str = "") -> Iterator[str]:
    """The names that an SDK's model does not have."""
    if isinstance(value, pydantic.BaseModel):
        yield from (f"{where}.{name}" for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from unknown(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from unknown(item, f"{where}[{i}]")


_reader = cache(pydantic.TypeAdapter)


def by_sdk(model: Any, value: bytes) -> Any:
    """The value as the SDK's model reads it, strictly; nothing it does not know."""
    read = _reader(model).validate_json(value, strict=True)
    assert [name for name in unknown(read) if not name.endswith(UNKNOWN_THERE)] == []
    return read


def events(body: bytes) -> list[bytes]:
    """The data of a stream's events but its mark of the end."""
    found = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [data for data in found if data != b"[DONE]"]


@pytest.mark.parametrize("fault", list(Fault))
def test_errors(fault: Fault) -> None:
    """Every one, as an answer and as the last event of a stream."""
    for param in (None, "model"):
        body = error_body("openai", fault, "No.", param, "req_1")
        assert complaints("openai", "ErrorResponse", body) == []
        by_sdk(openai.types.shared.ErrorObject, msgspec.json.encode(msgspec.json.decode(body)["error"]))
        assert events(error_event("openai", fault, "No.", param, "req_1")) == [body]
    for request_id in (None, "req_1"):
        body = error_body("anthropic", fault, "No.", None, request_id)
        if b"request_too_large" not in body:  # which the guide "Errors" has, but neither document nor SDK
            assert complaints("anthropic", "ErrorResponse", body) == []
            by_sdk(anthropic.types.ErrorResponse, body)
        assert events(error_event("anthropic", fault, "No.", None, request_id)) == [body]


ANSWERS: tuple[tuple[str, Any, Dialect, str, Any], ...] = (
    ("/chat/completions", chat(n=2), "openai", "CreateChatCompletionResponse", openai.types.chat.ChatCompletion),
    (
        "/chat/completions",
        chat("[[sim tool=f]]", tools=[TOOL]),
        "openai",
        "CreateChatCompletionResponse",
        openai.types.chat.ChatCompletion,
    ),
    (
        "/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Hi"},
        "openai",
        "CreateCompletionResponse",
        openai.types.Completion,
    ),
    (
        "/embeddings",
        {"model": "text-embedding-3-small", "input": "Hi"},
        "openai",
        "CreateEmbeddingResponse",
        openai.types.CreateEmbeddingResponse,
    ),
    (
        "/responses",
        {"model": "gpt-4.1-nano", "input": "Hi"},
        "openai",
        "Response",
        openai.types.responses.Response,
    ),
    ("/messages", message(), "anthropic", "Message", anthropic.types.Message),
    (
        "/messages/count_tokens",
        message() | {"max_tokens": None},
        "anthropic",
        "CountMessageTokensResponse",
        anthropic.types.MessageTokensCount,
    ),
    (
        "/moderations",
        {"model": "omni-moderation-latest", "input": "Hi"},
        "openai",
        "CreateModerationResponse",
        openai.types.ModerationCreateResponse,
    ),
    (
        "/images/generations",
        {"model": "gpt-image-1-mini", "prompt": "a cat"},
        "openai",
        "ImagesResponse",
        openai.types.ImagesResponse,
    ),
)


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: f"{case[0]} {case[3]}")
async def test_answers(stand: Stand, case: tuple[str, Any, Dialect, str, Any]) -> None:
    """What the simulated provider answers, through the gateway."""
    path, body, dialect, schema, model = case
    body = {name: value for name, value in body.items() if value is not None}
    reply = await stand.post(body, path)
    assert (reply.status, complaints(dialect, schema, reply.body)) == (200, [])
    by_sdk(model, reply.body)


@pytest.mark.parametrize("asked", [False, True])
async def test_chat_streams(stand: Stand, asked: bool) -> None:
    """Each chunk; the usage chunk only for who asked for it."""
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    reply = await stand.post(chat(stream=True, **options))
    chunks = events(reply.body)
    assert len(chunks) > 2
    for data in chunks:
        assert complaints("openai", "CreateChatCompletionStreamResponse", data) == []
        by_sdk(openai.types.chat.ChatCompletionChunk, data)
    last = msgspec.json.decode(chunks[-1])
    assert (last["choices"] == []) is asked
    if asked:
        by_sdk(openai.types.CompletionUsage, msgspec.json.encode(last["usage"]))


async def test_streams_of_events(stand: Stand) -> None:
    """Each event of a response, a message and a completion."""
    for path, body, dialect, schema, model in (
        (
            "/responses",
            {"model": "gpt-4.1-nano", "input": "Hi"},
            "openai",
            "ResponseStreamEvent",
            ResponseStreamEvent,
        ),
        ("/messages", message(), "anthropic", "MessageStreamEvent", anthropic.types.RawMessageStreamEvent),
        (
            "/completions",
            {"model": "gpt-3.5-turbo-instruct", "prompt": "Hi"},
            "openai",
            "CreateCompletionResponse",
            openai.types.Completion,
        ),
    ):
        reply = await stand.post({**body, "stream": True}, path)
        found = events(reply.body)
        assert len(found) > 2
        for data in found:
            if msgspec.json.decode(data).get("type") == "ping":
                continue  # neither the document nor the SDK has it among the events
            # OpenAI's own examples of what is in progress have these nulls, for which its document has no place.
            spared = data.replace(b',"usage":null', b"")
            if path == "/completions":
                spared = spared.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
            assert complaints(dialect, schema, spared) == []  # type: ignore[arg-type]
            by_sdk(model, spared)


async def test_lists_of_models(stand: Stand) -> None:
    """Which the gateway writes itself."""
    reply = await stand.post(None, "/models", method="GET")
    assert complaints("openai", "ListModelsResponse", reply.body) == []
    for listed in reply.json["data"]:
        by_sdk(openai.types.Model, msgspec.json.encode(listed))
    headers = {"anthropic-version": "2023-06-01"}
    reply = await stand.post(None, "/models", method="GET", headers=headers)
    assert reply.json["data"]
    for listed in reply.json["data"]:
        by_sdk(anthropic.types.ModelInfo, msgspec.json.encode(listed))
        assert complaints("anthropic", "ModelInfo", listed) == []


REQUESTS: tuple[tuple[str, Any, Dialect, str], ...] = (
    ("/v1/chat/completions", chat(), "openai", "CreateChatCompletionRequest"),
    ("/v1/chat/completions", chat(stream=True), "openai", "CreateChatCompletionRequest"),
    (
        "/v1/chat/completions",
        chat(stream=True, stream_options={"include_obfuscation": False}, tools=[TOOL], n=2, user="u"),
        "openai",
        "CreateChatCompletionRequest",
    ),
    (
        "/v1/chat/completions",
        {
            "model": "gpt-4o-mini",
            "max_tokens": 5,
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "a cat"},
            ],
        },
        "openai",
        "CreateChatCompletionRequest",
    ),
    (
        "/v1/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": ["a", "b"], "stream": True},
        "openai",
        "CreateCompletionRequest",
    ),
    ("/v1/embeddings", {"model": "text-embedding-3-small", "input": ["a"]}, "openai", "CreateEmbeddingRequest"),
    (
        "/v1/responses",
        {
            "model": "gpt-4.1-nano",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "a cat"},
            ],
            "stream": True,
            "store": False,
        },
        "openai",
        "CreateResponse",
    ),
    ("/v1/messages", message(stream=True), "anthropic", "CreateMessageParams"),
    (
        "/v1/messages",
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 50,
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                        {"type": "text", "text": "What is this?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "a cat"}]},
            ],
        },
        "anthropic",
        "CreateMessageParams",
    ),
)
LIMITS = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: f"{case[0]} {len(str(case[1]))}")
def test_requests(case: tuple[str, Any, Dialect, str]) -> None:
    """A request that the document allows is read and has a bound, and goes upstream as another that it allows, also
    with the gateway's own limit and its question for usage."""
    path, body, dialect, schema = case
    assert complaints(dialect, schema, body) == []
    call = parse(ENDPOINTS[path], msgspec.json.encode(body))
    assert call.content.unbounded is None
    field = LIMITS.get(call.endpoint.name)
    for limit in (None, *([(field, 2000)] if field else [])):
        sent = upstream_body(call, model="gpt-4o-mini", output_limit=limit)
        assert complaints(dialect, schema, sent) == []


async def test_recordings_and_files(stand: Stand) -> None:
    """What forms are answered with."""
    from aiohttp import FormData

    assert stand._session is not None
    for path, fields, schema, model in (
        (
            "/audio/transcriptions",
            {"model": "whisper-1"},
            "CreateTranscriptionResponseJson",
            openai.types.audio.Transcription,
        ),
        ("/files", {"purpose": "user_data"}, "OpenAIFile", openai.types.FileObject),
    ):
        form = FormData(fields)
        form.add_field("file", wav(500), filename="a.wav")
        headers = {"authorization": f"Bearer {stand.secret}"}
        async with stand._session.post(stand.url + path, data=form, headers=headers) as got:
            body = await got.read()
        assert (got.status, complaints("openai", schema, body)) == (200, [])
        by_sdk(model, body)
