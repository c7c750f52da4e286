"""How the data plane hears that a client has left: our own server tells it, any other has to be waited for."""

import asyncio
from typing import Any

import pytest

from tollkeeper.gateway import asgi
from tollkeeper.gateway.asgi import AsgiClient, InFlight

SCOPE: dict[str, Any] = {"method": "POST", "path": "/", "headers": []}


async def _sent(_: Any) -> None:
    raise AssertionError("nothing is sent")


def client_of(receive: Any) -> AsgiClient:
    client = AsgiClient(SCOPE, receive, _sent)
    task = asyncio.current_task()
    assert task is not None
    client.task = task
    return client


async def _never() -> Any:
    raise AssertionError("nobody waits for a quick request's client")


async def test_another_server_is_waited_for() -> None:
    left, told = asyncio.Event(), list[str]()
    gone = asyncio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    def on_gone() -> None:
        told.append("gone")
        gone.set()

    client = client_of(receive)
    client.watch(on_gone, lambda: told.append("slow"))
    client.turn_slow()
    left.set()
    await asyncio.wait_for(gone.wait(), 60)
    assert client.gone and told == ["slow", "gone"]
    client.unwatch()


async def test_a_request_that_is_quick_is_not_watched() -> None:
    """Not by a task."""
    client = client_of(_never)
    tasks = len(asyncio.all_tasks())
    client.watch(lambda: None, lambda: None)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks
    client.unwatch()


async def test_whoever_is_in_flight_for_long_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer for all; who has ended is not told, and nothing is left of it."""
    monkeypatch.setattr(asgi, "SLOW_AFTER_S", 0.001)
    in_flight, told = InFlight(), list[str]()
    slow, quick = client_of(_never), client_of(_never)
    for client, name in ((slow, "slow"), (quick, "quick")):
        in_flight.begin(client)
        client.when_slow(lambda name=name: told.append(name))  # type: ignore[misc]
    in_flight.end(quick)
    async with asyncio.timeout(60):
        while not told:
            await asyncio.sleep(0.001)
        slow.when_slow(lambda: told.append("at once"))
        later = client_of(_never)
        in_flight.begin(later)
        later.when_slow(lambda: told.append("later"))
        while "later" not in told:
            await asyncio.sleep(0.001)
    assert told == ["slow", "at once", "later"] and len(in_flight) == 2
    in_flight.end(slow)
    in_flight.end(later)
    await in_flight.over()
    assert not in_flight.tasks()
