"""The examination of a Redis names what would lose money."""

import time

from tests.servers.redis import RedisServer
from tollkeeper.domain.findings import Finding
from tollkeeper.governance.doctor import inspect
from tollkeeper.settings import Settings, StoreSettings


def now_us() -> int:
    return time.time_ns() // 1000


async def examine(server: RedisServer) -> dict[str, Finding]:
    settings = Settings(store=StoreSettings(redis_url=server.url, dial_timeout_s=1.0))
    return {finding.part: finding for finding in await inspect(settings, now_us)}


async def test_good_redis(own_redis: RedisServer) -> None:
    assert {finding.state for finding in (await examine(own_redis)).values()} == {"ok"}


async def test_eviction_is_a_failure(own_redis: RedisServer) -> None:
    """A policy that may throw counters away is refused, with what to set instead."""
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    finding = (await examine(own_redis))["redis eviction"]
    assert finding.state == "fail" and "noeviction" in finding.remedy


async def test_no_persistence_and_a_replica(own_redis: RedisServer) -> None:
    own_redis.command("CONFIG", "SET", "appendonly", "no")
    own_redis.command("REPLICAOF", "127.0.0.1", "1")
    findings = await examine(own_redis)
    assert findings["redis persistence"].state == "warn" and findings["redis role"].state == "fail"


async def test_redis_away(own_redis: RedisServer) -> None:
    own_redis.kill()
    (finding,) = (await examine(own_redis)).values()
    assert finding.state == "fail" and "cannot connect" in finding.text


async def test_clock_that_differs(own_redis: RedisServer) -> None:
    settings = Settings(store=StoreSettings(redis_url=own_redis.url))
    findings = await inspect(settings, lambda: now_us() + 61_000_000)
    assert [f.state for f in findings if f.part == "redis clock"] == ["warn"]
