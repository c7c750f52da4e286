"""The full-duplex connection: order, pairing of replies, honest failure."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import pytest
from redis.asyncio.connection import AbstractConnection

from tests.servers.redis import RedisServer
from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.governance import redis_connection, redis_settings
from tollkeeper.governance.redis_connection import AWAY_TRIES, RedisConnection, ReplyError, Send
from tollkeeper.governance.redis_topology import dialled


def connect(url: str, *, dial_timeout_s: float = 2, reply_timeout_s: float = 1, **more: Any) -> RedisConnection:
    settings = redis_settings.read(url=url, dial_timeout_s=dial_timeout_s)

    async def dial() -> AbstractConnection:
        return dialled(settings)

    return RedisConnection(
        dial, shown_url=settings.url, dial_timeout_s=dial_timeout_s, reply_timeout_s=reply_timeout_s, **more
    )


@pytest.fixture
async def connection(redis_server: RedisServer) -> AsyncIterator[RedisConnection]:
    made = connect(redis_server.url)
    await made.start()
    yield made
    await made.stop()


async def test_replies_come_in_order(connection: RedisConnection) -> None:
    replies = await asyncio.gather(*(connection.send("ECHO", str(n)) for n in range(2000)))
    assert replies == [str(n).encode() for n in range(2000)]


async def test_a_tick_shares_one_write(connection: RedisConnection) -> None:
    """Concurrent calls of one event-loop tick go out in one write."""
    writer, writes = connection._writer, []
    assert writer is not None
    original = writer.write

    def spy(data: bytes) -> None:
        writes.append(len(data))
        original(data)

    writer.write = spy  # type: ignore[method-assign, assignment]
    await asyncio.gather(*(connection.send("PING") for _ in range(100)))
    assert len(writes) == 1


async def test_cancelling_a_waiter_keeps_replies_paired(connection: RedisConnection) -> None:
    """A cancelled command runs all the same, and the replies after it reach their own callers."""
    first, second = connection.send("ECHO", "first"), connection.send("ECHO", "second")
    first.cancel()
    assert await second == b"second"
    assert await connection.send("ECHO", "third") == b"third"


async def test_error_replies_are_their_callers_alone(connection: RedisConnection) -> None:
    bad, good = connection.send("NOSUCHCOMMAND"), connection.send("PING")
    with pytest.raises(ReplyError) as caught:
        await bad
    assert caught.value.code == "ERR" and await good == b"PONG"


async def test_queue_is_bounded(connection: RedisConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "PENDING_MAX", 10)
    futures = [connection.send("PING") for _ in range(10)]
    with pytest.raises(StoreUnavailable, match="10 commands unanswered") as caught:
        connection.send("PING")
    assert not caught.value.sent
    await asyncio.gather(*futures)


async def test_killed_server_fails_what_waits_and_comes_back(own_redis: RedisServer) -> None:
    connection = connect(own_redis.url)
    await connection.start()
    own_redis.freeze()
    waiting = connection.send("PING")
    await asyncio.sleep(0)
    own_redis.thaw()
    assert await waiting == b"PONG"
    own_redis.freeze()
    waiting = connection.send("PING")
    await asyncio.sleep(0.01)
    own_redis.kill()
    with pytest.raises(StoreUnavailable) as caught:
        await waiting
    assert caught.value.sent
    while connection.state != "away":
        await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailable, match="is away"):
        connection.send("PING")
    own_redis.start()
    while connection.state != "up":
        await asyncio.sleep(0.01)
    assert await connection.send("PING") == b"PONG" and connection.reconnects == 1
    await connection.stop()


async def test_an_event_loop_that_stood_still_is_not_held_against_the_server(redis_server: RedisServer) -> None:
    """The reply was here all the while; it is read, not given up, and the connection stays."""
    connection = connect(redis_server.url, reply_timeout_s=0.2)
    await connection.start()
    waiting = connection.send("PING")
    await asyncio.sleep(0)
    time.sleep(0.5)
    assert await waiting == b"PONG"
    assert (connection.state, connection.reconnects) == ("up", 0)
    await connection.stop()


async def test_frozen_server_counts_as_away_within_the_deadline(own_redis: RedisServer) -> None:
    connection = connect(own_redis.url, dial_timeout_s=0.3, reply_timeout_s=0.3)
    await connection.start()
    own_redis.freeze()
    async with asyncio.timeout(30):
        with pytest.raises(StoreUnavailable, match="no answer within"):
            await connection.send("PING")
    own_redis.thaw()
    await connection.stop()


async def test_first_connection_that_fails_says_where(tmp_path: object) -> None:
    connection = connect("redis://user:hush@127.0.0.1:1/0", dial_timeout_s=0.5, reply_timeout_s=0.5)
    with pytest.raises(StoreUnavailable, match=r"cannot connect to Redis at redis://user:\*\*\*@127.0.0.1:1/0"):
        await connection.start()
    await connection.stop()


async def test_a_connection_lost_between_its_first_commands_hangs_nobody(own_redis: RedisServer) -> None:
    """What is sent on connecting, after the connection was lost, fails: it would wait for ever."""

    async def first_commands(send: Send) -> None:
        await send("PING")
        own_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        while made._connection is not None:
            await asyncio.sleep(0.001)
        await send("TIME")

    made = connect(own_redis.url, lasting=False, on_connect=first_commands)
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match="it closed the connection"):
            await made.start()
    await made.stop()


async def test_a_server_that_closes_new_connections_is_there(own_redis: RedisServer) -> None:
    """It does not count as away as fast as one that cannot be reached: killed connections come back."""
    closed = 0

    async def first_commands(send: Send) -> None:
        nonlocal closed
        await send("PING")
        if 0 < closed <= AWAY_TRIES + 1:
            own_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        closed += 1
        await send("TIME")

    connection = connect(own_redis.url, on_connect=first_commands)
    await connection.start()
    own_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    while connection.state == "up":
        await asyncio.sleep(0)
    assert await connection.ready(10) and closed == AWAY_TRIES + 3
    await connection.stop()


async def test_stop_ends_what_swallows_a_cancellation(own_redis: RedisServer) -> None:
    """As asyncio.wait_for does now and then, under which redis-py connects."""
    stuck = asyncio.Event()

    async def dial() -> AbstractConnection:
        if own_redis.process is not None:
            return dialled(redis_settings.read(url=own_redis.url))
        stuck.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()
        raise AssertionError

    connection = RedisConnection(dial, shown_url="here", dial_timeout_s=60, reply_timeout_s=60)
    await connection.start()
    own_redis.kill()
    await stuck.wait()
    async with asyncio.timeout(5):
        await connection.stop()
    assert connection.state == "stopped"


async def test_a_cancelled_reconnection_ends_though_its_cancellation_was_swallowed(own_redis: RedisServer) -> None:
    """As at the end of `asyncio.run`, which cancels each task once: a client nobody stopped must not hang it."""
    stuck = asyncio.Event()

    async def dial() -> AbstractConnection:
        if own_redis.process is not None:
            return dialled(redis_settings.read(url=own_redis.url))
        stuck.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise OSError("no answer")

    connection = RedisConnection(dial, shown_url="here", dial_timeout_s=60, reply_timeout_s=60)
    await connection.start()
    own_redis.kill()
    await stuck.wait()
    (task,) = connection._tasks
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    assert task.cancelled()
    await connection.stop()


CLOSED = "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
"""What uvloop raises as RuntimeError, of a transport that is closed and has not yet said so to its reader."""


async def test_a_dial_that_ends_as_uvloop_ends_it_is_tried_again(own_redis: RedisServer) -> None:
    """redis-py greets a server that has just closed the connection, and what comes is neither OSError nor an error of
    its own. The connection was lost for good then."""
    dials = itertools.count()

    async def dial() -> AbstractConnection:
        if next(dials) in (1, 2):
            raise RuntimeError(CLOSED)
        return dialled(redis_settings.read(url=own_redis.url))

    connection = RedisConnection(dial, shown_url="here", dial_timeout_s=60, reply_timeout_s=60)
    await connection.start()
    own_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    while connection.state == "up":
        await asyncio.sleep(0)
    assert await connection.ready(60)
    assert next(dials) > 3 and await connection.send("PING") == b"PONG"
    await connection.stop()


async def test_a_write_to_a_transport_that_is_closed_loses_the_connection(connection: RedisConnection) -> None:
    """What was to be written fails as not sent, and the connection comes back."""

    class Closed:
        transport = connection._writer and connection._writer.transport

        def write(self, data: bytes) -> None:
            raise RuntimeError(CLOSED)

    connection._writer = cast(asyncio.StreamWriter, Closed())
    with pytest.raises(StoreUnavailable, match="is closed") as lost:
        await connection.send("PING")
    assert not lost.value.sent
    assert await connection.ready(60)
    assert await connection.send("PING") == b"PONG"
