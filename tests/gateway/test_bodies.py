"""Bodies are kept for the record by the key's policy, and nothing that passes through is changed."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import Stand, chat, message
from tollkeeper.domain.bodies import Body, BodyLogging, ByteBudget
from tollkeeper.domain.policy import Policy
from tollkeeper.gateway import capture as capture_module
from tollkeeper.gateway.capture import Capture
from tollkeeper.gateway.dialects import ENDPOINTS

FULL = Policy(log_bodies=BodyLogging.FULL)
RESPONSES = {"model": "gpt-4o-mini", "input": "hello", "max_output_tokens": 20}


async def kept(stand: Stand) -> tuple[Body | None, Body | None]:
    await stand.settled()
    return stand.records.bodies[-1]


UNLIKE = ("id", "created", "created_at", "annotations", "logprobs")
"""Made anew for each answer, or not told in a stream."""


def shape(value: Any) -> Any:
    """Names and kinds without what differs from answer to answer."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items() if name not in UNLIKE}
    return [shape(item) for item in value] if isinstance(value, list) else value


async def test_bodies_are_off_by_default(stand: Stand) -> None:
    await stand.post(chat())
    await stand.settled()
    assert stand.records.bodies == [] and len(stand.records.all) == 1


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", chat("[[sim output=12]] hi")),
    "completions": ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "hi", "max_tokens": 12}),
    "responses": ("/responses", RESPONSES),
    "messages": ("/messages", message("[[sim output=12]] hi")),
}


@pytest.mark.parametrize(("path", "body"), CALLS.values(), ids=CALLS)
async def test_a_stream_is_logged_as_the_whole_answer_would_be(stand: Stand, path: str, body: dict[str, Any]) -> None:
    stand.key(FULL)
    assert (await stand.post(body, path)).status == 200
    request, whole = await kept(stand)
    assert request == Body(body) and whole is not None and not whole.cut
    streamed = await stand.post({**body, "stream": True}, path)
    assert streamed.status == 200 and b"data: " in streamed.body
    request, together = await kept(stand)
    assert request == Body({**body, "stream": True}) and together is not None
    assert shape(together.value) == shape(whole.value)


async def test_what_passes_through_is_the_same_with_and_without(stand: Stand) -> None:
    """Byte for byte but for ids and times, which the provider makes anew."""

    async def ask() -> list[bytes]:
        reply = await stand.post(chat("[[sim output=5]] hi", stream=True))
        return [line[:30] for line in reply.body.splitlines()]

    without = await ask()
    stand.key(FULL)
    assert await ask() == without


async def test_the_innermost_scope_decides_and_a_client_may_opt_out(stand: Stand) -> None:
    stand.key(Policy(log_bodies=BodyLogging.OFF))
    await stand.post(chat())
    stand.key(FULL)
    await stand.post(chat(), headers={"x-tollkeeper-log-bodies": "OFF"})
    await stand.settled()
    assert stand.records.bodies == []
    stand.key(Policy(log_bodies=BodyLogging.TRUNCATED))
    await stand.post(chat("x" * 50_000))
    request, response = await kept(stand)
    assert request is not None and request.cut and len(request.value) == 2048 + 4096
    assert response is not None and not response.cut


async def test_errors_keep_what_the_client_was_told(stand: Stand) -> None:
    stand.key(FULL)
    await stand.post(chat("[[sim status=500]] hi"))
    request, response = await kept(stand)
    assert request is not None and response is not None and "error" in response.value


async def test_a_stream_that_breaks_keeps_what_was_seen(stand: Stand) -> None:
    stand.key(FULL)
    await stand.post(chat("[[sim output=20 fault=truncate after=5]] hi", stream=True))
    _, response = await kept(stand)
    assert response is not None
    text = response.value["choices"][0]["message"]["content"]
    assert stand.records.all[-1].error == "upstream_invalid_response" and len(text) > 0


async def test_a_client_that_hangs_up_leaves_the_whole_answer(stand: Stand) -> None:
    """It is read on for its usage anyway."""
    stand.key(FULL)
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    body = msgspec.json.encode(chat("[[sim output=30 chunk_delay_ms=10]] hi", stream=True))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
        % (stand.secret.encode(), len(body))
        + body
    )
    await reader.readuntil(b"data: ")
    writer.close()
    _, response = await kept(stand)
    record = stand.records.all[-1]
    assert record.client_disconnected and response is not None
    assert response.value["usage"]["completion_tokens"] == record.tokens_output == 30


async def test_memory_is_bounded_by_all_exchanges_together(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "STREAM_BYTES_MAX", 1000)
    endpoint, budget = ENDPOINTS["/v1/chat/completions"], ByteBudget(5000)
    one, two = Capture(budget, 10_000, endpoint), Capture(budget, 10_000, endpoint)
    one.request(b"x" * 4000)
    two.request(b"y" * 4000)
    one.streams()
    for _ in range(5):
        one.chunk(b"z" * 300)
    assert budget.used == 5000
    request, response = one.captured().read()
    assert request == Body(b"x" * 4000) and response == Body(b"z" * 1000, cut=True)
    assert two.captured().read() == (Body(b"", cut=True), None)
    one.captured().done()
    two.captured().done()
    assert budget.used == 0


def test_what_a_failed_attempt_began_to_say_is_forgotten() -> None:
    """Its budget comes back with the rest."""
    budget = ByteBudget(1000)
    capture = Capture(budget, 500, ENDPOINTS["/v1/chat/completions"])
    capture.request(b"{}")
    capture.streams()
    capture.chunk(b'data: {"choices": [')
    capture.again()
    capture.response(b'{"error": 1}')
    captured = capture.captured()
    assert captured.read() == (Body({}), Body({"error": 1}))
    captured.done()
    assert budget.take(1000)
