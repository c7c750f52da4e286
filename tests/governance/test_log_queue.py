"""Promise 5: the scripts of a log queue equal their twin, under Lua in this process and on a real Redis."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.governance.log_trials import (
    Move,
    nothing_is_left_behind,
    play_edges,
    play_large_queue,
    play_queue,
    play_queue_lua,
    schedules,
)
from tests.governance.lua_redis import LuaClient, LuaRedis
from tests.governance.test_twin import START_US
from tests.servers.redis import RedisServer
from tollkeeper.domain.ports import ScriptStore
from tollkeeper.governance.redis_client import RedisClient

LUA = LuaRedis(lambda: START_US)


@settings(max_examples=150, deadline=None)
@given(schedules)
@example(
    [("put", "gw-a", [b"x" * 10] * 5, 0, True), ("lease", 2, 90, 5), ("wait", 5), ("lease", 6, 90, 5), ("ack", 0)]
)
@example([("put", "gw-a", [b"", b"xx"], 0, True), ("lease", 1, 90, 5), ("lease", 1, 90, 5)])
def test_any_schedule_under_lua(schedule: list[Move]) -> None:
    """Bringing, repeating, skipping, taking, leasing, taking over, acknowledging, overflowing: every answer, every
    count, every number."""
    asyncio.run(play_queue_lua(LUA, schedule))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedules)
def test_any_schedule_on_redis(redis_server: RedisServer, schedule: list[Move]) -> None:
    """The same, on the real client."""

    async def run() -> None:
        async with RedisClient(url=redis_server.url) as client:
            await play_queue(client, schedule)

    asyncio.run(run())


@pytest.mark.parametrize("play", [play_large_queue, play_edges])
async def test_beyond_the_bounds_of_one_call(play: Callable[[ScriptStore], Awaitable[None]]) -> None:
    LUA.begin(lambda: START_US)
    await play(LuaClient(LUA))
    nothing_is_left_behind(LUA)


async def test_nothing_is_left_behind(redis_server: RedisServer) -> None:
    """What was delivered, dropped or taken leaves no key but the queue's own."""
    schedule: list[Move] = [
        ("put", "gw-a", [b"x" * 10] * 6, 0, True),
        ("put", "gw-a", [b"x" * 10] * 6, 0, True),
        ("lease", 4, 90, 0),
        ("take", 3),
        ("ack", 0),
        ("put", "gw-b", [b"x" * 40] * 6, 0, True),
        ("clear", 6),
        ("clear", 6),
    ]
    redis_server.command("SELECT", "0")
    async with RedisClient(url=redis_server.url) as client:
        before = {key async for key in keys(client)}
        await play_queue(client, schedule)
        left = {key.rpartition(b":")[2] async for key in keys(client) if key not in before}
    assert left <= {b"state", b"marks", b"gaps"}


async def keys(client: RedisClient):  # type: ignore[no-untyped-def]
    for key in await client.call("KEYS", "logs:*"):
        yield key
