"""What a limiter of the library answers, what it may be asked, and the decision of a sliding window.

`ask_window` is the twin of `scripts/allow.lua`; the token bucket's is in bucket.py. Neither knows of keys, of the
clock, or of the request ids that make a repetition harmless.
"""

from enum import IntEnum
from typing import Final

import msgspec

from tollkeeper.domain.admission import WEIGHT_MAX
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.windows import RunLog

US_PER_S: Final = 1_000_000
LIMIT_MAX: Final = WEIGHT_MAX
"""Largest limit of a window: its log keeps weights in 5 bytes."""
BURST_MAX: Final = 150_000_000
"""Largest burst: its level, in sixtieths of micro-tokens, must stay below 2^53."""
WINDOW_MIN_US: Final = 1_000
WINDOW_MAX_US: Final = 366 * 86_400 * US_PER_S
FILL_MAX_US: Final = 100 * WINDOW_MAX_US
"""A bucket that takes longer to fill is a mistake, and its times would not be exact."""


class LimitResult(msgspec.Struct, frozen=True, gc=False):
    """The answer to one ask. It is true exactly if it is `allowed`.

    `remaining` is what would be allowed now, never below zero. If nothing else came, the same ask would be allowed in
    `retry_after_us` (0 if it was allowed; None if `never`: its weight is above the limit itself), and all of the
    limit would be free again in `reset_after_us`.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after_us: int | None
    reset_after_us: int
    never: bool = False

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def retry_after(self) -> float | None:
        """Seconds."""
        return None if self.retry_after_us is None else self.retry_after_us / US_PER_S

    @property
    def reset_after(self) -> float:
        """Seconds."""
        return self.reset_after_us / US_PER_S


class AskStatus(IntEnum):
    """As scripts write it. *late*: it came after its deadline and changed nothing."""

    LATE = -1
    REFUSED = 0
    ALLOWED = 1


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A limit after the decision, at the store's time `now_us`.

    `count` is the weight in the window, or the whole tokens left in the bucket. `wait_us` None: never.
    """

    status: AskStatus
    now_us: int
    count: int
    wait_us: int | None
    reset_us: int


def ask_window(log: RunLog, now_us: int, limit: int, weight: int) -> Answer:
    """Admit `weight` if it fits; 0 asks for the state only. A refusal only forgets what has left the window."""
    log.advance(now_us)
    status, wait_us = AskStatus.ALLOWED, 0
    if weight > 0 and log.requests + weight <= limit:
        log.add(now_us, weight, 0)
    elif weight > limit:
        return Answer(AskStatus.REFUSED, now_us, log.requests, None, _empty_in(log, now_us))
    elif weight > 0:
        status, wait_us = AskStatus.REFUSED, log.wait_us(now_us, 1, log.requests + weight - limit)
    return Answer(status, now_us, log.requests, wait_us, _empty_in(log, now_us))


def _empty_in(log: RunLog, now_us: int) -> int:
    return log.last_us + log.window_us - now_us if log.runs else 0


def whole(value: object, what: str, most: int | None = None) -> int:
    """A positive int as it is. Raises InvalidInput for everything else: bool and float are not counts."""
    if type(value) is int and value > 0 and (most is None or value <= most):
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{what} must be a positive int, not {value!r}")
    if most is not None and value > most:
        raise InvalidInput(f"{what} must be at most {most}, not {value}")
    return value


def window_us_of(seconds: float) -> int:
    """Seconds → µs. Raises InvalidInput outside 1 ms .. 366 days."""
    if type(seconds) not in (int, float) or not WINDOW_MIN_US <= seconds * US_PER_S <= WINDOW_MAX_US:
        raise InvalidInput(f"window must be 0.001 to {WINDOW_MAX_US // US_PER_S} seconds, not {seconds!r}")
    return round(seconds * US_PER_S)


def check_bucket(rate: int, burst: int) -> None:
    """Raises InvalidInput if a bucket of `burst` tokens, filled with `rate` a minute, cannot be."""
    whole(rate, "rate", LIMIT_MAX)
    whole(burst, "burst", BURST_MAX)
    if burst * 60 * US_PER_S > rate * FILL_MAX_US:
        raise InvalidInput(f"burst {burst} at {rate} a minute would take more than 100 years to fill")
