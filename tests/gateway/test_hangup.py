"""How the data plane hears that a client has left: our own server tells it, any other has to be waited for."""

import asyncio
from typing import Any

from tollkeeper.gateway import asgi
from tollkeeper.gateway.asgi import Client

SCOPE: dict[str, Any] = {"method": "POST", "path": "/", "headers": []}


async def _sent(_: Any) -> None:
    raise AssertionError("nothing is sent")


class Server:
    """What our own server is to an application: `receive` is a method of it."""

    def __init__(self) -> None:
        self.act: Any = None

    async def receive(self) -> Any:
        raise AssertionError("nobody waits for what is told")

    def when_gone(self, act: Any) -> None:
        self.act = act


async def test_our_own_server_tells() -> None:
    """No task waits; and it is not asked any more once the request is over."""
    server, told = Server(), list[str]()
    client = Client(SCOPE, server.receive, _sent)
    client._slow = True  # as after `SLOW_AFTER_S`
    client.watch(lambda: told.append("gone"), lambda: told.append("slow"))
    assert server.act is not None and client._watcher is None
    server.act()
    assert (client.gone, told) == (True, ["slow", "gone"])
    client.unwatch()
    assert server.act is None


async def test_another_server_is_waited_for() -> None:
    left, told = asyncio.Event(), asyncio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    client = Client(SCOPE, receive, _sent)
    client._slow = True
    client.watch(told.set, lambda: None)
    left.set()
    await asyncio.wait_for(told.wait(), 60)
    assert client.gone
    client.unwatch()


async def test_a_request_that_is_quick_is_not_watched() -> None:
    """Neither by a word nor by a task."""
    server = Server()
    client = Client(SCOPE, server.receive, _sent)
    client.watch(lambda: None, lambda: None)
    assert server.act is None and client._watcher is None and asgi.SLOW_AFTER_S > 0
    client.unwatch()
    assert client._timer is None
