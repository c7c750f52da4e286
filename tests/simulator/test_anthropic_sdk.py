"""The real Anthropic SDK takes every answer for its typed objects, whole and streamed."""

import math
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import TextBlock, ToolUseBlock

from tollkeeper.simulator import Simulator

WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}, "now": {"type": "boolean"}}},
}


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    root = simulator.base_url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=root, api_key="any", max_retries=0) as sdk:
        yield sdk


def asked(text: str, **fields: Any) -> Any:
    return {
        "model": "claude-haiku-4-5",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": text}],
        **fields,
    }


async def test_message(client: anthropic.AsyncAnthropic) -> None:
    """Text, ending and usage; the system prompt counts as input."""
    message = await client.messages.create(**asked("hello", system="Be brief."))
    (block,) = message.content
    assert isinstance(block, TextBlock) and message.stop_reason == "end_turn" and message.role == "assistant"
    assert message.usage.input_tokens == math.ceil(len("helloBe brief.") / 4)
    assert message.usage.output_tokens == len(block.text.split())
    assert message.usage.cache_read_input_tokens == message.usage.cache_creation_input_tokens == 0
    cut = await client.messages.create(**asked("hello") | {"max_tokens": 4})
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 4


async def test_directed_usage_leaves_the_cache_out_of_input(client: anthropic.AsyncAnthropic) -> None:
    """`input` is everything that was read; Anthropic's own input_tokens leaves out what the cache read and wrote."""
    text = "[[sim input=374 output=44 cached=100 cache_write=50 reasoning=12]]"
    for message in (
        await client.messages.create(**asked(text)),
        await _streamed(client, asked(text)),
    ):
        usage = message.usage
        assert (usage.input_tokens, usage.output_tokens) == (224, 44)
        assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (100, 50)


async def _streamed(client: anthropic.AsyncAnthropic, fields: Any) -> Any:
    async with client.messages.stream(**fields) as stream:
        return await stream.get_final_message()


async def test_message_stream(client: anthropic.AsyncAnthropic) -> None:
    """Events in their order, adding up to the whole message."""
    whole = await client.messages.create(**asked("hello"))
    stream = await client.messages.create(**asked("hello"), stream=True)
    events: list[Any] = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert isinstance(whole.content[0], TextBlock)
    assert "".join(event.delta.text for event in events[2:-3]) == whole.content[0].text
    assert events[0].message.usage.input_tokens == whole.usage.input_tokens
    assert events[-2].usage.output_tokens == whole.usage.output_tokens == len(events) - 5
    assert events[-2].delta.stop_reason == "end_turn"


async def test_tool_use(client: anthropic.AsyncAnthropic) -> None:
    """A tool call with typed input, whole and streamed."""
    fields = asked("[[sim tool=get_weather]]", tools=[WEATHER])
    for message in (await client.messages.create(**fields), await _streamed(client, fields)):
        (block,) = message.content
        assert isinstance(block, ToolUseBlock) and message.stop_reason == "tool_use"
        assert block.name == "get_weather" and block.input == {"city": "toll", "now": True}


async def test_conversation_with_blocks(client: anthropic.AsyncAnthropic) -> None:
    """Text in blocks and tool results counts; an image's base64 does not."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1234"}, image]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "12345678"}]},
    ]
    message = await client.messages.create(**asked("") | {"messages": messages})
    assert message.usage.input_tokens == 3


async def test_models(client: anthropic.AsyncAnthropic) -> None:
    """The list of models, in Anthropic's form for its SDK."""
    models = [model async for model in client.models.list()]
    assert "claude-haiku-4-5" in [model.id for model in models] and models[0].created_at.year == 2023


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, anthropic.AuthenticationError, "authentication_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_directed_status(
    client: anthropic.AsyncAnthropic, status: int, error: type[anthropic.APIStatusError], kind: str
) -> None:
    """A directed status raises the SDK's own error."""
    with pytest.raises(error) as caught:
        await client.messages.create(**asked(f"[[sim status={status} retry_after=2]]"))
    body: Any = caught.value.body
    assert body["error"]["type"] == kind and caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "2" and caught.value.request_id == body["request_id"]


async def test_keys_and_models() -> None:
    """With keys, a wrong one is refused as Anthropic does; with models, so is an unknown one."""
    server = Simulator(api_keys={"right"}, models=["claude-opus-5"])
    await server.start()
    root = server.base_url.removesuffix("/v1")
    try:
        async with anthropic.AsyncAnthropic(base_url=root, api_key="wrong", max_retries=0) as sdk:
            with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
                await sdk.messages.create(**asked("hello"))
        async with anthropic.AsyncAnthropic(base_url=root, auth_token="right", max_retries=0) as sdk:
            with pytest.raises(anthropic.NotFoundError, match="model: claude-haiku-4-5"):
                await sdk.messages.create(**asked("hello"))
            assert (await sdk.messages.create(**asked("hello") | {"model": "claude-opus-5"})).content
    finally:
        await server.stop()
