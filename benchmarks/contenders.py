"""Rate limiters that are asked the same question: may `key` have one more of `limit` in a minute?

Ours; our script on stock redis-py and on a bare protocol; and limiters from the package index, as their documents say
to use them in asyncio with Redis. They need `make bench-peers`, and are left out without it.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks.bare import Bare
from tollkeeper import MemoryLimits, RedisClient, SlidingWindowLimiter, TokenBucketLimiter
from tollkeeper.governance.limit_stores import _PACK
from tollkeeper.governance.scripts import source

PEERS: Final = Path(__file__).parents[1] / ".bench" / "peers"
POOL: Final = 64
"""Connections of those that take one for each call in flight."""
WINDOW_US: Final = 60_000_000

Ask = Callable[[str, int], Awaitable[Any]]
Contender = Callable[[Path], AbstractAsyncContextManager[Ask]]
"""Given Redis' socket, what to ask; the answer is true if it is allowed."""


def peers() -> bool:
    """Whether the peers are installed; makes them importable. What they share with us is ours."""
    if PEERS.exists() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    return PEERS.exists()


def _stock(socket: Path) -> "Redis":
    """redis-py as it comes, with a pool that waits instead of failing when all connections are in use."""
    return Redis(
        connection_pool=BlockingConnectionPool.from_url(f"unix://{socket}", max_connections=POOL, timeout=60)
    )


def _ours(**options: Any) -> Contender:
    @asynccontextmanager
    async def window(socket: Path) -> AsyncIterator[Ask]:
        async with RedisClient(url=f"unix://{socket}") as client:
            yield SlidingWindowLimiter(client, **options).allow

    return window


@asynccontextmanager
async def _bucket(socket: Path) -> AsyncIterator[Ask]:
    async with RedisClient(url=f"unix://{socket}") as client:
        limiter = TokenBucketLimiter(client)
        yield lambda key, limit: limiter.allow(key, limit, min(limit, 100_000_000))


@asynccontextmanager
async def _memory(socket: Path) -> AsyncIterator[Ask]:
    yield SlidingWindowLimiter(MemoryLimits()).allow


def _packed(limit: int) -> bytes:
    """Arguments of scripts/allow.lua, without an id and a deadline."""
    return _PACK[7](0, 0, WINDOW_US, WINDOW_US // 6000, limit, 1, 0, 0)


@asynccontextmanager
async def _script_on_redis_py(socket: Path) -> AsyncIterator[Ask]:
    client = _stock(socket)
    digest = await client.script_load(source("allow"))

    async def ask(key: str, limit: int) -> bool:
        reply = await client.evalsha(digest, 1, f"stock:{{{key}}}:60000000", _packed(limit))
        return bool(reply[0])

    yield ask
    await client.aclose()


@asynccontextmanager
async def _script_on_bare_protocol(socket: Path) -> AsyncIterator[Ask]:
    bare = await Bare.open(str(socket))
    digest = await bare.load("allow")

    async def ask(key: str, limit: int) -> bool:
        reply = await bare.send("EVALSHA", digest, 1, f"bare:{{{key}}}:60000000", _packed(limit))
        return bool(reply[0])

    yield ask
    bare.close()


@asynccontextmanager
async def _limits(socket: Path) -> AsyncIterator[Ask]:
    from limits import RateLimitItemPerMinute
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    client = _stock(socket)
    storage = RedisStorage(
        f"async+redis+unix://{socket}", implementation="redispy", connection_pool=client.connection_pool
    )
    limiter = MovingWindowRateLimiter(storage)
    items: dict[int, Any] = {}

    def ask(key: str, limit: int) -> Any:
        item = items.get(limit) or items.setdefault(limit, RateLimitItemPerMinute(limit))
        return limiter.hit(item, key)

    yield ask
    await client.aclose()


@asynccontextmanager
async def _limits_memory(socket: Path) -> AsyncIterator[Ask]:
    from limits import RateLimitItemPerMinute
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    limiter = MovingWindowRateLimiter(MemoryStorage())
    item = RateLimitItemPerMinute(10**9)
    yield lambda key, limit: limiter.hit(item, key)


def _throttled(*, memory: bool) -> Contender:
    @asynccontextmanager
    async def made(socket: Path) -> AsyncIterator[Ask]:
        from throttled.asyncio import MemoryStore, RateLimiterType, RedisStore, Throttled, rate_limiter

        pool = {"CONNECTION_POOL_CLASS": "redis.asyncio.BlockingConnectionPool"}
        options = {**pool, "CONNECTION_POOL_KWARGS": {"max_connections": POOL, "timeout": 60}}
        store = MemoryStore() if memory else RedisStore(server=f"unix://{socket}", options=options)
        known: dict[int, Any] = {}

        def throttle(limit: int) -> Any:
            quota = rate_limiter.per_min(limit)
            return known.setdefault(
                limit, Throttled(using=RateLimiterType.SLIDING_WINDOW.value, quota=quota, store=store)
            )

        async def ask(key: str, limit: int) -> bool:
            result = await (known.get(limit) or throttle(limit)).limit(key)
            return not result.limited

        yield ask

    return made


@asynccontextmanager
async def _pyrate(socket: Path) -> AsyncIterator[Ask]:
    """It has a bucket for each key; the task that removes what has left the window is left out, in its favour."""
    from pyrate_limiter import Duration, Limiter, Rate, RedisBucket, SingleBucketFactory

    client = _stock(socket)
    limiters: dict[tuple[str, int], Any] = {}

    async def ask(key: str, limit: int) -> bool:
        limiter = limiters.get((key, limit))
        if limiter is None:
            bucket = await RedisBucket.init([Rate(limit, Duration.MINUTE)], client, f"pyrate:{key}")
            limiter = limiters[key, limit] = Limiter(SingleBucketFactory(bucket, schedule_leak=False))
        return bool(await limiter.try_acquire_async(key, blocking=False))

    yield ask
    await client.aclose()


OURS: Final[dict[str, Contender]] = {
    "tollkeeper": _ours(),
    "tollkeeper, idempotent=False": _ours(idempotent=False, prefix="once"),
    "tollkeeper, token bucket": _bucket,
}
LIMIT: Final[dict[str, Contender]] = {
    "our script, bare hiredis protocol": _script_on_bare_protocol,
    "our script, stock redis-py": _script_on_redis_py,
}
THEIRS: Final[dict[str, Contender]] = {
    "limits, moving window": _limits,
    "throttled-py, sliding window counter": _throttled(memory=False),
    "pyrate-limiter": _pyrate,
}
MEMORY: Final[dict[str, Contender]] = {"tollkeeper": _memory}
MEMORY_THEIRS: Final[dict[str, Contender]] = {
    "limits, moving window": _limits_memory,
    "throttled-py, sliding window counter": _throttled(memory=True),
}
