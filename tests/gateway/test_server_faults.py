"""Providers and clients that misbehave: the right status and dialect, one end of the attempt, one record."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import MODEL, Stand, chat, message, settings_for
from tollkeeper.simulator import Simulator

BOTH = [("/chat/completions", chat), ("/messages", message)]


def error_type(reply: Any, path: str) -> str:
    """The error's type, after checking the dialect's shape."""
    assert reply.headers["x-request-id"].startswith("req_")
    if path == "/messages":
        assert reply.json["type"] == "error"
        assert reply.headers["request-id"] == reply.headers["x-request-id"]
    else:
        assert set(reply.json) == {"error"}
        assert set(reply.json["error"]) >= {"message", "type", "param", "code"}
    return str(reply.json["error"]["type"])


@pytest.mark.parametrize(("path", "body_of"), BOTH)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("directive", "status", "record_error"),
    [
        ("fault=reset", 502, "upstream_unreachable"),
        ("fault=garbage", 502, "upstream_invalid_response"),
        pytest.param("fault=stall", 504, "upstream_timeout", marks=pytest.mark.hasty),
        ("fault=huge_header", 502, "upstream_invalid_response"),
    ],
)
async def test_no_status_back_is_presumed(
    stand: Stand, path: str, body_of: Any, stream: bool, directive: str, status: int, record_error: str
) -> None:
    """Sent whole and nothing readable back: the hold is charged, and the client told."""
    reply = await stand.post(body_of(f"[[sim {directive}]]", stream=stream), path)
    assert reply.status == status, reply.body
    assert error_type(reply, path)
    end, record = await stand.one_end()
    assert end.kind == "presumed"
    assert end.cost_nano == record.hold_nano > 0
    assert (record.status, record.error, record.streaming) == (status, record_error, stream)
    assert stand.count("tollkeeper_upstream_errors_total") == 1
    assert stand.count("tollkeeper_presumed_total") == 1


@pytest.mark.parametrize(("path", "body_of"), BOTH)
@pytest.mark.parametrize("directive", ["fault=truncate", "fault=bad_json"])
async def test_broken_whole_answer_is_presumed(stand: Stand, path: str, body_of: Any, directive: str) -> None:
    """A cut body or garbage with status 200 is a 502."""
    reply = await stand.post(body_of(f"[[sim {directive}]]"), path)
    assert reply.status == 502, reply.body
    assert error_type(reply, path)
    end, record = await stand.one_end()
    assert (end.kind, record.error) == ("presumed", "upstream_invalid_response")


async def test_answer_without_usage_is_passed_and_presumed(stand: Stand) -> None:
    reply = await stand.post(chat("[[sim fault=no_usage]]"))
    assert reply.status == 200
    assert reply.json["choices"]
    end, record = await stand.one_end()
    assert (end.kind, record.status, record.error) == ("presumed", 200, None)


@pytest.mark.parametrize(("path", "body_of"), BOTH)
async def test_provider_down_is_void(tmp_path: Path, simulator: Simulator, path: str, body_of: Any) -> None:
    """Nothing was sent: 502, and nothing is charged."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        stand = Stand(tmp_path, settings_for(url), simulator)
        stand.key()
        async with stand.running():
            reply = await stand.post(body_of(), path)
            assert reply.status == 502
            assert error_type(reply, path)
            end, record = await stand.one_end()
    assert (end.kind, record.cost_nano, record.error) == ("voided", 0, "upstream_unreachable")
    assert url.split("/")[2] not in reply.body.decode(), "the provider's address is not the client's business"


@pytest.mark.parametrize(("path", "body_of"), BOTH)
@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503, 529])
async def test_providers_error_is_passed_and_free(stand: Stand, path: str, body_of: Any, status: int) -> None:
    """Status, body and retry-after are the provider's; an error without usage costs nothing."""
    reply = await stand.post(body_of(f"[[sim status={status} retry_after=7]]"), path)
    assert reply.status == status
    assert reply.headers["retry-after"] == "7"
    assert error_type(reply, path)
    end, record = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("settled", 0)
    assert (record.status, record.error) == (status, f"upstream_{status}")


