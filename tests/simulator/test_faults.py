"""Each directive and each fault as a client sees it on the wire, and what the account says afterwards."""

import asyncio
import time
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop

from tests.simulator.conftest import chat, eventually, exchange, http
from tollkeeper.domain.usage import Usage
from tollkeeper.simulator import ServedRequest, Simulator
from tollkeeper.simulator.exchange import HUGE_HEADER_BYTES

CLOSE = "connection: close\r\n"
SIZED = "input=10 output=20"


async def last_entry(simulator: Simulator) -> ServedRequest:
    await eventually(lambda: simulator.served.requests)
    return simulator.served.requests[-1]


@pytest.mark.parametrize(
    "directive",
    ["[[sim outptu=3]]", "[[sim output=-3]]", "[[sim fault=fire]]", "[[sim status=200]]", "[[sim output]]"],
)
async def test_a_directive_with_an_error_is_refused(simulator: Simulator, directive: str) -> None:
    """No test passes by a typing error."""
    answer = await exchange(simulator.port, http(chat(directive), headers=CLOSE))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"invalid_directive" in answer


async def test_the_last_directive_of_a_conversation_counts(simulator: Simulator) -> None:
    """An earlier turn's directive does not come back with the history."""
    body = chat("[[sim status=500]]")
    body["messages"].append({"role": "user", "content": f"[[sim {SIZED}]]"})
    answer = await exchange(simulator.port, http(body, headers=CLOSE))
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"completion_tokens":20' in answer


async def test_delays(simulator: Simulator) -> None:
    """`delay_ms` before the first byte, `chunk_delay_ms` between chunks."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(http(chat("[[sim output=5 delay_ms=60 chunk_delay_ms=20]]", stream=True), headers=CLOSE))
    await reader.readuntil(b"\r\n\r\n")
    first = time.monotonic() - began
    rest = await reader.read(-1)
    writer.close()
    assert first >= 0.06 and time.monotonic() - began >= 0.14 and rest.endswith(b"0\r\n\r\n")


async def test_default_delays_hold_where_no_directive_does() -> None:
    """The constructor's delays, and a directive that overrides them."""
    server = Simulator(first_byte_delay_s=0.05, chunk_delay_s=0.02)
    await server.start()
    try:
        began = time.monotonic()
        await exchange(server.port, http(chat("hello", stream=True, max_tokens=3), headers=CLOSE))
        assert time.monotonic() - began >= 0.09
        quick = "[[sim delay_ms=0 chunk_delay_ms=0]]"
        began = time.monotonic()
        await exchange(server.port, http(chat(quick, stream=True), headers=CLOSE))
        assert time.monotonic() - began < 0.05
    finally:
        await server.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_reset(simulator: Simulator, stream: bool) -> None:
    """A TCP reset instead of an answer: nothing is billed."""
    with pytest.raises(ConnectionResetError):
        await exchange(simulator.port, http(chat("[[sim fault=reset]]", stream=stream)))
    entry = await last_entry(simulator)
    assert (entry.usage, entry.status, entry.completed) == (None, 0, False)
    assert simulator.served.total().requests == 0


async def _reset_after_two(simulator: Simulator) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(http(chat("[[sim input=10 output=20 reasoning=4 fault=reset after=2]]", stream=True)))
    received = b""
    with pytest.raises(ConnectionResetError):
        while data := await reader.read(65536):
            received += data
    writer.close()
    assert received.startswith(b"HTTP/1.1 200 ") and received.count(b'"content":"') == 3
    entry = await last_entry(simulator)
    assert entry.usage == Usage(10, 6, reasoning_tokens=4) and entry.cut_at_chunk == 2
    assert simulator.served.total().cut == 1


async def test_reset_in_a_stream(simulator: Simulator) -> None:
    """Two chunks arrive, then a reset: billed are the input, the reasoning and two tokens."""
    await _reset_after_two(simulator)


def test_reset_in_a_stream_on_uvloop() -> None:
    """The same on the loop that production uses."""

    async def run() -> None:
        server = Simulator()
        await server.start()
        try:
            with pytest.raises(ConnectionResetError):
                await exchange(server.port, http(chat("[[sim fault=reset]]")))
            server.served.reset()
            await _reset_after_two(server)
        finally:
            await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_garbage(simulator: Simulator) -> None:
    """Bytes that no HTTP client takes for an answer."""
    assert (await exchange(simulator.port, http(chat("[[sim fault=garbage]]")))).startswith(b"\x00\xff")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{simulator.base_url}/chat/completions", json=chat("[[sim fault=garbage]]"))
    assert simulator.served.last >= 2 and simulator.served.total().requests == 0


async def test_garbage_in_a_stream(simulator: Simulator) -> None:
    """Two good chunks, then the framing breaks."""
    directive = f"[[sim {SIZED} fault=garbage after=2]]"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.post(
                f"{simulator.base_url}/chat/completions", json=chat(directive, stream=True)
            ) as response:
                await response.read()
    assert (await last_entry(simulator)).usage == Usage(10, 2)


async def test_bad_json(simulator: Simulator) -> None:
    """Status 200, the announced length, and a body that is not JSON: billed, as the answer was produced."""
    async with aiohttp.ClientSession() as session:
        response = await session.post(
            f"{simulator.base_url}/chat/completions", json=chat(f"[[sim {SIZED} fault=bad_json]]")
        )
        body = await response.read()
    assert response.status == 200
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body)
    entry = await last_entry(simulator)
    assert entry.completed and entry.usage == Usage(10, 20)


