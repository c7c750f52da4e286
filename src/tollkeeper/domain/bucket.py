"""The token bucket: the readable twin of `scripts/bucket.lua`.

The level is an integer of sixtieths of micro-tokens: `rate` tokens a minute are `rate` of them a microsecond, so no
fraction is ever lost, however often and at whatever rates the bucket is asked. It knows nothing of keys or ids.
"""

from typing import Final

from tollkeeper.domain.limits import Answer, AskStatus
from tollkeeper.domain.windows import CLOCK_JUMP_US

PER_TOKEN: Final = 60_000_000
"""Sixtieths of micro-tokens in a token."""


class Bucket:
    """One bucket. Once it is full it has forgotten everything. All times are Unix µs of the store's clock."""

    __slots__ = ("full_us", "last_us", "level")

    def __init__(self) -> None:
        self.level = 0
        self.last_us = 0
        self.full_us = 0

    def ask(self, now_us: int, rate: int, burst: int, cost: int) -> Answer:
        """Take `cost` tokens if they are there; 0 asks for the state only. A refusal changes nothing.

        If the clock was set back, the time since the last refill is unknown but not negative: nothing is refilled.
        After up to a second (CLOCK_JUMP_US) it goes on when the old time comes again; after more, from now on.
        """
        full, asked = burst * PER_TOKEN, cost * PER_TOKEN
        level, last_us = full, now_us
        if now_us >= self.full_us:
            self.full_us = 0
        else:
            if self.last_us > now_us + CLOCK_JUMP_US:
                self.full_us -= self.last_us - now_us
                self.last_us = now_us
            level = min(full, self.level + max(0, now_us - self.last_us) * rate)
            last_us = max(now_us, self.last_us)
        ahead_us = last_us - now_us
        if asked > level:
            wait_us = None if cost > burst else _until(asked, level, rate, ahead_us)
            return Answer(AskStatus.REFUSED, now_us, level // PER_TOKEN, wait_us, _until(full, level, rate, ahead_us))
        level -= asked
        full_in_us = _until(full, level, rate, ahead_us)
        if cost:
            self.level, self.last_us, self.full_us = level, last_us, now_us + full_in_us
        return Answer(AskStatus.ALLOWED, now_us, level // PER_TOKEN, 0, full_in_us)


def _until(goal: int, level: int, rate: int, ahead_us: int) -> int:
    """µs until the level is `goal`; `ahead_us` is how far the last refill lies ahead of now."""
    return 0 if level >= goal else ahead_us + -(-(goal - level) // rate)
