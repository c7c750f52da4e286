"""Tries of admin tokens: counted once by all gateways on one Redis, and by each alone while it is away."""

from tests.servers.redis import RedisServer
from tollkeeper import RedisClient
from tollkeeper.governance.logins import TRIES, WINDOW_S, LoginLimits

START_US = 1_795_000_000_000_000


async def tries(limits: LoginLimits, address: str, most: int = 2 * TRIES) -> int:
    """How many pass, until one does not."""
    for passed in range(most):
        if await limits.wait_s(address) is not None:
            return passed
    return most


async def test_gateways_on_one_redis_count_together(redis_server: RedisServer) -> None:
    async with RedisClient(url=redis_server.url) as one, RedisClient(url=redis_server.url) as two:
        first, second = (LoginLimits(lambda: START_US, client) for client in (one, two))
        assert await tries(first, "a", 4) == 4
        assert await tries(second, "a") == TRIES - 4
        wait_s = await first.wait_s("a")
        assert wait_s is not None and 0 < wait_s <= WINDOW_S + 0.1
        assert await tries(second, "b") == TRIES


async def test_no_tries_are_won_when_redis_goes_away(own_redis: RedisServer) -> None:
    """What it let pass here is counted on; what it refused is not held against anybody."""
    now = [START_US]
    async with RedisClient(url=own_redis.url, read_timeout_s=0.3, dial_timeout_s=0.3) as client:
        limits, other = LoginLimits(lambda: now[0], client), LoginLimits(lambda: START_US, client)
        assert await tries(limits, "c", 6) == 6
        assert await tries(other, "c") == TRIES - 6
        for _ in range(TRIES):
            assert await limits.wait_s("c") is not None
        own_redis.kill()
        assert await tries(limits, "c") == TRIES - 6
        now[0] += int(WINDOW_S * 1_000_000) + 10_000
        assert await tries(limits, "c") == TRIES
