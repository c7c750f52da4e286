"""The real OpenAI SDK takes every answer for its typed objects, whole and streamed."""

import math
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall

from tollkeeper.simulator import Simulator
from tollkeeper.simulator.prose import TEXT

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        },
    },
}


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="sk-any", max_retries=0) as sdk:
        yield sdk


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_chat_completion(client: openai.AsyncOpenAI) -> None:
    """Sensible sentences, an estimate of the input, and usage with all its details."""
    answer = await client.chat.completions.create(model="gpt-4o", messages=user("How many carts crossed today?"))
    choice, usage = answer.choices[0], answer.usage
    assert choice.finish_reason == "stop" and choice.message.role == "assistant"
    assert choice.message.content and choice.message.content.split(". ")[0] in TEXT
    assert usage and usage.prompt_tokens == math.ceil(len("How many carts crossed today?") / 4)
    assert usage.completion_tokens == len(choice.message.content.split())
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens == 0
    assert usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens == 0


async def test_chat_completion_with_choices_and_maximum(client: openai.AsyncOpenAI) -> None:
    """Each of n choices keeps below the maximum and says that it was cut."""
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=user("hello"), n=3, max_completion_tokens=7, max_tokens=100
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    assert answer.usage and answer.usage.completion_tokens == 21
    assert len({choice.message.content for choice in answer.choices}) == 3


async def test_directed_usage(client: openai.AsyncOpenAI) -> None:
    """Every number of a directive arrives in its place."""
    text = "[[sim input=374 output=44 cached=100 cache_write=5 reasoning=12]]"
    answer = await client.chat.completions.create(model="gpt-4o", messages=user(text))
    usage = answer.usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens) == (374, 44)
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens == 100
    assert usage.prompt_tokens_details.cache_write_tokens == 5
    assert usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens == 12
    assert len((answer.choices[0].message.content or "").split()) == 32


@pytest.mark.parametrize("n", [1, 2])
async def test_chat_stream_says_what_the_whole_answer_says(client: openai.AsyncOpenAI, n: int) -> None:
    """Role first, content, ending; then usage in a chunk without choices, and null usage before it."""
    asked: Any = {"model": "gpt-4o", "messages": user("Tell me about the ledger."), "n": n}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.role for chunk in chunks[:n]] == ["assistant"] * n
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(part.delta.content or "" for part in mine) == choice.message.content
        assert [part.finish_reason for part in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])


