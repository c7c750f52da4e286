"""What happened lately, from delivered log records: requests, spend, tokens and latency by time, model and key.

The account of a month is in the database (`UsageService`); this tells of hours and days, and of what was refused or
failed. At most `RECORDS_MAX` records are read, the newest; a summary says since when it is whole. It is kept for a
moment, so that many viewers of a page read the store once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tollkeeper.admin.access import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.domain.log_search import PAGE_MAX, LogFilters
from tollkeeper.domain.periods import US_PER_S

RECORDS_MAX: Final = 20_000
PAGES_MAX: Final = 64
"""Pages may be short where the log store's objects are large."""
KEPT_S: Final = 10
SUMMARIES_MAX: Final = 64


class Tally(msgspec.Struct):
    """A sum over requests. `refused` are by a limit or budget, `failed` everything else that went wrong."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    cost_nano: int = 0
    presumed_nano: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    @property
    def answered(self) -> int:
        """Requests that went well."""
        return self.requests - self.refused - self.failed

    def add(self, record: "Told") -> None:
        """Count one record."""
        self.requests += 1
        if record.refused_by is not None:
            self.refused += 1
        elif record.error is not None or record.status >= 400:
            self.failed += 1
        self.cost_nano += record.cost_nano
        self.presumed_nano += record.cost_nano if record.presumed else 0
        self.input_tokens += record.tokens_input
        self.output_tokens += record.tokens_output
        self.cached_tokens += record.tokens_cached


class Told(msgspec.Struct):
    """The fields of a record that are summed up."""

    time_us: int
    key_id: str = ""
    key_name: str = ""
    model: str = ""
    status: int = 0
    error: str | None = None
    refused_by: str | None = None
    cost_nano: int = 0
    presumed: bool = False
    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cached: int = 0
    total_us: int = 0


class Activity(msgspec.Struct):
    """The summary of [since, until) in columns of `step_us`. `whole_since_us`: before it some records were not read.

    `by_model` and `by_key` have a tally for each column; keys are (id, name as of the newest record).
    """

    since_us: int
    until_us: int
    step_us: int
    whole_since_us: int
    total: Tally
    columns: list[Tally]
    by_model: dict[str, list[Tally]]
    by_key: dict[tuple[str, str], list[Tally]]
    refusals: dict[str, int]
    errors: dict[str, int]
    total_us: list[int]
    """Durations of the requests that went well, ascending."""

    def quantile_us(self, share: float) -> int | None:
        """The duration that this share of good requests did not exceed."""
        if not self.total_us:
            return None
        return self.total_us[min(len(self.total_us) - 1, int(share * len(self.total_us)))]

    def since(self, time_us: int) -> Tally:
        """The sum of the columns from then on; `time_us` is where one begins."""
        return summed(self.columns[max(0, (time_us - self.since_us) // self.step_us) :])


def summed(tallies: Iterable[Tally]) -> Tally:
    """All together."""
    whole = Tally()
    for tally in tallies:
        for field in Tally.__struct_fields__:
            setattr(whole, field, getattr(whole, field) + getattr(tally, field))
    return whole


def summary(records: Iterable[Told], since_us: int, until_us: int, step_us: int) -> Activity:
    """Sum up records of [since, until), newest first."""
    width = -(-(until_us - since_us) // step_us)

    def empty() -> list[Tally]:
        return [Tally() for _ in range(width)]

    found = Activity(since_us, until_us, step_us, since_us, Tally(), empty(), {}, {}, {}, {}, [])
    names: dict[str, str] = {}
    for record in records:
        at = (record.time_us - since_us) // step_us
        key = (record.key_id, names.setdefault(record.key_id, record.key_name))
        by_model = found.by_model.setdefault(record.model or "–", empty())
        by_key = found.by_key.setdefault(key, empty())
        for tally in (found.total, found.columns[at], by_model[at], by_key[at]):
            tally.add(record)
        if record.refused_by is not None:
            found.refusals[record.refused_by] = found.refusals.get(record.refused_by, 0) + 1
        elif record.error is not None or record.status >= 400:
            why = record.error or f"status {record.status}"
            found.errors[why] = found.errors.get(why, 0) + 1
        else:
            found.total_us.append(record.total_us)
    found.total_us.sort()
    return found


class ActivityService:
    """An owner's is of its own keys."""

    def __init__(self, parts: Parts) -> None:
        self._reader, self._now_us = parts.logs, parts.now_us
        self._kept: OrderedDict[Any, tuple[int, Activity]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def lately(self, caller: Caller, columns: int, step_us: int, key: str | None = None) -> Activity:
        """The last `columns` steps, the running one included. Raises `LogStoreUnavailable`."""
        now_us = self._now_us()
        until_us = (now_us // step_us + 1) * step_us
        asked = (caller.owned, columns, step_us, key, until_us)
        async with self._lock:
            known = self._kept.get(asked)
            if known is not None and known[0] > now_us:
                return known[1]
            filters = LogFilters(
                since_us=until_us - columns * step_us, until_us=until_us, key=key, owned=caller.owned
            )
            found = await self._read(filters, step_us)
            self._kept[asked] = (now_us + KEPT_S * US_PER_S, found)
            while len(self._kept) > SUMMARIES_MAX:
                self._kept.popitem(last=False)
        return found

    async def _read(self, filters: LogFilters, step_us: int) -> Activity:
        assert filters.since_us is not None and filters.until_us is not None
        records: list[Told] = []
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await self._reader.search(filters, PAGE_MAX, cursor)
            records += msgspec.convert(page.records, list[Told])
            cursor = page.next_cursor
            if cursor is None or len(records) >= RECORDS_MAX:
                break
        found = summary(records, filters.since_us, filters.until_us, step_us)
        if cursor is not None:
            found.whole_since_us = records[-1].time_us if records else filters.until_us
        return found
