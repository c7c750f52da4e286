"""A rule: one limiter with what it is asked for, what happens while Redis is away, and how the answer looks in HTTP.

The ASGI middleware and the FastAPI dependency share it. It knows neither of their frameworks.
"""

import json
import math
from typing import Final, Literal

from tollkeeper.domain.errors import InvalidInput, StoreUnavailable
from tollkeeper.domain.limits import US_PER_S, LimitResult, check_bucket, whole
from tollkeeper.governance.limit_stores import MemoryLimits
from tollkeeper.governance.limiters import SlidingWindowLimiter, TokenBucketLimiter

Limiter = SlidingWindowLimiter | TokenBucketLimiter
WhenAway = Literal["bounded", "open", "closed"]
Headers = list[tuple[str, str]]

AWAY_RETRY_S: Final = 1
"""What a client is told to wait when nothing can be decided."""
_QUOTE: Final = str.maketrans({'"': '\\"', "\\": "\\\\"})


class LimitRule:
    """`limit` in the limiter's window; for a bucket `limit` tokens a minute and at most `burst` (default: `limit`).

    `when_away`, while Redis is: *bounded* (the default) goes on with what this process allowed itself, up to the
    limit, so that N processes allow at most N times the limit; *open* allows all, *closed* none. Raises InvalidInput.
    """

    def __init__(
        self,
        limiter: Limiter,
        limit: int,
        *,
        burst: int | None = None,
        when_away: WhenAway = "bounded",
        name: str = "default",
    ) -> None:
        if when_away not in ("bounded", "open", "closed"):
            raise InvalidInput(f"when_away must be bounded, open or closed, not {when_away!r}")
        if not (name.isascii() and name.isprintable()):
            raise InvalidInput(f"name {name!r} must be printable ASCII: it goes into headers")
        whole(limit, "limit")
        if isinstance(limiter, TokenBucketLimiter):
            burst = limit if burst is None else burst
            check_bucket(limit, burst)
            self._window_s = -(-burst * 60 // limit)
        elif burst is not None:
            raise InvalidInput("burst is for a TokenBucketLimiter")
        else:
            self._window_s = math.ceil(limiter.window)
        self.limiter, self.limit, self.burst, self.when_away = limiter, limit, burst, when_away
        self._name = name.translate(_QUOTE)
        self._own = limiter.on(MemoryLimits()) if when_away == "bounded" else None

    async def ask(self, key_id: str, cost: int = 1) -> LimitResult | None:
        """The answer; None: Redis is away and the rule is *open*. Raises StoreUnavailable if it is *closed*."""
        try:
            result = await self._ask(self.limiter, key_id, cost)
        except StoreUnavailable:
            if self._own is not None:
                return await self._ask(self._own, key_id, cost)
            if self.when_away == "open":
                return None
            raise
        if result and self._own is not None:
            await self._ask(self._own, key_id, cost)
        return result

    async def _ask(self, limiter: Limiter, key_id: str, cost: int) -> LimitResult:
        if isinstance(limiter, TokenBucketLimiter):
            assert self.burst is not None
            return await limiter.allow(key_id, self.limit, self.burst, cost=cost)
        return await limiter.allow_n(key_id, self.limit, cost)

    def headers(self, result: LimitResult) -> Headers:
        """`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), and the old `x-ratelimit-*`.

        `t` and `x-ratelimit-reset`: seconds until all of the limit is free again, rounded up.
        """
        reset_s = -(-result.reset_after_us // US_PER_S)
        headers = [
            ("ratelimit-policy", f'"{self._name}";q={result.limit};w={self._window_s}'),
            ("ratelimit", f'"{self._name}";r={result.remaining};t={reset_s}'),
            ("x-ratelimit-limit", str(result.limit)),
            ("x-ratelimit-remaining", str(result.remaining)),
            ("x-ratelimit-reset", str(reset_s)),
        ]
        if result.never:
            headers.append(("x-should-retry", "false"))
        elif result.retry_after_us:
            headers.append(("retry-after", str(-(-result.retry_after_us // US_PER_S))))
        return headers


def refusal(result: LimitResult) -> tuple[int, dict[str, object]]:
    """Status and error of a refused request: 429, or 400 if it would never be allowed."""
    if result.never:
        return 400, {
            "code": "request_exceeds_limit",
            "message": f"The limit is {result.limit}; waiting does not help.",
        }
    wait_s = result.retry_after or 0.0
    message = f"The limit of {result.limit} is reached; try again in {wait_s:.3f} s."
    return 429, {"code": "rate_limit_exceeded", "message": message, "retry_after": wait_s}


def away() -> tuple[int, dict[str, object]]:
    """Status and error when nothing can be decided."""
    return 503, {"code": "rate_limiter_unavailable", "message": "Rate limits cannot be checked now; try again."}


def body(error: dict[str, object]) -> bytes:
    """JSON."""
    return json.dumps({"error": error}).encode()