async def test_chat_stream_without_usage(client: openai.AsyncOpenAI) -> None:
    """Usage is told only to those who asked for it."""
    stream = await client.chat.completions.create(model="gpt-4o", messages=user("hello"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert all("usage" not in chunk.model_fields_set and chunk.choices for chunk in chunks)


@pytest.mark.parametrize("output", ["", " output=400", " output=3"])
async def test_chat_tool_call(client: openai.AsyncOpenAI, output: str) -> None:
    """A directed tool call has arguments of the schema's types, and streams to the same call."""
    asked: Any = {
        "model": "gpt-4o",
        "messages": user(f"[[sim tool=get_weather{output}]]"),
        "tools": [WEATHER],
    }
    whole = await client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "tool_calls" and whole.choices[0].message.content is None
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments
    assert msgspec.json.decode(call.function.arguments) == {"city": "toll", "days": 1, "unit": "C"}


async def test_completion(client: openai.AsyncOpenAI) -> None:
    """Legacy completions, whole and streamed, one choice a prompt and 16 tokens by default."""
    whole = await client.completions.create(model="davinci", prompt=["one", "two"])
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]
    assert whole.usage and whole.usage.completion_tokens == 32
    stream = await client.completions.create(
        model="davinci", prompt=["one", "two"], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    for choice in whole.choices:
        parts = [c.choices[0].text for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(parts) == choice.text
    assert chunks[-1].usage == whole.usage


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    """Unit vectors, equal in both encodings and for equal texts; token ids count one each."""
    texts = ["the bridge", "the river"]
    coded = await client.embeddings.create(model="text-embedding-3-small", input=texts)
    plain = await client.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float")
    assert len(coded.data) == 2 and len(coded.data[0].embedding) == 1536
    assert coded.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-7)
    assert sum(x * x for x in coded.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert coded.usage.prompt_tokens == coded.usage.total_tokens == 5
    ids = await client.embeddings.create(model="text-embedding-3-small", input=[[1, 2, 3], [4]], dimensions=8)
    assert ids.usage.prompt_tokens == 4 and len(ids.data[1].embedding) == 8


async def test_response(client: openai.AsyncOpenAI) -> None:
    """The Responses API, whole: text, status and usage; cut by its maximum: incomplete."""
    answer = await client.responses.create(model="gpt-4o", input="hello", instructions="Be brief.")
    assert answer.status == "completed" and answer.output_text and answer.usage
    assert answer.usage.output_tokens == len(answer.output_text.split())
    assert answer.usage.input_tokens == math.ceil(len("helloBe brief.") / 4)
    cut = await client.responses.create(
        model="gpt-4o",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        max_output_tokens=3,
    )
    assert cut.status == "incomplete" and cut.incomplete_details and cut.usage and cut.usage.output_tokens == 3
    assert cut.incomplete_details.reason == "max_output_tokens"


async def test_response_stream(client: openai.AsyncOpenAI) -> None:
    """Events in their order, numbered without a gap; the deltas are the text; the last event has the usage."""
    stream = await client.responses.create(model="gpt-4o", input="hello", stream=True)
    events: list[Any] = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    assert "".join(event.delta for event in events[4:-4]) == final.output_text
    assert final.usage.output_tokens == len(events) - 8


async def test_response_tool_call(client: openai.AsyncOpenAI) -> None:
    """A function call, whole and through the SDK's own accumulation of events."""
    asked: Any = {
        "model": "gpt-4o",
        "input": "[[sim tool=get_weather reasoning=9]]",
        "tools": [{"type": "function", "strict": True, **WEATHER["function"]}],
    }
    whole = await client.responses.create(**asked)
    (call,) = whole.output
    assert isinstance(call, ResponseFunctionToolCall) and call.name == "get_weather"
    async with client.responses.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    (streamed,) = final.output
    assert isinstance(streamed, ResponseFunctionToolCall) and streamed.arguments == call.arguments
    assert final.usage and final.usage.output_tokens_details.reasoning_tokens == 9


async def test_models(client: openai.AsyncOpenAI) -> None:
    """A list to choose from."""
    assert "gpt-4o" in [model.id async for model in await client.models.list()]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_directed_status(client: openai.AsyncOpenAI, status: int, error: type[openai.APIStatusError]) -> None:
    """A directed status raises the SDK's own error, with the header to wait."""
    with pytest.raises(error) as caught:
        await client.chat.completions.create(
            model="gpt-4o", messages=user(f"[[sim status={status} retry_after=3]]"), stream=True
        )
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.request_id


async def test_keys_and_models() -> None:
    """With keys, a wrong one is refused as OpenAI does; with models, so is an unknown one."""
    server = Simulator(api_keys={"sk-right"}, models=["gpt-4o"])
    await server.start()
    try:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-wrong-0123456789", max_retries=0) as sdk:
            with pytest.raises(openai.AuthenticationError) as caught:
                await sdk.chat.completions.create(model="gpt-4o", messages=user("hello"))
            assert caught.value.code == "invalid_api_key" and "sk-wrong-012" not in str(caught.value)
            with pytest.raises(openai.AuthenticationError):
                await sdk.models.list()
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-right", max_retries=0) as sdk:
            with pytest.raises(openai.NotFoundError) as missing:
                await sdk.responses.create(model="gpt-9", input="hello")
            assert missing.value.code == "model_not_found"
            assert (await sdk.responses.create(model="gpt-4o", input="hello")).output_text
            assert [model.id async for model in await sdk.models.list()] == ["gpt-4o"]
        assert server.served.total().requests == 1 and server.served.answered == {200: 1, 401: 1, 404: 1}
    finally:
        await server.stop()
