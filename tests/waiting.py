"""How long something waits, told without a clock: a busy machine makes everything slow, and fails no test here."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
TURNS = 50
"""Of the event loop: plenty for tasks that hand each other results, and over long before any timer."""


async def at_once(call: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """The call's result, or its exception; AssertionError if it waits for anything but the event loop's own turns."""
    task = asyncio.ensure_future(call)
    for _ in range(TURNS):
        if task.done():
            return task.result()
        await asyncio.sleep(0)
    task.cancel()
    raise AssertionError("it waits")
