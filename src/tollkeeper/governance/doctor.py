"""What can be wrong with a Redis that is to hold money, found by asking it."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.findings import Finding
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.governance.redis_node import Node
from tollkeeper.governance.redis_settings import of_store
from tollkeeper.settings import Settings

VERSION_MIN: Final = (6, 2)
CLOCK_WARN_S: Final = 1.0


async def inspect(settings: Settings, now_us: Callable[[], int]) -> list[Finding]:
    """Examine the Redis of the settings; nothing to examine on the memory store. Never raises for a bad Redis.

    Of a cluster every primary is examined, and the worst finding of each kind is told.
    """
    if settings.embedded:
        return []
    client = RedisClient(**of_store(settings.store) | {"pool_size": 1, "min_idle_conns": 1})
    try:
        async with client:
            found = [await _examine(node, now_us) for node in client.nodes]
    except StoreUnavailable as error:
        return [Finding("redis", "fail", str(error), "check REDIS_URL and that the server runs")]
    if len(found) == 1:
        return [finding for _, finding in found[0]]
    return [_worst(same) for same in zip(*found, strict=True)]


async def _examine(node: Node, now_us: Callable[[], int]) -> list[tuple[str, Finding]]:
    """Findings of one server, each with the server's name."""
    info = _parse((await node.send("INFO")).decode())
    clock = await node.send("TIME")
    server_us = int(clock[0]) * 1_000_000 + int(clock[1])
    difference_s = abs(server_us - now_us()) / 1e6
    findings = (_version(info), _eviction(info), _persistence(info), _role(info), _clock(difference_s))
    return [(node.name, finding) for finding in findings]


def _worst(same: Sequence[tuple[str, Finding]]) -> Finding:
    name, worst = max(same, key=lambda pair: ("ok", "warn", "fail").index(pair[1].state))
    if worst.state == "ok":
        return worst
    return msgspec.structs.replace(worst, text=f"{name}: {worst.text}")


def _parse(text: str) -> dict[str, str]:
    return dict(line.strip().split(":", 1) for line in text.splitlines() if ":" in line)


def _version(info: dict[str, str]) -> Finding:
    name = "valkey" if "valkey_version" in info else "redis"
    text = info.get("valkey_version") or info.get("redis_version", "0")
    if tuple(int(part) for part in text.split(".")[:2]) < VERSION_MIN:
        return Finding("redis", "fail", f"version {text} is too old", "use Redis 6.2 or newer, or Valkey")
    return Finding("redis", "ok", f"{name} {text} answers")


def _eviction(info: dict[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return Finding("redis eviction", "ok", "noeviction: counters are never thrown away")
    remedy = "set maxmemory-policy noeviction"
    if info.get("maxmemory", "0") == "0" and policy.startswith("volatile"):
        return Finding("redis eviction", "warn", f"{policy}, though no maxmemory is set", remedy)
    return Finding("redis eviction", "fail", f"{policy} may throw away budgets and holds", remedy)


def _persistence(info: dict[str, str]) -> Finding:
    if info.get("aof_enabled") == "1":
        return Finding("redis persistence", "ok", "append-only file is on")
    text = (
        "append-only file is off: after a restart spend is rebuilt from database and outbox, and windows start empty"
    )
    return Finding("redis persistence", "warn", text, "set appendonly yes")


def _role(info: dict[str, str]) -> Finding:
    role = info.get("role", "unknown")
    if role == "master":
        return Finding("redis role", "ok", "primary")
    return Finding("redis role", "fail", f"{role}: it takes no writes", "point REDIS_URL at the primary")


def _clock(difference_s: float) -> Finding:
    text = f"{difference_s:.3f} s from this machine's"
    if difference_s <= CLOCK_WARN_S:
        return Finding("redis clock", "ok", text)
    remedy = "run NTP on both; limits follow Redis' clock, periods of budgets too"
    return Finding("redis clock", "warn", text, remedy)
