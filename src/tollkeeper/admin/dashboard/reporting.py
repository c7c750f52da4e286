"""Usage reports for pages: a page never waits long for one, and pages left open do not wear the gateway out.

A report reads the log store, which may take seconds. It is kept for as long as pays for making it (`SHARE` of the
time at most is spent on one), one is made at a time for all who ask, and whoever has waited `PATIENCE_S` gets the
one before, or none: the page says so and asks again by itself.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.services.reports import ReportService
from tollkeeper.domain.errors import Busy, ConfigurationError, Unavailable
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.reports import ReportQuery
from tollkeeper.domain.words import Words

PATIENCE_S: Final = 2.0
KEPT_S: Final = 15
SHARE: Final = 20
"""A report that took a second is kept for so many."""
REPORTS_MAX: Final = 128


class Unready(msgspec.Struct, frozen=True):
    """There is no report, and why; None: it is being made."""

    why: str | None = None


class _Kept(msgspec.Struct):
    task: asyncio.Task[None] | None = None
    words: Words | None = None
    failure: str | None = None
    until_us: int = 0


class Reporting:
    """Keeps the answers of the service, each for those who may see the same keys."""

    def __init__(self, service: ReportService, now_us: Callable[[], int], patience_s: float = PATIENCE_S) -> None:
        self._service, self._now_us, self._patience_s = service, now_us, patience_s
        self._kept: OrderedDict[Any, _Kept] = OrderedDict()

    async def usage(self, caller: Caller, query: ReportQuery) -> Words | Unready:
        """The report, perhaps an older one. Raises InvalidInput and NotFound of the query's own."""
        kept = self._kept.setdefault((caller.owned, query), _Kept())
        self._kept.move_to_end((caller.owned, query))
        while len(self._kept) > REPORTS_MAX:
            self._kept.popitem(last=False)
        if kept.until_us <= self._now_us():
            if kept.task is None:
                kept.task = asyncio.create_task(self._make(kept, caller, query))
            task = kept.task
            await asyncio.wait({task}, timeout=self._patience_s)
            if task.done():
                task.result()  # raises what the query itself is to blame for
        if kept.words is not None:
            return kept.words
        return Unready(kept.failure)

    async def _make(self, kept: _Kept, caller: Caller, query: ReportQuery) -> None:
        began_us = self._now_us()
        try:
            kept.words, kept.failure = await self._service.usage(caller, query), None
        except (Unavailable, Busy, ConfigurationError) as error:
            kept.failure = str(error)
        finally:
            kept.task = None
        now_us = self._now_us()
        kept.until_us = now_us + max(KEPT_S * US_PER_S, SHARE * (now_us - began_us))
