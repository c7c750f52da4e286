"""The data plane behind another ASGI server: the same answers, hang-ups and limits as behind our own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import uvicorn

from tests.gateway.conftest import PROVIDER_KEY, Stand, chat, message
from tollkeeper.gateway.asgi import AsgiClient, Client


@pytest.fixture
async def elsewhere(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    """The stand's data plane, and its requests, on a uvicorn; every client is one of ASGI's."""
    begin, clients = stand.plane._in_flight.begin, set[type[Client]]()

    def noted(client: Client) -> None:
        clients.add(type(client))
        begin(client)

    monkeypatch.setattr(stand.plane._in_flight, "begin", noted)
    config = uvicorn.Config(stand.plane, lifespan="off", log_level="critical", ws="none", http="httptools", port=0)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    stand.port = server.servers[0].sockets[0].getsockname()[1]
    stand.url = f"http://127.0.0.1:{stand.port}/v1"
    yield stand
    server.force_exit = True
    await server.shutdown()
    assert clients == {AsgiClient}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body_of"), [("/chat/completions", chat), ("/messages", message)])
async def test_an_answer_is_what_our_own_server_sends(
    elsewhere: Stand, path: str, body_of: Any, stream: bool
) -> None:
    """Status, headers but the server's own, and body; settled once."""
    reply = await elsewhere.post(body_of("[[sim input=12 output=3]]", stream=stream), path)
    assert reply.status == 200
    end, record = await elsewhere.one_end()
    assert (end.kind, record.tokens_input, record.tokens_output) == ("settled", 12, 3)
    assert reply.headers["x-request-id"] == record.request_id
    assert reply.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert PROVIDER_KEY not in str(reply.headers)
    if not stream:
        assert int(reply.headers["content-length"]) == len(reply.body)


async def test_errors_and_bounds_are_the_same(elsewhere: Stand) -> None:
    reply = await elsewhere.post(chat(), secret="tk_nobody")
    assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")
    reply = await elsewhere.post(b"x" * 200_001)
    assert (reply.status, reply.json["error"]["code"]) == (413, "request_too_large")
    reply = await elsewhere.post(None, method="GET")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


@pytest.mark.hasty
async def test_a_body_that_does_not_arrive_is_given_up(elsewhere: Stand) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", elsewhere.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {elsewhere.secret}\r\n"
    writer.write(f"{head}content-length: 10\r\n\r\n{{".encode())
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 60)
    writer.close()


async def test_a_client_that_hangs_up_is_heard(elsewhere: Stand) -> None:
    """The provider's answer is read to its end, and charged as it says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", elsewhere.port)
    body = msgspec.json.encode(chat("[[sim input=12 output=30 chunk_delay_ms=10]]", stream=True))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {elsewhere.secret}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.wait_for(reader.readuntil(b"data: "), 60)
    writer.transport.abort()
    end, record = await elsewhere.one_end()
    assert (end.kind, record.tokens_output, record.client_disconnected) == ("settled", 30, True)
