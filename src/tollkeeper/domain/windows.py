"""The exact sliding window: a log of runs.

A run is `[stamp, requests, tokens]`: all that was admitted within one tick. Stamps are rounded up to window/6000, so
a run leaves the window up to one tick late: never over-admitting, and never more than 6,000 runs. The windows of one
length of one scope share a log; each has its own limit and sum. `scripts/window.lua` is the twin of this file on a
packed string, and Hypothesis holds the two equal.

In every interval of length W: a run stamped S stands for admissions at t <= S, and counts while now < S + W, so two
admissions that lie less than W apart are always counted together.
"""

from collections import deque
from typing import Final

import msgspec

from tollkeeper.domain.admission import WEIGHT_MAX, LogState

CLOCK_JUMP_US: Final = 1_000_000
"""A stamp further ahead of now than this means that the clock was set back."""


class LogPush(msgspec.Struct, frozen=True):
    """What was admitted without a log and must be added to it by force, oldest first.

    `known_requests` and `known_tokens` are its sums as last seen, when it was of `generation` and its newest run was
    stamped `known_us`: a log of another generation has forgotten them. `runs` are (stamp, requests, tokens).
    """

    name: str
    window_us: int
    tick_us: int
    generation: int
    known_us: int
    known_requests: int
    known_tokens: int
    runs: tuple[tuple[int, int, int], ...]


class RunLog:
    """One log. All times are Unix µs of the store's clock."""

    __slots__ = ("generation", "head", "last_us", "requests", "runs", "tick_us", "tokens", "window_us")

    def __init__(self, window_us: int, tick_us: int, now_us: int) -> None:
        self.window_us = window_us
        self.tick_us = tick_us
        self.generation = now_us
        self.head = 0
        self.last_us = 0
        self.requests = 0
        self.tokens = 0
        self.runs: deque[list[int]] = deque()

    def advance(self, now_us: int) -> bool:
        """Forget what has left the window. True if the clock had jumped back.

        After a jump all stamps move back by the same distance, so that the newest is now: time since the newest run
        is unknown but not negative, and the distances between runs were measured right. Without this a full window
        would stay frozen until the old time comes again.
        """
        runs = self.runs
        if not runs:
            return False
        jumped = self.last_us > now_us + CLOCK_JUMP_US and self._pull_back(self._stamp(now_us))
        horizon = now_us - self.window_us
        while runs and runs[0][0] <= horizon:
            _, requests, tokens = runs.popleft()
            self.requests -= requests
            self.tokens -= tokens
            self.head += 1
        return jumped

    def _pull_back(self, ceiling: int) -> bool:
        """Move all stamps back, the newest to `ceiling`, if that is a jump's distance. True if it was."""
        back = self.last_us - ceiling
        if back <= CLOCK_JUMP_US:
            return False
        for run in self.runs:
            run[0] -= back
        self.last_us = ceiling
        return True

    def wait_us(self, now_us: int, unit: int, excess: int) -> int:
        """Time until runs worth `excess` (unit 1: requests, 2: tokens) have left the window; call after `advance`."""
        for run in self.runs:
            excess -= run[unit]
            if excess <= 0:
                return run[0] + self.window_us - now_us
        return self.window_us

    def add(self, now_us: int, requests: int, tokens: int) -> int:
        """Record weights (each at most 2^40 - 1) now; the run's index. A run is never worth more than 2^40 - 1."""
        runs, stamp = self.runs, self._stamp(now_us)
        if runs and stamp <= self.last_us:
            last = runs[-1]
            requests, tokens = min(requests, WEIGHT_MAX - last[1]), min(tokens, WEIGHT_MAX - last[2])
            last[1] += requests
            last[2] += tokens
        else:
            runs.append([stamp, requests, tokens])
            self.last_us = stamp
        self.requests += requests
        self.tokens += tokens
        return self.head + len(runs) - 1

    def push(self, now_us: int, push: LogPush) -> None:
        """Add what is still in the window, whatever the limits; call after `advance`. No stamp is later than now."""
        if self.generation != push.generation:
            missing = max(0, push.known_requests - self.requests), max(0, push.known_tokens - self.tokens)
            self._force(now_us, push.known_us, *missing)
        for stamp_us, requests, tokens in push.runs:
            self._force(now_us, stamp_us, requests, tokens)

    def _force(self, now_us: int, stamp_us: int, requests: int, tokens: int) -> None:
        if stamp_us + self.window_us > now_us and requests + tokens > 0:
            self.add(min(stamp_us, now_us), requests, tokens)

    def correct(self, generation: int, index: int, requests: int, tokens: int) -> None:
        """Add to a run that is still in the log; a run that has left changes nothing. Weights stay in 0..2^40."""
        position = index - self.head
        if generation != self.generation or not 0 <= position < len(self.runs):
            return
        run = self.runs[position]
        requests = min(max(requests, -run[1]), WEIGHT_MAX - run[1])
        tokens = min(max(tokens, -run[2]), WEIGHT_MAX - run[2])
        run[1] += requests
        run[2] += tokens
        self.requests += requests
        self.tokens += tokens

    def clear(self) -> None:
        """Empty the window. Indexes go on, so that late corrections of old runs find nothing."""
        self.head += len(self.runs)
        self.runs.clear()
        self.requests = self.tokens = 0

    def state(self, now_us: int, generation: int, index: int) -> LogState:
        """Sums now, after `advance`. `generation` and `index` name the run of the request that asks, if any."""
        empty_in = self.last_us + self.window_us - now_us if self.runs else 0
        return LogState(generation, index, self.requests, self.tokens, empty_in)

    def _stamp(self, now_us: int) -> int:
        return -(-now_us // self.tick_us) * self.tick_us
