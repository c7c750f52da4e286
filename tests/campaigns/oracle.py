"""The judge of a sliding window: every admitted weight with Redis' time of it, and nothing clever.

Of an ask whose connection was lost on the way only an interval is known; it counts where it must have been
(`overfull`), or where it may have been (`unjustified`). One that was sent and never answered may have been anywhere
since it was asked, or nowhere.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from tests.campaigns.workers import Asked, Failed


class Oracle:
    """Over all asks of one key."""

    def __init__(self, asked: Sequence[Asked], limit: int, window_us: int, failed: Sequence[Failed] = ()) -> None:
        self.limit, self.window_us = limit, window_us
        self.tick_us = max(1, window_us // 6000)
        self.admitted = [a for a in asked if a.admitted]
        self.refused = [a for a in asked if not a.admitted]
        sure = sorted((a.until_us, a.weight) for a in self.admitted if a.from_us == a.until_us)
        self._times = [at_us for at_us, _ in sure]
        self._sums = [0, *accumulate(weight for _, weight in sure)]
        self._given_up = sorted((f.from_us, f.weight) for f in failed if f.sent)
        self._unsure = [a for a in self.admitted if a.from_us != a.until_us]

    @property
    def weight(self) -> int:
        """All that was admitted."""
        return sum(a.weight for a in self.admitted)

    def _sure(self, after_us: int, until_us: int) -> int:
        """Weight admitted at after_us < time <= until_us."""
        return self._sums[bisect_right(self._times, until_us)] - self._sums[bisect_right(self._times, after_us)]

    def fullest(self) -> int:
        """The largest weight in any interval of the window's length; what is certain."""
        fullest = 0
        for end in self.admitted:
            start_us = end.until_us - self.window_us
            certain = sum(a.weight for a in self._unsure if a.from_us > start_us and a.until_us <= end.until_us)
            fullest = max(fullest, certain + self._sure(start_us, end.until_us))
        return fullest

    def overfull(self) -> int:
        """By how much the limit was exceeded."""
        return max(0, self.fullest() - self.limit)

    def unjustified(self) -> int:
        """Refusals though there was room, even if all that may have been in the window was: a tick longer at most."""
        count = 0
        for no in self.refused:
            start_us = no.until_us - self.window_us - self.tick_us
            possible = sum(weight for from_us, weight in self._given_up if from_us <= no.until_us)
            possible += sum(a.weight for a in self._unsure if a.until_us > start_us and a.from_us <= no.until_us)
            before = (
                self._sums[bisect_right(self._times, no.until_us)] - self._sums[bisect_left(self._times, start_us)]
            )
            count += possible + before + no.weight <= self.limit
        return count
