"""What may be tried again, when, and how often: decisions only, with time and randomness passed in.

A failed attempt gets a `Verdict`; the pause before another one at the same deployment is exponential with full jitter
(M. Brooker, "Exponential Backoff And Jitter", AWS 2015), and no shorter than the provider asks for. A process spends
at most a share of its requests on retries (`RetryBudget`, as Finagle's and gRPC's), so that an outage is not
multiplied. It knows nothing of holds, deployments or the client.
"""

from enum import Enum
from typing import Final

from tollkeeper.domain.errors import UpstreamError

US_PER_S: Final = 1_000_000
DOUBLINGS_MAX: Final = 20
OVERLOAD: Final = (408, 429)
"""Statuses below 500 that pass by themselves."""
REFUSED_US: Final = (401, 403)


class Verdict(Enum):
    """FINAL: the client's to know, nothing else is tried. ELSEWHERE: this deployment will not do better soon, another
    may. AGAIN: this one may, too, after a pause."""

    FINAL = "final"
    ELSEWHERE = "elsewhere"
    AGAIN = "again"


def verdict_of_status(status: int, should_retry: str | None) -> Verdict:
    """Of an error status, with the provider's own `x-should-retry`."""
    if status in REFUSED_US:
        return Verdict.ELSEWHERE
    if status in OVERLOAD or status >= 500:
        return Verdict.ELSEWHERE if should_retry == "false" else Verdict.AGAIN
    return Verdict.FINAL


def verdict_of_error(error: UpstreamError, *, retry_unanswered: bool) -> Verdict:
    """Of an exchange that broke. What was sent may have run and is charged: trying again is the operator's choice."""
    return Verdict.AGAIN if retry_unanswered or not error.sent else Verdict.FINAL


def is_failure(status: int) -> bool:
    """Whether a status speaks against the deployment; others are the client's fault or success."""
    return status in OVERLOAD or status in REFUSED_US or status >= 500


def retry_after_us(header: str | None, header_ms: str | None) -> int:
    """The wait that a provider asks for, by `retry-after-ms` or `retry-after` in seconds; 0 if it says none that can
    be read. A date is not: it would be read by a clock that need not be the provider's."""
    for text, unit_us in ((header_ms, 1000), (header, US_PER_S)):
        try:
            wait_us = float(text or "") * unit_us
        except ValueError:
            continue
        if 0 < wait_us < 2**53:
            return int(wait_us)
    return 0


def backoff_us(tries: int, random: float, *, min_us: int, max_us: int) -> int:
    """The pause after so many tries (from 1 on) at one deployment: anything from 0 to a bound that doubles with each.

    `random` is in [0, 1).
    """
    return int(random * min(max_us, min_us << min(tries - 1, DOUBLINGS_MAX)))


class RetryBudget:
    """Every first attempt earns a share of a retry, up to a purse of `burst`, which is full at the start."""

    __slots__ = ("_burst", "_ratio", "balance")

    def __init__(self, ratio: float, burst: int) -> None:
        self._ratio, self._burst = ratio, burst
        self.balance = float(burst)

    def __repr__(self) -> str:
        return f"<RetryBudget balance={self.balance:.1f} of {self._burst}>"

    def earn(self) -> None:
        """A request's first attempt."""
        if self.balance < self._burst:
            self.balance = min(self._burst, self.balance + self._ratio)

    def spend(self) -> bool:
        """Take one retry; False if the purse has none."""
        if self.balance < 1:
            return False
        self.balance -= 1
        return True
