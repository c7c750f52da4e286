"""How often an address may try tokens of the admin API: our own sliding window, in this process's memory.

In memory and not in Redis, so that an operator gets in while Redis is away; with N gateways an address has N times
the tries, which 256 random bits do not mind. Who is an address, and memory's bound, is the caller's matter.
"""

from collections.abc import Callable
from typing import Final

from tollkeeper.governance.limit_stores import MemoryLimits
from tollkeeper.governance.limiters import SlidingWindowLimiter

TRIES: Final = 10
WINDOW_S: Final = 60.0


class LoginLimits:
    """`LoginLimiter`: at most `TRIES` in any minute."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._limiter = SlidingWindowLimiter(MemoryLimits(now_us), window=WINDOW_S, prefix="logins")

    async def wait_s(self, address: str) -> float | None:
        result = await self._limiter.allow(address, TRIES)
        return None if result else result.retry_after or 0.0
