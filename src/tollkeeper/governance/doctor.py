"""What can be wrong with a Redis that is to hold money, found by asking it."""

from collections.abc import Awaitable, Callable
from typing import Final

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.findings import Finding
from tollkeeper.governance.redis_connection import RedisConnection, ReplyError, Send
from tollkeeper.settings import Settings

VERSION_MIN: Final = (6, 2)
CLOCK_WARN_S: Final = 1.0


async def inspect(settings: Settings, now_us: Callable[[], int]) -> list[Finding]:
    """Examine the Redis of the settings; nothing to examine on the memory store. Never raises for a bad Redis."""
    if settings.store.redis_url is None:
        return []
    info: dict[str, str] = {}
    clock: list[bytes] = []

    async def ask(send: Send) -> None:
        try:
            info.update(_parse((await send("INFO")).decode()))
            clock.extend(await send("TIME"))
        except ReplyError as error:
            raise StoreUnavailable(f"it refused: {error}") from error

    try:
        await _once(settings, ask)
    except StoreUnavailable as error:
        return [Finding("redis", "fail", str(error), "check REDIS_URL and that the server runs")]
    server_us = int(clock[0]) * 1_000_000 + int(clock[1])
    return [
        _version(info),
        _eviction(info),
        _persistence(info),
        _role(info),
        _clock(abs(server_us - now_us()) / 1e6),
    ]


async def _once(settings: Settings, ask: Callable[[Send], Awaitable[None]]) -> None:
    store = settings.store
    assert store.redis_url is not None
    connection = RedisConnection(
        store.redis_url,
        dial_timeout_s=store.dial_timeout_s,
        reply_timeout_s=store.admission_timeout_s,
        on_connect=ask,
    )
    try:
        await connection.start()
    finally:
        await connection.stop()


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
