"""Unmodified SDKs (Python, npm) and what stands on them, through a whole gateway: base URL and key, nothing else."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import msgspec
import openai
import pytest

from tests.gateway.test_media import wav
from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.npm import install

NPM = Path(__file__).parent / "npm"
MESSAGES: Any = [{"role": "user", "content": "Hello [[sim input=3 output=7]]"}]


class Deployment(NamedTuple):
    """A gateway on the embedded default. `spent` has 0.004 USD left this month, `slow` one request a minute."""

    url: str
    key: str
    spent: str
    slow: str


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("sdks")
    simulator = SimulatorProcess(folder)
    gateway = GatewayProcess(folder / "gateway", simulator.url, {})
    secrets = [
        str(gateway.admin("POST", "/keys", {"name": name, "limits": limits})["secret"])
        for name, limits in (
            ("key", {"rpm": 1000, "budgets": {"month": "10"}}),
            ("spent", {"budgets": {"month": "0.01"}}),
            ("slow", {"rpm": 1}),
        )
    ]
    made = Deployment(gateway.url, *secrets)
    openai.OpenAI(base_url=f"{made.url}/v1", api_key=made.spent).chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "[[sim output=10000]]"}], max_tokens=10_000
    )
    yield made
    assert gateway.stop() == 0
    simulator.kill()


def test_openai_python(deployment: Deployment) -> None:
    client = openai.OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.key)
    chat = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert chat.choices[0].message.content and chat.usage and chat.usage.completion_tokens == 7
    chunks = list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    assert all(c.choices for c in chunks), "the usage chunk that we asked for is not shown to a client that did not"
    asked = list(
        client.chat.completions.create(
            model="gpt-4o-mini",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert asked[-1].usage and asked[-1].usage.completion_tokens == 7
    response = client.responses.create(model="gpt-4.1-nano", input="Hello [[sim output=5]]")
    assert response.output_text and response.usage and response.usage.output_tokens == 5
    with client.responses.stream(model="gpt-4.1-nano", input="Hello [[sim output=5]]") as stream:
        assert stream.get_final_response().output_text
    embedding = client.embeddings.create(model="text-embedding-3-small", input="Hello")
    assert len(embedding.data[0].embedding) > 0
    completion = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello [[sim output=4]]")
    assert completion.usage and completion.usage.completion_tokens == 4
    assert "gpt-4o-mini" in {model.id for model in client.models.list()}
    raw = client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=MESSAGES)
    headers = raw.headers
    assert headers["x-request-id"].startswith("req_") and headers["x-tollkeeper-cost-usd"] == "0.00000465"
    assert headers["x-ratelimit-limit-requests"] == "1000" and "x-tollkeeper-budget-remaining-usd" in headers


def test_openai_python_media(deployment: Deployment) -> None:
    """Moderations, images, speech and recordings, which the SDK sends as JSON or as forms."""
    with openai.OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.key) as client:
        assert not client.moderations.create(input="hello").results[0].flagged
        image = client.images.generate(model="gpt-image-1-mini", prompt="a cat", n=2)
        assert image.data and len(image.data) == 2 and image.usage and image.usage.output_tokens == 2 * 1056
        edited = client.images.edit(
            model="gpt-image-1-mini", prompt="a hat", image=[("a.png", b"a"), ("b.png", b"b")]
        )
        assert edited.usage and edited.usage.input_tokens_details.image_tokens == 600
        with pytest.raises(openai.BadRequestError, match="per_image_usd"), pytest.deprecated_call():
            client.images.create_variation(image=("a.png", b"a"), model="dall-e-2")
        spoken = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello")
        assert spoken.content.startswith(b"ID3") and spoken.response.headers["content-type"] == "audio/mpeg"
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Hello"
        ) as stream:
            assert b"".join(stream.iter_bytes()) == spoken.content
        recording = ("a.wav", wav(1500))
        heard = client.audio.transcriptions.create(model="whisper-1", file=recording)
        assert heard.text and heard.usage and heard.usage.type == "duration" and heard.usage.seconds == 1.5
        assert client.audio.transcriptions.create(model="whisper-1", file=recording, response_format="text")
        events = list(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording, stream=True))
        assert events[-1].type == "transcript.text.done" and events[-1].usage
        with pytest.deprecated_call():
            assert client.audio.translations.create(model="whisper-1", file=recording).text


def test_openai_python_stored(deployment: Deployment) -> None:
    """Answers and files that the provider keeps: for the organisation that made them, through its life at the SDK."""
    with (
        openai.OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.key) as client,
        openai.OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.slow) as other,
    ):
        first = client.responses.create(model="gpt-4.1-nano", input="Hello")
        assert client.responses.retrieve(first.id).output_text == first.output_text
        assert list(client.responses.input_items.list(first.id))
        assert client.responses.create(model="gpt-4.1-nano", input="And?", previous_response_id=first.id).output_text
        file = client.files.create(file=("a.txt", b"text"), purpose="user_data")
        assert [its.id for its in client.files.list(purpose="user_data")] == [file.id]
        assert client.files.retrieve(file.id).filename == "a.txt" and client.files.content(file.id).read() == b"text"
        for steal in (lambda: other.responses.retrieve(first.id), lambda: other.files.content(file.id)):
            with pytest.raises(openai.NotFoundError):
                steal()
        assert not list(other.files.list())
        line: dict[str, Any] = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings"}
        line |= {"body": {"model": "text-embedding-3-small", "input": "Hello"}}
        asked = client.files.create(file=("in.jsonl", msgspec.json.encode(line)), purpose="batch")
        batch = client.batches.create(input_file_id=asked.id, endpoint="/v1/embeddings", completion_window="24h")
        done = client.batches.retrieve(batch.id)
        assert done.status == "completed" and done.output_file_id
        assert b"custom_id" in client.files.content(done.output_file_id).read()
        assert [its.id for its in client.batches.list()] == [batch.id] and not list(other.batches.list())
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        assert client.files.delete(file.id).deleted


def test_openai_python_errors(deployment: Deployment) -> None:
    """A 401 and a 429 raise the SDK's own errors; one that waiting cannot help is not retried."""
    base_url = f"{deployment.url}/v1"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key="tk_wrong").models.list()
    spent = openai.OpenAI(base_url=base_url, api_key=deployment.spent)
    with pytest.raises(openai.RateLimitError) as caught:
        spent.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=16_000)
    assert caught.value.code == "insufficient_quota" and caught.value.response.headers["x-should-retry"] == "false"
    slow = openai.OpenAI(base_url=base_url, api_key=deployment.slow, max_retries=0)
    slow.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    with pytest.raises(openai.RateLimitError) as caught:
        slow.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61
    assert 1 <= int(caught.value.response.headers["retry-after-ms"]) <= 60_010


