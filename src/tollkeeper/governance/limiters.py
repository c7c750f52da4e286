"""The limiters of the library: a sliding window and a token bucket, for any asyncio service.

    client = RedisClient.from_env()
    limiter = SlidingWindowLimiter(client)          # or SlidingWindowLimiter(MemoryLimits())
    result = await limiter.allow("customer 17", 100)
    if not result: ...                              # result.retry_after seconds

They check what callers hand in, name keys and shape results. The decisions are in domain/limits.py and
domain/bucket.py, the stores in limit_stores.py.
"""

from typing import Final

from tollkeeper.domain.admission import TICKS_PER_WINDOW
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.limits import (
    BURST_MAX,
    LIMIT_MAX,
    US_PER_S,
    Answer,
    AskStatus,
    LimitResult,
    check_bucket,
    whole,
    window_us_of,
)
from tollkeeper.domain.names import key_part, key_prefix
from tollkeeper.governance.limit_stores import LimitStore, RedisLimits, ScriptRunner

BUCKET_REMEMBERS_MS: Final = 120_000
"""How long a bucket knows a request id; a window knows it for two windows."""


class _Limiter:
    """What both limiters share: a store, keys, and how often an ask may be repeated."""

    def __init__(self, store: LimitStore | ScriptRunner, *, prefix: str, deadline: float, idempotent: bool) -> None:
        if not 0 < deadline <= 3600:
            raise InvalidInput(f"deadline must be above 0 and at most 3600 seconds, not {deadline!r}")
        self._store = RedisLimits(store, deadline_s=deadline) if isinstance(store, ScriptRunner) else store
        self._prefix, self._deadline = key_prefix(prefix), deadline
        self._auto = "" if idempotent else None

    def _request(self, request_id: str | None) -> str | None:
        return self._auto if request_id is None else key_part(request_id, what="request_id")


