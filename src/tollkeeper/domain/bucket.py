"""The token bucket: the readable twin of `scripts/refill.lua`.

The level is an integer of sixtieths of micro-tokens: `rate` tokens a minute are `rate` of them a microsecond, so no
fraction is ever lost, however often and at whatever rates the bucket is asked. It knows nothing of keys or ids.

A bucket never lets more through than its burst and what has flowed in since, in any interval, by the weights that are
true in the end: what was not used comes back only as far as the bucket could not have been filled up since then, and
a weight above its estimate is a debt: a level below zero.
"""

from typing import Final

from tollkeeper.domain.admission import PER_TOKEN
from tollkeeper.domain.limits import BURST_MAX, Answer, AskStatus
from tollkeeper.domain.windows import CLOCK_JUMP_US

DEBT_MAX: Final = BURST_MAX // 2
"""Tokens. A deeper debt is cut off, so that all numbers stay exact below 2^53."""


class Bucket:
    """One bucket. Once it is full it has forgotten everything. All times are Unix µs of the store's clock.

    `generation` is when it was last full, `returned` the whole tokens that came back unused since.
    """

    __slots__ = ("full_us", "generation", "last_us", "level", "returned")

    def __init__(self) -> None:
        self.level = 0
        self.last_us = 0
        self.full_us = 0
        self.generation = 0
        self.returned = 0

    def at(self, now_us: int, rate: int, burst: int) -> tuple[int, int]:
        """The level now, and when the last refill was; nothing is taken.

        If the clock was set back, the time since the last refill is unknown but not negative: nothing is refilled.
        After up to a second (CLOCK_JUMP_US) it goes on when the old time comes again; after more, from now on.
        """
        full = burst * PER_TOKEN
        if now_us >= self.full_us:
            self.full_us, self.generation, self.returned = 0, now_us, 0
            return full, now_us
        if self.last_us > now_us + CLOCK_JUMP_US:
            self.full_us -= self.last_us - now_us
            self.last_us, self.generation, self.returned = now_us, now_us, 0
        return min(full, self.level + max(0, now_us - self.last_us) * rate), max(now_us, self.last_us)

    def set(self, now_us: int, rate: int, burst: int, level: int, last_us: int) -> None:
        """Keep a level that was decided on; if it is full, it is forgotten at once."""
        self.level, self.last_us = level, last_us
        full_in_us = until(burst * PER_TOKEN, level, rate, last_us - now_us)
        self.full_us = now_us + full_in_us if full_in_us else 0

    def ask(self, now_us: int, rate: int, burst: int, cost: int) -> Answer:
        """Take `cost` tokens if they are there; 0 asks for the state only. A refusal changes nothing."""
        full, asked = burst * PER_TOKEN, cost * PER_TOKEN
        level, last_us = self.at(now_us, rate, burst)
        ahead_us = last_us - now_us
        if asked > level:
            wait_us = None if cost > burst else until(asked, level, rate, ahead_us)
            return Answer(AskStatus.REFUSED, now_us, level // PER_TOKEN, wait_us, until(full, level, rate, ahead_us))
        level -= asked
        if cost:
            self.set(now_us, rate, burst, level, last_us)
        return Answer(AskStatus.ALLOWED, now_us, level // PER_TOKEN, 0, until(full, level, rate, ahead_us))

    def correct(self, now_us: int, rate: int, burst: int, taken: "Taken", tokens: int) -> None:
        """Give back `tokens` that were taken and not used, or take more (negative), as far as debt goes."""
        level, last_us = self.at(now_us, rate, burst)
        if tokens > 0:
            flowed = rate * (last_us - taken[1]) + (self.returned - taken[3]) * PER_TOKEN
            tokens = min(tokens, (burst * PER_TOKEN - taken[2] - flowed) // PER_TOKEN)
            if self.full_us == 0 or self.generation != taken[0] or tokens <= 0:
                return
            self.returned += tokens
        level = min(burst * PER_TOKEN, max(level + tokens * PER_TOKEN, -DEBT_MAX * PER_TOKEN))
        self.set(now_us, rate, burst, level, last_us)


Taken = tuple[int, int, int, int]
"""What a bucket was when tokens were taken: its generation (0: none were), last refill, level left, returned."""


def until(goal: int, level: int, rate: int, ahead_us: int) -> int:
    """µs until the level is `goal`; `ahead_us` is how far the last refill lies ahead of now."""
    return 0 if level >= goal else ahead_us + -(-(goal - level) // rate)