def test_anthropic_python(deployment: Deployment) -> None:
    client = anthropic.Anthropic(base_url=deployment.url, api_key=deployment.key)
    message = client.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=MESSAGES)
    assert message.content[0].type == "text" and message.usage.output_tokens == 7
    assert client.messages.count_tokens(model="claude-haiku-4-5", messages=MESSAGES).input_tokens == 3
    with client.messages.stream(model="claude-haiku-4-5", max_tokens=50, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens == 7
    with pytest.raises(anthropic.AuthenticationError) as wrong:
        anthropic.Anthropic(base_url=deployment.url, api_key="tk_wrong").messages.create(
            model="claude-haiku-4-5",
            max_tokens=5,
            messages=MESSAGES,
        )
    body: Any = wrong.value.body
    assert body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.RateLimitError):
        anthropic.Anthropic(base_url=deployment.url, api_key=deployment.spent).messages.create(
            model="claude-haiku-4-5",
            max_tokens=1500,
            messages=MESSAGES,
        )


def test_npm_sdks(deployment: Deployment) -> None:
    """`openai` and `@anthropic-ai/sdk` from npm: chat, stream, responses, and their own error classes."""
    why = install(NPM, NPM / "node_modules" / "openai")
    assert why is None, why
    done = subprocess.run(
        ["node", "sdk.mjs", deployment.url, deployment.key, deployment.spent],
        cwd=NPM,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout) == {
        "chat": {"text": True, "tokens": 7},
        "stream": {"chunks": True, "usageChunks": 0},
        "responses": {"text": True, "tokens": 7},
        "message": {"text": True, "tokens": 7},
        "messageStream": {"tokens": 7},
        "wrongKey": "AuthenticationError 401",
        "spent": "RateLimitError 429",
        "anthropicWrongKey": "AuthenticationError 401",
    }