class SlidingWindowLimiter(_Limiter):
    """At most `limit` in every interval of `window` seconds (0.001 to 366 days), wherever it starts: exact.

    Asks are stamped on the store's clock, rounded up to window/6000, so that a refusal may last one such tick too
    long; never is more allowed. A weight of a million costs no more than 1. The limit belongs to the ask, not to the
    key: each ask is checked against the limit it brings.

    With `idempotent` an ask whose reply was lost is asked again under an id of its own until `deadline` seconds have
    passed or Redis counts as away, and counts once; without, it raises StoreUnavailable with `sent=True`, and saves
    the key of the id (about 130 bytes for two deadlines). A `request_id` of the caller's does the same for
    repetitions of the caller, for two windows: allowed once, it is allowed again without being counted, with the
    state of now.

    Key: `<prefix>:{<id>}:<window µs>`, alive for up to two windows. The gateway's own windows are under `ratelimit`:
    on a Redis shared with a gateway give another prefix, unless you mean its organisations' windows.

    All methods raise InvalidInput (a ValueError) for what cannot be asked, and StoreUnavailable.
    """

    def __init__(
        self,
        store: LimitStore | ScriptRunner,
        *,
        window: float = 60.0,
        prefix: str = "ratelimit",
        deadline: float = 3.0,
        idempotent: bool = True,
    ) -> None:
        super().__init__(store, prefix=prefix, deadline=deadline, idempotent=idempotent)
        self._window_us = window_us_of(window)
        self._tick_us = max(1, self._window_us // TICKS_PER_WINDOW)

    def on(self, store: LimitStore | ScriptRunner) -> "SlidingWindowLimiter":
        """The same limiter on another store."""
        idempotent = self._auto is not None
        return SlidingWindowLimiter(
            store, window=self.window, prefix=self._prefix, deadline=self._deadline, idempotent=idempotent
        )

    @property
    def window(self) -> float:
        """Seconds."""
        return self._window_us / US_PER_S

    async def allow(self, key_id: str, limit: int, *, request_id: str | None = None) -> LimitResult:
        """Ask for one."""
        return await self.allow_n(key_id, limit, 1, request_id=request_id)

    async def allow_n(self, key_id: str, limit: int, n: int, *, request_id: str | None = None) -> LimitResult:
        """Ask for `n` at once: all or nothing. Above `limit` the answer is `never`."""
        key, weight = self._key(key_id), min(whole(n, "n"), LIMIT_MAX + 1)
        numbers = (self._window_us, self._tick_us, whole(limit, "limit", LIMIT_MAX), weight)
        remember_ms = -(-self._window_us // 500)
        answer = await self._store.ask(
            "allow", key, numbers, request=self._request(request_id), remember_ms=remember_ms
        )
        return _result(answer, limit, limit - answer.count)

    async def get_current_usage(self, key_id: str) -> int:
        """What counts in the window that ends now."""
        answer = await self._store.look("allow", self._key(key_id), (self._window_us, self._tick_us, LIMIT_MAX))
        return answer.count

    async def reset(self, key_id: str) -> None:
        """Empty the window."""
        await self._store.forget("allow", self._key(key_id))

    def _key(self, key_id: str) -> str:
        return f"{self._prefix}:{{{key_part(key_id)}}}:{self._window_us}"


class TokenBucketLimiter(_Limiter):
    """A bucket that holds `burst` tokens and gains `rate` a minute, evenly; full at first.

    Exact: the level is an integer, and no fraction is lost however often it is asked. `burst` may be below or above
    `rate`. Rate and burst belong to the ask; when they change, what has flowed in since the last allowed ask counts
    at the new rate. A clock that was set back never grants twice and never freezes a bucket for more than a second.

    `idempotent`, `deadline` and `request_id` (remembered for two minutes) as in SlidingWindowLimiter.

    Key: `<prefix>:{<id>}`, alive until the bucket is full.

    All methods raise InvalidInput (a ValueError) for what cannot be asked, and StoreUnavailable.
    """

    def __init__(
        self,
        store: LimitStore | ScriptRunner,
        *,
        prefix: str = "tokenbucket",
        deadline: float = 3.0,
        idempotent: bool = True,
    ) -> None:
        super().__init__(store, prefix=prefix, deadline=deadline, idempotent=idempotent)

    def on(self, store: LimitStore | ScriptRunner) -> "TokenBucketLimiter":
        """The same limiter on another store."""
        idempotent = self._auto is not None
        return TokenBucketLimiter(store, prefix=self._prefix, deadline=self._deadline, idempotent=idempotent)

    async def allow(
        self, key_id: str, rate: int, burst: int, *, cost: int = 1, request_id: str | None = None
    ) -> LimitResult:
        """Take `cost` tokens: all or nothing; above `burst`, the result's `limit`, it is `never`."""
        key = self._key(key_id)
        check_bucket(rate, burst)
        numbers = (rate, burst, min(whole(cost, "cost"), BURST_MAX + 1))
        answer = await self._store.ask(
            "bucket", key, numbers, request=self._request(request_id), remember_ms=BUCKET_REMEMBERS_MS
        )
        return _result(answer, burst, answer.count)

    async def get_remaining_tokens(self, key_id: str, rate: int, burst: int) -> int:
        """Whole tokens that are there now."""
        check_bucket(rate, burst)
        answer = await self._store.look("bucket", self._key(key_id), (rate, burst))
        return answer.count

    async def reset(self, key_id: str) -> None:
        """Fill the bucket."""
        await self._store.forget("bucket", self._key(key_id))

    def _key(self, key_id: str) -> str:
        return f"{self._prefix}:{{{key_part(key_id)}}}"


def _result(answer: Answer, limit: int, remaining: int) -> LimitResult:
    allowed = answer.status is AskStatus.ALLOWED
    never = answer.wait_us is None
    return LimitResult(allowed, limit, max(0, remaining), answer.wait_us, answer.reset_us, never)
