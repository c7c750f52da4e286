"""HTTP/1.1 as clients speak it: order, framing, bounds and backpressure, seen from a raw socket."""

import asyncio
import re
import socket

import msgspec
import pytest

from tests.simulator.conftest import chat, eventually, exchange, http
from tollkeeper.simulator import Simulator
from tollkeeper.simulator.connection import BODY_BYTES_MAX, HEAD_BYTES_MAX, PIPELINED_MAX

CLOSE = "connection: close\r\n"


async def test_pipelined_requests_are_answered_in_order(simulator: Simulator) -> None:
    """More requests than may wait, slow and quick, streamed and not, bytes apart: answers keep the order."""
    numbers = range(1, PIPELINED_MAX + 30)
    requests = [
        http(chat(f"[[sim input={number} delay_ms={5 if number % 7 == 1 else 0}]]", stream=number % 3 == 0))
        for number in numbers
    ]
    raw = b"".join([*requests, http(chat("[[sim input=9999]]"), headers=CLOSE)])
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    for start in range(0, len(raw), 1000):
        writer.write(raw[start : start + 1000])
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(-1), 10)
    writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == len(numbers) + 1
    assert [entry.usage and entry.usage.input_tokens for entry in simulator.served.requests] == [*numbers, 9999]
    told = [int(number) for number in re.findall(rb'"prompt_tokens":(\d+)', answer)]
    assert told == [*(number for number in numbers if number % 3), 9999]


async def test_expect_continue_and_chunked_body(simulator: Simulator) -> None:
    """A client that asks first is told to go on, then sends its body in chunks."""
    body = msgspec.json.encode(chat("hello"))
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    for at in range(0, len(body), 10):
        part = body[at : at + 10]
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    answer = await reader.read(-1)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection: close" in answer


async def test_a_large_body_is_read_whole(simulator: Simulator) -> None:
    """A body just under the bound counts byte for byte."""
    size = BODY_BYTES_MAX - 1000
    answer = await exchange(simulator.port, http(chat("x" * size), headers=CLOSE), wait_s=20)
    assert b'"prompt_tokens":%d' % (size // 4) in answer


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_the_bound_is_refused(simulator: Simulator, chunked: bool) -> None:
    """413 with or without an announced length, and the client gets to read it although it is still sending."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    if not chunked:
        raw = head + b"content-length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1) + b"x" * 1_000_000
    else:
        part = b"x" * 1_048_576
        raw = head + b"transfer-encoding: chunked\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(part), part)) * 65
    answer = await exchange(simulator.port, raw, wait_s=20)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"connection: close" in answer
    assert simulator.served.last == 0


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01 this is not HTTP\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * HEAD_BYTES_MAX + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
    ],
)
async def test_bad_requests_are_refused_and_closed(simulator: Simulator, raw: bytes, status: int) -> None:
    """What is not HTTP, or too large a head, gets an error in OpenAI's form and a closed connection."""
    answer = await exchange(simulator.port, raw)
    assert answer.startswith(b"HTTP/1.1 %d " % status) and b'{"error":' in answer


async def test_an_upgrade_is_refused(simulator: Simulator) -> None:
    """One answer, in HTTP/1.1, and whatever follows in another protocol is not read."""
    asked = http(chat("hello"), headers="upgrade: h2c\r\nconnection: upgrade\r\n") + b"PRI * HTTP/2.0\r\n\r\n"
    answer = await exchange(simulator.port, asked)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1 and simulator.served.last == 0


async def test_a_bad_request_behind_a_slow_one_waits_for_its_turn(simulator: Simulator) -> None:
    """The slow answer comes whole, then the refusal."""
    answer = await exchange(simulator.port, http(chat("[[sim delay_ms=30]]")) + b"nonsense\r\n\r\n")
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/sim/reset", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/sim/requests?since=x", 400),
        ("HEAD", "/v1/models", 405),
    ],
)
async def test_unknown_paths_and_methods(simulator: Simulator, method: str, path: str, status: int) -> None:
    """An error in OpenAI's form, and no entry in the account; HEAD has no body."""
    answer = await exchange(simulator.port, http(b"", path, CLOSE, method))
    assert answer.startswith(b"HTTP/1.1 %d " % status) and simulator.served.last == 0
    assert answer.endswith(b"\r\n\r\n") == (method == "HEAD")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b'{"model":"x"}',
        b'{"messages":[]}',
        b'{"model":1,"messages":[]}',
        b'{"model":"x","messages":[{"content":1}]}',
        b'{"model":"x","messages":[],"n":0}',
        b'{"model":"x","messages":[],"max_tokens":0}',
        b'{"model":"\xff","messages":[]}',
        b'{"model":"x","messages":' + b"[" * 100_000,
    ],
)
async def test_bad_bodies_are_refused_in_both_dialects(simulator: Simulator, body: bytes) -> None:
    """A 400 that says why, an entry without usage, and a connection that can be used again."""
    raw = http(body) + http(body, "/v1/messages") + http(chat("hello"), headers=CLOSE)
    answer = await exchange(simulator.port, raw)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"400", b"400", b"200"]
    assert b'{"error":' in answer and b'{"type":"error","error":' in answer
    assert [entry.usage is None for entry in simulator.served.requests] == [True, True, False]


async def test_http_1_0_gets_no_chunks(simulator: Simulator) -> None:
    """A stream to an HTTP/1.0 client ends with the connection."""
    raw = http(chat("hello", stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    answer = await exchange(simulator.port, raw)
    assert b"transfer-encoding" not in answer and answer.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_does_not_read_holds_up_its_own_stream(simulator: Simulator) -> None:
    """Backpressure: production stops while nobody reads, and what was produced is billed when the client leaves."""
    raw = socket.create_connection(("127.0.0.1", simulator.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.sendall(http(chat("[[sim input=5 output=500000]]", stream=True)))
    (connection,) = await _until_connected(simulator)
    await eventually(lambda: connection.task is not None)
    await eventually(lambda: connection._resumed is not None)
    await asyncio.sleep(0.05)
    assert connection.unsent_bytes() < 1_000_000
    raw.close()
    await eventually(lambda: simulator.served.last == 1)
    (entry,) = simulator.served.requests
    assert entry.usage and entry.cut_at_chunk and 0 < entry.cut_at_chunk < 100_000
    assert not entry.completed and entry.usage.output_tokens == entry.cut_at_chunk and entry.usage.input_tokens == 5


async def _until_connected(simulator: Simulator) -> list:  # type: ignore[type-arg]
    await eventually(lambda: simulator._connections)
    return list(simulator._connections)