async def test_bad_json_in_a_stream(simulator: Simulator) -> None:
    """One invalid line after two chunks, and the stream goes on to its end."""
    asked = chat(f"[[sim {SIZED} fault=bad_json after=2]]", stream=True)
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{simulator.base_url}/chat/completions", json=asked)
        lines = (await response.text()).split("\n\n")
    broken = [at for at, line in enumerate(lines) if line.startswith("data: {") and not line.endswith("}")]
    assert broken == [3] and lines[-2] == "data: [DONE]" and len(lines) == 1 + 20 + 1 + 1 + 2
    assert (await last_entry(simulator)).completed


@pytest.mark.parametrize(("stream", "after", "usage"), [(False, "", None), (True, "", None), (True, " after=2", 2)])
async def test_stall(simulator: Simulator, stream: bool, after: str, usage: int | None) -> None:
    """Silence until the client gives up; before the first byte nothing is billed."""
    asked = http(chat(f"[[sim {SIZED} fault=stall{after}]]", stream=stream))
    with pytest.raises(TimeoutError):
        await exchange(simulator.port, asked, wait_s=0.1)
    entry = await last_entry(simulator)
    assert not entry.completed and entry.usage == (None if usage is None else Usage(10, usage))


async def test_truncate(simulator: Simulator) -> None:
    """The announced length is not reached: billed whole, not completed."""
    async with aiohttp.ClientSession() as session:
        response = await session.post(
            f"{simulator.base_url}/chat/completions", json=chat(f"[[sim {SIZED} fault=truncate]]")
        )
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    entry = await last_entry(simulator)
    assert not entry.completed and entry.usage == Usage(10, 20) and entry.status == 200


@pytest.mark.parametrize(("after", "produced"), [("", 1), (" after=3", 3), (" after=99", 20), (" after=0", 0)])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_truncate_a_stream(simulator: Simulator, path: str, after: str, produced: int) -> None:
    """A stream that ends without its end, in every dialect: billed is what was written."""
    asked: dict[str, Any] = chat(f"[[sim {SIZED} fault=truncate{after}]]", stream=True, max_tokens=100)
    asked["input"] = asked["messages"]
    answer = await exchange(simulator.port, http(asked, path))
    deltas = answer.count(b"event: content_block_delta") + answer.count(b"event: response.output_text.delta")
    if path == "/v1/chat/completions":
        deltas = answer.count(b'"content":"') - 1
    entry = await last_entry(simulator)
    assert (entry.usage, entry.cut_at_chunk) == (Usage(10, produced), produced)
    assert deltas == produced and not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
async def test_no_usage(simulator: Simulator, path: str, stream: bool) -> None:
    """An answer that does not tell its usage, which is billed all the same."""
    asked = chat(f"[[sim {SIZED} fault=no_usage]]", stream=stream, max_tokens=100, input="x", prompt="x")
    answer = await exchange(simulator.port, http(asked | {"stream_options": {"include_usage": True}}, path, CLOSE))
    assert answer.startswith(b"HTTP/1.1 200 ") and b"_tokens" not in answer.replace(b"max_output_tokens", b"")
    assert (await last_entry(simulator)).usage == Usage(10, 20)


@pytest.mark.parametrize("delay", ["", " delay_ms=1"])
@pytest.mark.parametrize("stream", [False, True])
async def test_close(simulator: Simulator, stream: bool, delay: str) -> None:
    """A whole answer on a connection that closes though nothing announced it."""
    answer = await exchange(simulator.port, http(chat(f"[[sim fault=close{delay}]]", stream=stream)))
    assert answer.startswith(b"HTTP/1.1 200 ") and b"connection:" not in answer
    assert answer.endswith(b"0\r\n\r\n" if stream else b"}")
    assert (await last_entry(simulator)).completed


async def test_huge_header(simulator: Simulator) -> None:
    """A header that clients with a bound refuse."""
    answer = await exchange(simulator.port, http(chat("[[sim fault=huge_header]]"), headers=CLOSE))
    assert len(answer) > HUGE_HEADER_BYTES and answer.endswith(b"}")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{simulator.base_url}/chat/completions", json=chat("[[sim fault=huge_header]]"))


async def test_a_client_that_leaves_during_the_delay_pays_nothing(simulator: Simulator) -> None:
    """Nothing was produced, so nothing is billed; the entry says so."""
    with pytest.raises(TimeoutError):
        await exchange(simulator.port, http(chat("[[sim delay_ms=5000]]")), wait_s=0.05)
    entry = await last_entry(simulator)
    assert (entry.usage, entry.status, entry.completed, entry.cut_at_chunk) == (None, 0, False, None)


async def test_a_client_that_leaves_in_a_stream_pays_what_was_produced(simulator: Simulator) -> None:
    """Input and one token a chunk, as real providers bill a cut stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(http(chat("[[sim input=10 output=1000 chunk_delay_ms=5]]", stream=True)))
    received = b""
    while received.count(b'"content":"') < 5:
        received += await reader.read(65536)
    writer.close()
    entry = await last_entry(simulator)
    assert entry.usage and entry.cut_at_chunk and 4 <= entry.cut_at_chunk < 100
    assert entry.usage == Usage(10, entry.cut_at_chunk) and not entry.completed


async def test_stop_cuts_what_is_in_progress() -> None:
    """Stop does not wait for slow answers, and records them as cut."""
    server = Simulator()
    await server.start()
    asked = [http(chat("[[sim delay_ms=60000]]")), http(chat("[[sim output=9 chunk_delay_ms=60000]]", stream=True))]
    running = [asyncio.create_task(exchange(server.port, each)) for each in asked]
    await eventually(lambda: sum(c.task is not None for c in server._connections) == 2)
    await asyncio.sleep(0.02)
    await server.stop()
    await asyncio.gather(*running, return_exceptions=True)
    assert sorted(entry.cut_at_chunk or 0 for entry in server.served.requests) == [0, 1]
    await server.stop()
