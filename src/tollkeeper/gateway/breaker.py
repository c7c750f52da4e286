"""The circuit breaker of one deployment: after too many failures it is given no requests for a while.

closed → open (cooling down) → half-open: one request tries it, the *probe*; its success closes, its failure opens
again. Opens after a number of failures in a row, or a share of failures among enough requests of one window, or at
once for a time that the provider itself names. A pure state machine: all times are passed in, Unix µs. It knows
nothing of HTTP, or of where the requests go meanwhile.
"""

from enum import IntEnum

import msgspec


class BreakerState(IntEnum):
    """As the metric tells it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerRules(msgspec.Struct, frozen=True):
    """When it opens, and for how long."""

    failures: int
    """In a row."""
    failure_ratio: float
    """Of the requests of one window, if there are at least `requests_min`."""
    requests_min: int
    window_us: int
    cooldown_us: int


class Breaker:
    """One breaker. Every `begin` is followed by exactly one `succeeded`, `failed` or `abandoned`."""

    __slots__ = ("_failed", "_in_a_row", "_probing", "_requests", "_rules", "_since_us", "open_until_us")

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self.open_until_us: int | None = None
        """None: closed."""
        self._probing = False
        self._in_a_row = 0
        self._requests = self._failed = self._since_us = 0

    def __repr__(self) -> str:
        return f"<Breaker in_a_row={self._in_a_row} open_until_us={self.open_until_us} probing={self._probing}>"

    def state(self, now_us: int) -> BreakerState:
        """How it stands."""
        if self.open_until_us is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_us < self.open_until_us else BreakerState.HALF_OPEN

    def lets(self, now_us: int) -> bool:
        """Whether a request may go there now: it is closed, or half-open and waits for its probe."""
        state = self.state(now_us)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._probing)

    def begin(self, now_us: int) -> bool:
        """A request goes there, also one that `lets` advised against. True: it is the probe."""
        if self.open_until_us is None:
            return False
        probe = self.state(now_us) is BreakerState.HALF_OPEN and not self._probing
        self._probing = self._probing or probe
        return probe

    def succeeded(self, now_us: int, *, probe: bool = False) -> None:
        """It answered. While it cools down only the probe's word counts: others were sent before it opened."""
        if probe:
            self._close()
        elif self.open_until_us is None:
            self._in_a_row = 0
            if 0 <= now_us - self._since_us < self._rules.window_us:
                self._requests += 1
            else:
                self._count(now_us, failed=0)

    def failed(self, now_us: int, *, probe: bool = False, cool_us: int = 0) -> None:
        """It did not answer as it should. `cool_us`: what it asks for itself; it opens at once then."""
        if probe:
            self._probing = False
        if self.open_until_us is not None and not probe:
            if cool_us:
                self.open_until_us = max(self.open_until_us, now_us + cool_us)
            return
        self._in_a_row += 1
        self._count(now_us, failed=1)
        if probe or cool_us or self._too_many():
            self.open_until_us = now_us + (cool_us or self._rules.cooldown_us)

    def abandoned(self, *, probe: bool = False) -> None:
        """Nobody knows: the client hung up, or nothing was sent after all. The next request is the probe."""
        if probe:
            self._probing = False

    def _close(self) -> None:
        self.open_until_us, self._probing = None, False
        self._in_a_row = self._requests = self._failed = 0

    def _count(self, now_us: int, failed: int) -> None:
        if not 0 <= now_us - self._since_us < self._rules.window_us:
            self._since_us, self._requests, self._failed = now_us, 0, 0
        self._requests += 1
        self._failed += failed

    def _too_many(self) -> bool:
        rules = self._rules
        often = self._requests >= rules.requests_min and self._failed >= rules.failure_ratio * self._requests
        return often or self._in_a_row >= rules.failures
