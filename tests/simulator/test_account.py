"""The account equals what the clients received, in process, over HTTP and on disk."""

import asyncio
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.simulator.conftest import chat, eventually, exchange, http
from tollkeeper.domain.usage import Usage
from tollkeeper.simulator import ServedRequest, Simulator, Totals
from tollkeeper.simulator import account as account_module

PATHS = ("/chat/completions", "/completions", "/responses", "/messages", "/embeddings")
REQUESTS = 200


def body_for(path: str, user: str, stream: bool, directive: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": f"model-of{path.replace('/', '-')}", "user": user, "stream": stream}
    if path in ("/chat/completions", "/messages"):
        body["messages"] = [{"role": "user", "content": directive}]
    body |= {"prompt": directive} if path == "/completions" else {"input": directive}
    if path != "/embeddings":
        body["max_output_tokens" if path == "/responses" else "max_tokens"] = 40
    if path == "/messages":
        body["metadata"] = {"user_id": user}
    if path in ("/chat/completions", "/completions") and stream:
        body["stream_options"] = {"include_usage": True}
    return body


def usage_of(path: str, answer: str, stream: bool) -> Usage:
    """What a client learns from an answer."""
    datas = [line[6:] for line in answer.splitlines() if line.startswith("data: {")] if stream else [answer]
    told: dict[str, Any] = {}
    for data in datas:
        value = msgspec.json.decode(data)
        inner = value.get("response") or value.get("message") or value
        told |= inner.get("usage") or {}
    if path == "/messages":
        read, written = told["cache_read_input_tokens"], told["cache_creation_input_tokens"]
        total = told["input_tokens"] + read + written
        thinking = (told.get("output_tokens_details") or {}).get("thinking_tokens", 0)
        return Usage(total, told["output_tokens"], read, written, reasoning_tokens=thinking)
    if path == "/responses":
        inputs, outputs = told["input_tokens_details"], told["output_tokens_details"]
        given = (told["input_tokens"], told["output_tokens"])
        return Usage(
            *given,
            inputs["cached_tokens"],
            inputs["cache_write_tokens"],
            reasoning_tokens=outputs["reasoning_tokens"],
        )
    if path == "/embeddings":
        return Usage(told["prompt_tokens"])
    inputs, outputs = told["prompt_tokens_details"], told["completion_tokens_details"]
    return Usage(
        told["prompt_tokens"],
        told["completion_tokens"],
        inputs["cached_tokens"],
        inputs["cache_write_tokens"],
        reasoning_tokens=outputs["reasoning_tokens"],
    )


async def test_the_account_equals_what_clients_received(tmp_path: Path) -> None:
    """200 mixed requests at once: totals, list, HTTP and journal agree with the clients' own sums."""
    journal = tmp_path / "served.jsonl"
    simulator = Simulator(journal=journal)
    await simulator.start()
    dice = random.Random(7)
    received: dict[tuple[str, str], Totals] = defaultdict(Totals)
    by_id: dict[str, Usage] = {}

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        path, stream = PATHS[number % len(PATHS)], bool(dice.randrange(2)) and number % len(PATHS) != 4
        directive = f"[[sim input={dice.randrange(500)} cached={dice.randrange(300)} cache_write={dice.randrange(9)}"
        if path != "/embeddings":
            directive += f" output={dice.randrange(90)} reasoning={dice.randrange(20)}"
        else:
            directive = directive.split(" cached")[0]
        directive += f" delay_ms={dice.randrange(20)} chunk_delay_ms={dice.randrange(2)}]]"
        body = body_for(path, f"user-{number % 7}", stream, directive)
        headers = {"x-request-id": f"req-{number}"}
        async with session.post(f"{simulator.base_url}{path}", json=body, headers=headers) as response:
            assert response.status == 200
            usage = usage_of(path, await response.text(), stream)
        by_id[f"req-{number}"] = usage
        received[body["model"], body["user"]].add(usage, cut=False)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(ask(session, number) for number in range(REQUESTS)))
        root = simulator.base_url.removesuffix("/v1")
        summary = await (await session.get(f"{root}/sim/served")).json()
        page = await (await session.get(f"{root}/sim/requests?since={REQUESTS // 2}")).json()
    await simulator.stop()

    assert simulator.served.totals == received
    entries = list(simulator.served.requests)
    assert {entry.request_id: entry.usage for entry in entries} == by_id
    assert [entry.sequence for entry in entries] == list(range(1, REQUESTS + 1))
    assert all(entry.completed and entry.status == 200 for entry in entries)
    decoder = msgspec.json.Decoder(ServedRequest)
    assert [decoder.decode(line) for line in journal.read_bytes().splitlines()] == entries
    assert msgspec.convert(summary["total"], Totals) == simulator.served.total()
    assert {(row["model"], row["user"]): msgspec.convert(row, Totals) for row in summary["rows"]} == received
    assert summary["answered"] == {"200": REQUESTS} and summary["last"] == REQUESTS
    assert msgspec.convert(page["requests"], list[ServedRequest]) == entries[REQUESTS // 2 :]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("delay", ["", " chunk_delay_ms=1 delay_ms=1"])
async def test_the_journal_has_the_entry_before_the_last_byte(tmp_path: Path, stream: bool, delay: str) -> None:
    """Whoever holds a whole answer can rely on its entry being in the file."""
    simulator = Simulator(journal=tmp_path / "served.jsonl")
    await simulator.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        for number in range(1, 20):
            writer.write(http(chat(f"[[sim output=3{delay}]]", stream=stream)))
            await reader.readuntil(b"[DONE]\n\n" if stream else b'"fp_simulated"}')
            if stream:
                await reader.readuntil(b"0\r\n\r\n")
            assert len((tmp_path / "served.jsonl").read_bytes().splitlines()) == number
        writer.close()
    finally:
        await simulator.stop()


async def test_a_full_disk_serves_nothing_that_it_cannot_account_for(simulator: Simulator, tmp_path: Path) -> None:
    """A journal that cannot be written ends the exchange without an answer and without an entry."""
    loop, reported = asyncio.get_running_loop(), list[Any]()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    full = Simulator(journal=Path("/dev/full"))
    await full.start()
    try:
        for directive in ("[[sim input=1]]", "[[sim delay_ms=1]]"):
            answer = await exchange(full.port, http(chat(directive)))
            assert not answer.endswith(b"}") and b"chatcmpl" not in answer
        assert full.served.last == 0 and not full.served.totals
    finally:
        await full.stop()
    await eventually(lambda: reported)


async def test_reset_forgets_and_goes_on_counting(simulator: Simulator) -> None:
    """POST /sim/reset empties totals and list; sequence numbers go on, so that `since` stays valid."""
    close = "connection: close\r\n"
    await exchange(simulator.port, http(chat("one"), headers=close))
    await exchange(simulator.port, http(b"", "/sim/reset", close))
    assert not simulator.served.totals and not simulator.served.requests
    await exchange(simulator.port, http(chat("two"), headers=close))
    assert [entry.sequence for entry in simulator.served.requests] == [2]
    answer = await exchange(simulator.port, http(b"", "/sim/requests?since=0", close, "GET"))
    assert b'"oldest":2,"last":2' in answer and b'"sequence":2' in answer


async def test_bounds(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs beyond the bound share one row, so that sums stay exact."""
    monkeypatch.setattr(account_module, "TOTALS_MAX", 2)
    for user in "abcda":
        body = http(chat("[[sim input=1 output=1]]", user=user), headers="connection: close\r\n")
        await exchange(simulator.port, body)
    assert {user: totals.requests for (_, user), totals in simulator.served.totals.items()} == {
        "a": 2,
        "b": 1,
        "*": 2,
    }
    assert simulator.served.total().requests == 5