async def test_failed_request_costs_no_fee(stand: Stand) -> None:
    """A price per request is charged for answers, not for the provider's errors."""
    reply = await stand.post(chat("[[sim status=500]]", model="fee-model"))
    assert reply.status == 500
    end, _ = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("settled", 0)


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_provider_key_is_ours_to_mend(stand: Stand, status: int) -> None:
    """The client's key is fine: a 502 without the provider's words, which may show its key."""
    reply = await stand.post(chat(f"[[sim status={status}]]"))
    assert reply.status == 502
    assert reply.json["error"]["code"] == "upstream_authentication"
    end, _ = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("settled", 0)


def events_of(body: bytes) -> list[Any]:
    """The JSON of each data line; `[DONE]` as a string."""
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return ["[DONE]" if line == b"[DONE]" else msgspec.json.decode(line) for line in lines]


@pytest.mark.parametrize(
    ("path", "body", "final"),
    [
        ("/chat/completions", chat("[[sim output=9 input=50]]", stream=True), "[DONE]"),
        ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "[[sim output=9]]", "stream": True}, "[DONE]"),
        ("/responses", {"model": MODEL, "input": "[[sim output=9]]", "stream": True}, "response.completed"),
        ("/messages", message("[[sim output=9 cached=5]]", stream=True), "message_stop"),
    ],
)
async def test_streams_pass_and_settle(stand: Stand, path: str, body: Any, final: str) -> None:
    """The stream arrives whole, without the usage chunk nobody asked for, and what was served is charged."""
    reply = await stand.post(body, path)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.body)
    assert final in (events[-1], events[-1]["type"] if isinstance(events[-1], dict) else None)
    if path.endswith("completions"):
        assert not any(isinstance(e, dict) and e.get("usage") for e in events)
    end, record = await stand.one_end()
    assert end.kind == "settled"
    assert end.usage == stand.simulator.served.requests[0].usage
    assert record.first_byte_us is not None
    assert record.streaming


