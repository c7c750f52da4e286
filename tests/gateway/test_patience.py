"""A request's deadlines end it as `asyncio.timeout` would: in time, once, and without swallowing a cancellation."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.instruments import Instruments
from tollkeeper.gateway.patience import Patience
from tollkeeper.observability.metrics import Metrics

NEVER_S = 600.0


class Slow(Client):
    """A client whose request is slow from the start, and that leaves when it is told to."""

    __slots__ = ("leave",)

    leave: Callable[[], None]

    def _listen(self) -> None:
        self.leave = self._left

    def _stop_listening(self) -> None:
        pass


def patience(total_s: float, drain_s: float = NEVER_S) -> tuple[Slow, Patience]:
    client = Slow("POST", "/", b"", {})
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    client.task = task
    client.turn_slow()
    return client, Patience(client, Instruments(Metrics()), total_s=total_s, drain_s=drain_s)


async def test_the_total_deadline_is_a_timeout() -> None:
    _, waits = patience(0.01)
    with pytest.raises(TimeoutError), waits:
        await asyncio.sleep(NEVER_S)
    await asyncio.sleep(0)  # nothing is left of the cancellation


async def test_a_cancellation_from_outside_is_not_taken_for_the_deadline() -> None:
    """Even where both come together."""
    inside = asyncio.Event()

    async def request() -> None:
        _, waits = patience(0.0)
        with waits:
            inside.set()
            waits._expire()
            await asyncio.sleep(NEVER_S)

    task = asyncio.create_task(request())
    asyncio.get_running_loop().call_soon(task.cancel)  # before the task heard of its deadline
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inside.is_set() and task.cancelled()


async def test_after_a_hang_up_the_drains_deadline_counts() -> None:
    client, waits = patience(NEVER_S, drain_s=0.01)
    with pytest.raises(TimeoutError), waits:
        client.leave()
        await asyncio.sleep(NEVER_S)
    assert client.gone and waits._instruments.draining == 0


async def test_what_ends_in_time_leaves_no_deadline() -> None:
    client, waits = patience(0.01)
    with waits:
        pass
    await asyncio.sleep(0.05)
    assert not client.task.cancelling()
