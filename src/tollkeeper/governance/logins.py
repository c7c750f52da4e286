"""How often an address may try tokens of the admin API, by our own sliding window: in Redis if there is one, so that
all gateways count together; in this process's memory if there is none, or while it is away, so that an operator gets
in then, too.

What Redis lets pass is counted in memory as well: when it goes away, nobody's tries begin anew here. Then an address
has its tries at each of N gateways, which 256 random bits do not mind. Who is an address, and the bound of what is
kept of them, is the caller's matter.
"""

from collections.abc import Callable
from typing import Final

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.limits import LimitResult
from tollkeeper.governance.limit_stores import MemoryLimits, ScriptRunner
from tollkeeper.governance.limiters import SlidingWindowLimiter

TRIES: Final = 10
WINDOW_S: Final = 60.0
PREFIX: Final = "logins"
"""Tries of admin tokens by slot of addresses, of all gateways. 2 × window."""
DEADLINE_S: Final = 1.0
"""What Redis may take to count a try."""


class LoginLimits:
    """`LoginLimiter`: at most `TRIES` in any minute."""

    def __init__(self, now_us: Callable[[], int], redis: ScriptRunner | None = None) -> None:
        self._own = SlidingWindowLimiter(MemoryLimits(now_us), window=WINDOW_S, prefix=PREFIX)
        self._shared = None
        if redis is not None:
            self._shared = SlidingWindowLimiter(redis, window=WINDOW_S, prefix=PREFIX, deadline=DEADLINE_S)

    async def wait_s(self, address: str) -> float | None:
        shared = await self._ask_shared(address)
        if shared is not None and not shared:
            return shared.retry_after or 0.0
        own = await self._own.allow(address, TRIES)
        return None if own or shared else own.retry_after or 0.0

    async def _ask_shared(self, address: str) -> LimitResult | None:
        """None: there is no Redis, or it does not answer."""
        if self._shared is None:
            return None
        try:
            return await self._shared.allow(address, TRIES)
        except StoreUnavailable:
            return None