LANGCHAIN = """
import json, sys
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url, key = sys.argv[1:]
common = {"base_url": url + "/v1", "api_key": key, "model": "gpt-4o-mini"}

class Toll(BaseModel):
    amount: int

@tool
def weather(city: str) -> str:
    "The weather."
    return city

chat = ChatOpenAI(**common)
answer = chat.invoke("Hello [[sim input=3 output=7 cached=2 reasoning=1]]")
chunks = list(ChatOpenAI(**common, stream_usage=True).stream("Hello [[sim input=3 output=7]]"))
usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
called = chat.bind_tools([weather]).invoke("Hello [[sim tool=weather]]")
structured = chat.with_structured_output(Toll, method="function_calling").invoke("Hello [[sim tool=Toll]]")
over_responses = ChatOpenAI(**common, use_responses_api=True).invoke("Hello [[sim output=5]]")
embedded = OpenAIEmbeddings(base_url=url + "/v1", api_key=key, check_embedding_ctx_length=False).embed_query("Hello")
print(json.dumps({
    "text": bool(answer.text), "usage": answer.usage_metadata, "chunks": len(chunks) > 3, "streamed": usages[-1],
    "tool": called.tool_calls[0]["name"], "structured": structured.amount,
    "responses": over_responses.usage_metadata["output_tokens"], "dimensions": len(embedded),
}))
"""


def run(folder: Path, *arguments: str) -> str:
    """A program that knows nothing of this test run, and keeps what it keeps in a folder."""
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LLM_USER_PATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_langchain(deployment: Deployment, tmp_path: Path) -> None:
    """Whole and streamed answers with their usage, tools, structured output, the Responses API, embeddings."""
    found = msgspec.json.decode(run(tmp_path, sys.executable, "-c", LANGCHAIN, deployment.url, deployment.key))
    usage = found.pop("usage")
    assert (usage["input_tokens"], usage["output_tokens"]) == (3, 7)
    assert usage["input_token_details"]["cache_read"] == 2 and usage["output_token_details"]["reasoning"] == 1
    streamed = found.pop("streamed")
    assert (streamed["input_tokens"], streamed["output_tokens"]) == (3, 7)
    rest = {"text": True, "chunks": True, "tool": "weather", "structured": 1, "responses": 5, "dimensions": 1536}
    assert found == rest


def test_the_llm_command_line(deployment: Deployment, tmp_path: Path) -> None:
    """A prompt, a stream, and what the tool writes down of its usage, with a model that its configuration names."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: toll\n  model_name: gpt-4o-mini\n  api_base: {deployment.url}/v1\n  api_key_name: toll\n"
    )
    (tmp_path / "keys.json").write_text(msgspec.json.encode({"toll": deployment.key}).decode())
    llm = str(Path(sys.executable).parent / "llm")
    whole = run(tmp_path, llm, "-m", "toll", "--no-stream", "Hello [[sim output=7]]")
    streamed = run(tmp_path, llm, "-m", "toll", "-u", "Hello [[sim output=7]]")
    assert whole.strip() and streamed == whole
    logged = msgspec.json.decode(run(tmp_path, llm, "logs", "--json", "-n", "2"))
    assert [entry["output_tokens"] for entry in logged] == [7, 7]