async def test_usage_chunk_stays_for_who_asked(stand: Stand) -> None:
    reply = await stand.post(chat("[[sim output=9]]", stream=True, stream_options={"include_usage": True}))
    assert events_of(reply.body)[-2]["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(("path", "body_of"), BOTH)
@pytest.mark.parametrize("fault", ["reset", "truncate", "garbage", pytest.param("stall", marks=pytest.mark.hasty)])
async def test_cut_stream_ends_with_an_error_event(stand: Stand, path: str, body_of: Any, fault: str) -> None:
    """What came is passed on, then an error in the dialect; the hold is charged."""
    reply = await stand.post(body_of(f"[[sim output=20 chunk_delay_ms=10 fault={fault} after=3]]", stream=True), path)
    assert reply.status == 200
    events = events_of(reply.body)
    assert len(events) >= 3
    assert "error" in events[-1]
    end, record = await stand.one_end()
    assert (end.kind, record.status) == ("presumed", 200)
    assert record.error in ("upstream_invalid_response", "upstream_timeout")
    assert not record.client_disconnected


async def test_stream_without_usage_is_presumed(stand: Stand) -> None:
    reply = await stand.post(chat("[[sim output=5 fault=no_usage]]", stream=True))
    assert events_of(reply.body)[-1] == "[DONE]"
    end, _ = await stand.one_end()
    assert end.kind == "presumed"


async def test_first_chunk_goes_out_at_once(stand: Stand) -> None:
    """With 50 ms between chunks the client has its first long before the last is made."""
    client = await Hanging.open(stand, chat("[[sim output=10 chunk_delay_ms=50]]", stream=True))
    loop = asyncio.get_running_loop()
    await client.read_until(b"data:")
    first = loop.time()
    await client.read_until(b"[DONE]")
    assert loop.time() - first > 0.2
    client.close()


async def test_settled_before_the_last_event(stand: Stand) -> None:
    """Whoever has read `[DONE]` finds the charge made."""
    client = await Hanging.open(stand, chat("[[sim output=10]]", stream=True))
    await client.read_until(b"[DONE]")
    assert [e.kind for e in stand.governor.ends] == ["settled"]
    client.close()


class Hanging:
    """A client on a bare socket that can leave whenever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.seen = b""

    @classmethod
    async def open(cls, stand: Stand, body: Any, path: str = "/chat/completions") -> "Hanging":
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", stand.port))
        reader, writer = await asyncio.open_connection(sock=sock)
        data = msgspec.json.encode(body)
        head = (
            f"POST /v1{path} HTTP/1.1\r\nhost: x\r\nx-api-key: {stand.secret}\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        return cls(reader, writer)

    async def read_until(self, mark: bytes) -> None:
        async with asyncio.timeout(5):
            while mark not in self.seen:
                chunk = await self.reader.read(65536)
                assert chunk, self.seen
                self.seen += chunk

    def close(self) -> None:
        self.writer.transport.abort()


@pytest.mark.parametrize(("path", "body_of"), BOTH)
async def test_hang_up_mid_stream_learns_the_truth(stand: Stand, path: str, body_of: Any) -> None:
    """The answer is read on without the client, and charged by what was served."""
    client = await Hanging.open(stand, body_of("[[sim output=20 chunk_delay_ms=30]]", stream=True), path)
    await client.read_until(b"data:")
    client.close()
    end, record = await stand.one_end()
    assert end.kind == "settled"
    assert end.usage == stand.simulator.served.requests[0].usage
    assert end.usage.output_tokens == 20
    assert (record.client_disconnected, record.status) == (True, 200)
    assert stand.count("tollkeeper_client_hangups_total") == stand.count("tollkeeper_drains_total") == 1
    assert stand.plane.health()["draining_requests"] == 0


async def test_hang_up_mid_stream_charges_the_hold_at_the_drains_end(stand: Stand) -> None:
    """No longer than the drain timeout (1 s here) is the provider read for a client that is gone."""
    client = await Hanging.open(stand, chat("[[sim output=200 chunk_delay_ms=50]]", stream=True))
    await client.read_until(b"data:")
    client.close()
    started = asyncio.get_running_loop().time()
    end, record = await stand.one_end()
    assert end.kind == "presumed"
    assert 0.8 < asyncio.get_running_loop().time() - started < 2.5
    assert record.client_disconnected


@pytest.mark.parametrize("stream", [False, True])
async def test_hang_up_before_headers(stand: Stand, stream: bool) -> None:
    """The provider's answer is awaited and its usage charged, though nobody reads it."""
    client = await Hanging.open(stand, chat("[[sim output=5 delay_ms=300]]", stream=stream))
    await asyncio.sleep(0.2)
    client.close()
    end, record = await stand.one_end()
    assert (end.kind, end.usage.output_tokens) == ("settled", 5)
    assert (record.client_disconnected, record.status) == (True, 499)


async def test_cancelled_request_settles_once(stand: Stand) -> None:
    """A stop that cannot wait any longer cancels: what was sent is presumed, with one record."""
    client = await Hanging.open(stand, chat("[[sim output=100 chunk_delay_ms=100]]", stream=True))
    while not stand.governor.dispatches:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await stand.plane.stop()
    end, record = await stand.one_end()
    client.close()
    assert end.kind == "presumed"
    assert record.error == "cancelled"


async def test_stop_waits_for_requests_in_flight(stand: Stand) -> None:
    """A request that ends within the drain timeout is served and charged by the truth."""
    request = asyncio.create_task(stand.post(chat("[[sim output=5 delay_ms=300]]")))
    while not stand.governor.dispatches:
        await asyncio.sleep(0.01)
    await stand.plane.stop()
    assert (await request).status == 200
    end, _ = await stand.one_end()
    assert (end.kind, end.usage.output_tokens) == ("settled", 5)


@pytest.mark.parametrize("when_s", [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancellation_at_any_time_ends_once(stand: Stand, when_s: float, stream: bool) -> None:
    """However far a request has come when its task is cancelled: one end for each grant, one record for each end."""
    client = await Hanging.open(stand, chat("[[sim output=10 delay_ms=50 chunk_delay_ms=20]]", stream=stream))
    await asyncio.sleep(when_s)
    for task in asyncio.all_tasks():
        if "RequestResponseCycle.run_asgi" in repr(task.get_coro()):
            task.cancel()
    await asyncio.sleep(0.05)
    await stand.settled()
    client.close()
    assert len(stand.governor.granted) == len(stand.governor.ends) == len(stand.records.all) <= 1
    assert not stand.governor.ends or stand.governor.ends[0].kind != "voided" or not stand.governor.dispatches


async def test_slow_client_slows_the_provider_down(stand: Stand) -> None:
    """A client that does not read fills no memory: what waits for it is bounded, and it gets all in the end."""
    client = await Hanging.open(stand, chat("[[sim output=8000]]", stream=True))
    await asyncio.sleep(0.5)
    assert not stand.governor.ends, "the stream is held back, its end not reached"
    await client.read_until(b"[DONE]")
    end, _ = await stand.one_end()
    client.close()
    assert end.usage.output_tokens == 8_000
