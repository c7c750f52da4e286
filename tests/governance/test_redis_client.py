"""The client on one server: forms of address, order, repetition, pools, health, and every way to lose a server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.servers.proxy import Proxy
from tests.servers.redis import Certificates, RedisServer
from tests.waiting import at_once
from tollkeeper import RedisClient, ReplyError
from tollkeeper.domain.errors import InvalidInput, StoreUnavailable
from tollkeeper.governance import redis_node


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    async with RedisClient(url=redis_server.url) as made:
        yield made


async def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.01)


async def refused(url: str, **more: Any) -> str:
    """Why the client cannot start, and that it does not hang."""
    async with asyncio.timeout(30):
        with pytest.raises(StoreUnavailable) as caught:
            async with RedisClient(url=url, **more):
                pass
    return str(caught.value)


# Forms of address


async def test_address_password_and_database(guarded_redis: RedisServer) -> None:
    environ = {"REDIS_ADDRESS": f"127.0.0.1:{guarded_redis.port}", "REDIS_PASSWORD": "hush", "REDIS_DB": "3"}
    async with RedisClient.from_env(environ) as client:
        assert await client.call("SET", "where", "three") == b"OK"
    async with RedisClient.from_url(f"redis://:hush@127.0.0.1:{guarded_redis.port}/3") as client:
        assert await client.call("GET", "where") == b"three"
    async with RedisClient.from_url(f"unix://{guarded_redis.socket}?db=3", password="hush") as client:
        assert await client.call("GET", "where") == b"three"
    async with RedisClient.from_url(f"redis://:hush@127.0.0.1:{guarded_redis.port}/0") as client:
        assert await client.call("GET", "where") is None


async def test_a_wrong_or_missing_password_is_said_clearly(guarded_redis: RedisServer) -> None:
    where = f"127.0.0.1:{guarded_redis.port}"
    for url in (f"redis://:wrong@{where}", f"redis://{where}", f"redis://{where}/3"):
        assert "REDIS_PASSWORD" in await refused(url)
    assert "wrong" not in (await refused(f"redis://:wrong@{where}")).replace("WRONGPASS", "")


@pytest.fixture
def tls_redis(guarded_redis: RedisServer) -> RedisServer:
    if not guarded_redis.tls_port:
        pytest.skip("this server was built without TLS")
    return guarded_redis


async def test_tls_with_own_ca_and_client_certificate(tls_redis: RedisServer, certificates: Certificates) -> None:
    url = f"rediss://:hush@localhost:{tls_redis.tls_port}?{certificates.query}"
    async with RedisClient(url=url) as client:
        assert await client.call("PING") == b"PONG" and (await client.health()).ok


async def test_a_wrong_ca_is_refused_clearly(tls_redis: RedisServer, certificates: Certificates) -> None:
    wrong = certificates.query.replace(str(certificates.ca), str(certificates.other_ca))
    said = await refused(f"rediss://:hush@localhost:{tls_redis.tls_port}?{wrong}")
    assert "certificate verify failed" in said and "ssl_ca_certs must name the CA" in said


async def test_a_missing_client_certificate_is_refused(tls_redis: RedisServer, certificates: Certificates) -> None:
    said = await refused(f"rediss://:hush@localhost:{tls_redis.tls_port}?ssl_ca_certs={certificates.ca}")
    assert "certificate" in said


async def test_a_server_that_is_not_there_is_named() -> None:
    said = await refused("redis://:hush@127.0.0.1:1/0")
    assert "cannot connect to Redis at redis://:***@127.0.0.1:1/0" in said


async def test_a_server_that_accepts_and_says_nothing_is_given_up(own_redis: RedisServer) -> None:
    """Within the dial timeout, whatever the other timeouts are."""
    own_redis.freeze()
    assert "no answer within 0.3 s" in await refused(own_redis.url, dial_timeout_s=0.3, read_timeout_s=60)
    own_redis.thaw()


async def test_a_client_that_was_not_started_says_so() -> None:
    client = RedisClient(address="127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="not started"):
        client.send("PING")
    with pytest.raises(StoreUnavailable, match="not started"):
        await client.call("PING", idempotent=True)
    health = await client.health()
    assert client.state == "stopped" and health.failed == "connect" and "not started" in health.reason
    await client.stop()


async def test_a_client_that_started_too_early_connects_later(own_redis: RedisServer) -> None:
    own_redis.kill()
    client = RedisClient(url=own_redis.url)
    with pytest.raises(StoreUnavailable, match="cannot connect"):
        await client.start()
    own_redis.start()
    await until(lambda: client.state == "up")
    assert await client.call("PING") == b"PONG"
    await client.stop()
    await client.start()
    assert await client.call("PING") == b"PONG"
    await until(lambda: client.get_stats().total_conns == 2)
    await client.stop()


# Order, sharing, cancellation


async def test_calls_of_one_tick_share_a_write(client: RedisClient) -> None:
    before = client.get_stats().batches
    replies = await asyncio.gather(*(client.call("ECHO", str(n)) for n in range(100)))
    assert replies == [str(n).encode() for n in range(100)]
    after = client.get_stats().batches
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)} == {
        "64-127": 1
    }


async def test_sends_of_a_key_run_in_order(client: RedisClient) -> None:
    await client.call("DEL", "list")
    futures = [client.send("RPUSH", "list", n, key="list") for n in range(500)]
    assert await asyncio.gather(*futures) == list(range(1, 501))
    assert await client.call("LRANGE", "list", 0, -1) == [str(n).encode() for n in range(500)]


async def test_cancelled_waiters_never_mispair_replies(client: RedisClient) -> None:
    """However many callers are cancelled, wherever they wait, the others get their own replies."""
    for turn in range(20):
        tasks = [asyncio.create_task(client.call("ECHO", f"{turn}.{n}")) for n in range(50)]
        await asyncio.sleep(0 if turn % 2 else 0.0005)
        for task in tasks[turn % 7 :: 3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for n, reply in enumerate(replies):
            assert isinstance(reply, asyncio.CancelledError) or reply == f"{turn}.{n}".encode()


async def test_commands_that_change_a_shared_connection_are_refused(client: RedisClient) -> None:
    for parts in (("MULTI",), ("blpop", "q", 0), (b"SUBSCRIBE", "c"), ("SELECT", 1)):
        with pytest.raises(InvalidInput, match="give it one of its own"):
            await client.call(*parts)


async def test_error_replies_are_the_callers(client: RedisClient) -> None:
    await client.call("SET", "text", "x")
    with pytest.raises(ReplyError) as caught:
        await client.call("INCR", "text")
    assert caught.value.code == "ERR" and caught.value.sent


# Scripts


async def test_scripts_by_name_and_by_text(client: RedisClient) -> None:
    text = "return {KEYS[1], ARGV[1] + 1}"
    assert await client.run(text, ["k"], [41]) == [b"k", 42]
    assert await client.run("reset", ["{k}a"], [0]) is not None
    with pytest.raises(StoreUnavailable, match="boom") as caught:
        await client.run("return redis.error_reply('ERR boom')", [], [])
    assert caught.value.sent


async def test_script_flush_in_the_middle_shows_nowhere(client: RedisClient, redis_server: RedisServer) -> None:
    """Neither to `run` nor to ordered sends, and each runs once, in order; as long as nobody else loads the script in
    the middle, as a new connection does."""
    await until(lambda: client.get_stats().total_conns == 2)
    await client.call("DEL", "flushed")
    digest = client.know("return redis.call('RPUSH', KEYS[1], ARGV[1])")
    futures = []
    for n in range(300):
        if n % 50 == 25:
            redis_server.command("SCRIPT", "FLUSH")
        futures.append(client.send("EVALSHA", digest, 1, "flushed", n, key="flushed"))
        if n % 3 == 0:
            await asyncio.sleep(0)
    assert await asyncio.gather(*futures) == list(range(1, 301))
    assert await client.call("LRANGE", "flushed", 0, -1) == [str(n).encode() for n in range(300)]
    redis_server.command("SCRIPT", "FLUSH")
    assert await client.run("return 7", [], []) == 7


# What is repeated, and what is not


async def test_a_lost_reply_is_never_repeated_unless_idempotent(own_redis: RedisServer) -> None:
    """INCRBY with a lost reply counts once; the same command called idempotent is sent again."""
    async with Proxy(own_redis.socket) as proxy, RedisClient(url=proxy.url, read_timeout_s=0.3) as client:
        await client.call("SET", "n", 0)
        proxy.swallowing = True
        with pytest.raises(StoreUnavailable) as caught:
            await client.call("INCRBY", "n", 100)
        assert caught.value.sent
        proxy.swallowing = False
        await until(lambda: client.state == "up")
        assert await client.call("GET", "n") == b"100"
        assert client.get_stats().timeouts == 1
        proxy.swallowing = True
        waiting = asyncio.create_task(client.call("SET", "n", 7, idempotent=True))
        await asyncio.sleep(0.05)
        proxy.swallowing = False
        proxy.cut()
        assert await waiting == b"OK"


async def test_a_cut_connection_is_mended_under_traffic(own_redis: RedisServer) -> None:
    """Idempotent calls see nothing; of the others each ran at most once, and once if it was answered."""
    async with Proxy(own_redis.socket) as proxy, RedisClient(url=proxy.url) as client:
        answered = lost = 0

        async def count() -> None:
            nonlocal answered, lost
            for _ in range(100):
                try:
                    await client.call("INCR", "n")
                    answered += 1
                except StoreUnavailable as error:
                    lost += error.sent

        async def reset() -> None:
            for _ in range(100):
                assert await client.call("SET", "same", 1, idempotent=True) == b"OK"
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(work()) for work in (count, count, reset, reset)]
        for _ in range(3):
            await asyncio.sleep(0.02)
            proxy.cut()
        await asyncio.gather(*tasks)
        assert answered <= int(await client.call("GET", "n")) <= answered + lost
        assert client.get_stats().reconnects >= 1


async def test_a_restarted_server_refuses_nothing_that_can_wait(own_redis: RedisServer) -> None:
    """While the first reconnection is under way a command that was not sent waits for it."""
    async with Proxy(own_redis.socket) as proxy, RedisClient(url=proxy.url) as client:
        proxy.cut()
        while client.state == "up":
            await asyncio.sleep(0)
        assert client.state == "connecting" and await client.call("INCR", "n") == 1


async def test_a_busy_server_is_waited_for(own_redis: RedisServer) -> None:
    """An answer that says that a command did not run is no answer yet."""
    async with (
        RedisClient(url=own_redis.url, read_timeout_s=3) as client,
        RedisClient(url=own_redis.url) as other,
    ):
        own_redis.command("CONFIG", "SET", "lua-time-limit", "20")
        spin = "local t = redis.call('TIME'); repeat local n = redis.call('TIME') until n[1] - t[1] >= 2; return 1"
        spinning = asyncio.create_task(client.run(spin, [], []))
        await asyncio.sleep(0.1)
        assert await other.call("INCR", "n") == 1
        assert await spinning == 1


# Outages


async def test_an_outage_costs_nothing_once_it_is_noticed(own_redis: RedisServer) -> None:
    async with RedisClient(url=own_redis.url, read_timeout_s=0.5) as client:
        own_redis.kill()
        await until(lambda: client.state == "away")
        for _ in range(100):
            with pytest.raises(StoreUnavailable) as caught:
                await at_once(client.call("PING", idempotent=True))
            assert not caught.value.sent
        health = await client.health()
        assert not health.ok and health.failed == "connect" and "away" in health.reason
        own_redis.start()
        await until(lambda: client.state == "up")
        assert await client.call("PING") == b"PONG" and client.get_stats().reconnects == 1


async def test_a_frozen_server_is_away_within_its_deadline(own_redis: RedisServer) -> None:
    async with RedisClient(url=own_redis.url, read_timeout_s=0.3, dial_timeout_s=0.3) as client:
        own_redis.freeze()
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
                await client.call("PING", idempotent=True)
        assert client.state == "away"
        with pytest.raises(StoreUnavailable):
            await at_once(client.call("PING", idempotent=True))
        await asyncio.sleep(0.5)
        assert client.state == "away"
        own_redis.thaw()
        await until(lambda: client.state == "up")
        assert await client.call("PING") == b"PONG"


async def test_what_cannot_be_written_is_given_up(own_redis: RedisServer) -> None:
    async with RedisClient(url=own_redis.url, read_timeout_s=30, write_timeout_s=0.3) as client:
        own_redis.freeze()
        with pytest.raises(StoreUnavailable, match=r"nothing could be written for 0\.3 s"):
            await client.call("SET", "big", b"x" * 30_000_000)
        own_redis.thaw()


# Pool


async def test_the_least_idle_connections_are_kept(redis_server: RedisServer) -> None:
    async with RedisClient(url=redis_server.url, min_idle_conns=3) as client:
        await until(lambda: client.get_stats().total_conns == 3)
        assert client.get_stats().idle_conns == 3
    async with RedisClient(url=redis_server.url, pool_size=1) as client:
        await asyncio.sleep(0.05)
        assert client.get_stats().total_conns == 1


async def test_crowds_spread_over_the_pool_and_no_further(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_node, "SPREAD_PENDING", 10)
    async with RedisClient(url=redis_server.url, pool_size=4, min_idle_conns=0) as client:
        assert client.get_stats().total_conns == 1
        for turn in range(30):
            texts = [f"{turn}.{n}" for n in range(100)]
            assert await asyncio.gather(*(client.call("ECHO", t) for t in texts)) == [t.encode() for t in texts]
        stats = client.get_stats()
        assert stats.total_conns == 4 and 0 < stats.misses < 3000 and stats.hits + stats.misses >= 3000


async def test_old_connections_are_replaced_in_order(redis_server: RedisServer) -> None:
    """Ordered traffic moves to a young connection while it flows: nothing fails, nothing overtakes."""
    async with RedisClient(url=redis_server.url, max_conn_age_s=0.1, min_idle_conns=1) as client:
        await client.call("DEL", "aged")
        futures: list[asyncio.Future[int]] = []
        first, begun = client.nodes[0].lead, time.monotonic()
        while time.monotonic() - begun < 1.0:
            futures.append(client.send("RPUSH", "aged", len(futures), key="aged"))
            if len(futures) % 20 == 0:
                await asyncio.sleep(0.0005)
        assert await asyncio.gather(*futures) == list(range(1, len(futures) + 1))
        assert await client.call("LRANGE", "aged", 0, -1) == [str(n).encode() for n in range(len(futures))]
        assert client.nodes[0].lead is not first and client.get_stats().stale_conns >= 3
        await until(lambda: first.state == "stopped")
        assert client.get_stats().reconnects == 0


async def test_idle_connections_are_closed(redis_server: RedisServer) -> None:
    async with RedisClient(url=redis_server.url, idle_timeout_s=0.2, min_idle_conns=2) as client:
        await until(lambda: client.get_stats().total_conns == 2)
        before = client.nodes[0].connections
        await until(lambda: not set(before) & set(client.nodes[0].connections))
        await until(lambda: client.get_stats().total_conns == 2)
        assert client.get_stats().stale_conns >= 2
        assert await client.call("PING") == b"PONG"


# Health


async def test_health_writes_and_reads_back(client: RedisClient) -> None:
    health = await client.health()
    assert health.ok and 0 < health.latency_us < 1_000_000 and health.failed is None
    assert [node.state for node in health.nodes] == ["up"]


async def test_health_tells_which_step_failed(own_redis: RedisServer) -> None:
    async with RedisClient(url=own_redis.url, read_timeout_s=0.5) as client:
        own_redis.command("CONFIG", "SET", "min-replicas-to-write", "1")
        health = await client.health()
        assert not health.ok and health.failed == "write" and "NOREPLICAS" in health.reason
        own_redis.command("CONFIG", "SET", "min-replicas-to-write", "0")
        own_redis.freeze()
        health = await client.health()
        assert not health.ok and health.failed == "ping" and "no answer" in health.reason
        own_redis.thaw()


async def test_many_tasks_through_a_flapping_server(own_redis: RedisServer) -> None:
    """Killed and restarted under load: each call ends, with its own reply or a StoreUnavailable."""
    async with RedisClient(url=own_redis.url, read_timeout_s=1) as client:
        stop = False

        async def echo(name: int) -> int:
            good = 0
            while not stop:
                try:
                    assert await client.call("ECHO", f"{name}.{good}") == f"{name}.{good}".encode()
                    good += 1
                except StoreUnavailable:
                    await asyncio.sleep(0.005)
            return good

        tasks: list[Awaitable[int]] = [asyncio.create_task(echo(n)) for n in range(32)]
        for _ in range(2):
            await asyncio.sleep(0.2)
            own_redis.kill()
            own_redis.start()
        await until(lambda: client.state == "up")
        await asyncio.sleep(0.1)
        stop = True
        assert all(good > 10 for good in await asyncio.wait_for(asyncio.gather(*tasks), 5))
