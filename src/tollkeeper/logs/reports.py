"""Usage reports: one aggregation in DuckDB over the objects of an interval, for few at a time.

The SQL is put together here from names of this file and quoted values; none comes from outside. DuckDB sees the
objects of the interval and nothing else (duck.py). An answer is kept for a moment, since a page asks for several
reports and is loaded again and again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from tollkeeper.domain.errors import Busy
from tollkeeper.domain.reports import TIMES, Report, ReportFilters, ReportQuery, ReportRow
from tollkeeper.logs import duck
from tollkeeper.logs.query import Interval, Rows, queries
from tollkeeper.logs.sinks import LogStore

AT_ONCE: Final = 1
"""Reports that run; each may take the memory of a query (duck.py)."""
WAIT_S: Final = 20.0
"""Longest wait for one's turn."""
TIMEOUT_S: Final = 20.0
KEPT_US: Final = 15_000_000
KEPT_MAX: Final = 64

DIMENSIONS: Final[dict[str, str]] = {
    "day": "strftime(time, '%Y-%m-%d')",
    "hour": "strftime(time, '%Y-%m-%dT%H:00:00Z')",
    "key": "key_id",
    "team": "team_id",
    "organisation": "organisation_id",
    "model": "model",
    "provider": "provider",
    "tag": "tag",
    "user": '"user"',
    "endpoint": "endpoint",
    "status": "status",
    "error": "error",
    "refused_by": "refused_by",
}
ANSWERED: Final = "FILTER (WHERE admitted AND status < 400)"
MEASURES: Final = (
    "count(*)",
    "count(*) FILTER (WHERE NOT admitted)",
    "count(*) FILTER (WHERE admitted AND (error IS NOT NULL OR status >= 400))",
    "coalesce(sum(tokens_input), 0)::BIGINT",
    "coalesce(sum(tokens_output), 0)::BIGINT",
    "coalesce(sum(tokens_cached), 0)::BIGINT",
    "coalesce(sum(cost_nano), 0)::BIGINT",
    f"quantile_disc(total_us, 0.5) {ANSWERED}",
    f"quantile_disc(total_us, 0.95) {ANSWERED}",
    f"quantile_disc(first_byte_us, 0.5) {ANSWERED}",
    f"quantile_disc(first_byte_us, 0.95) {ANSWERED}",
)
COST: Final = "coalesce(sum(cost_nano), 0)"


class LogReports:
    """`ports.UsageReports` over a log store. `now_us` says how old a kept answer is."""

    def __init__(self, store: LogStore, now_us: Callable[[], int]) -> None:
        self._store, self._now_us = store, now_us
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._kept: OrderedDict[ReportQuery, tuple[int, Report]] = OrderedDict()

    async def report(self, query: ReportQuery) -> Report:
        """See `ports.UsageReports`."""
        kept = self._kept.get(query)
        if kept is not None and 0 <= self._now_us() - kept[0] < KEPT_US:
            return kept[1]
        try:
            async with asyncio.timeout(WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise Busy("other reports are being made; try again later, or ask for a shorter time") from None
        try:
            report = await self._made(query)
        finally:
            self._slots.release()
        self._kept[query] = (self._now_us(), report)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return report

    async def _made(self, query: ReportQuery) -> Report:
        sqls = (_grouped(query), _total(query)) if query.group_by else (_total(query),)
        interval = Interval(query.since_us, query.until_us)
        found = await queries(self._store, sqls, interval, limit=query.limit, timeout_s=TIMEOUT_S)
        total = _row(found[-1].rows[0], 0)
        grouped: Rows = found[0]
        if not query.group_by:
            return Report([total], total, False, grouped.objects)
        rows = [_row(row, len(query.group_by)) for row in grouped.rows]
        return Report(rows, total, grouped.more, grouped.objects)


def _grouped(query: ReportQuery) -> str:
    names = ", ".join(f"{DIMENSIONS[name]} AS g{number}" for number, name in enumerate(query.group_by))
    places = [f"g{number}" for number in range(len(query.group_by))]
    by_cost = [f"{COST} DESC", *places]
    order = [places[0], *by_cost] if query.group_by[0] in TIMES else by_cost
    return (
        f"SELECT {names}, {', '.join(MEASURES)} FROM {_table(query)} WHERE {_where(query.filters)} "  # noqa: S608
        f"GROUP BY {', '.join(places)} ORDER BY {', '.join(order)} LIMIT {query.limit + 1:d}"
    )


def _total(query: ReportQuery) -> str:
    return f"SELECT {', '.join(MEASURES)} FROM logs WHERE {_where(query.filters)}"  # noqa: S608


def _table(query: ReportQuery) -> str:
    if "tag" not in query.group_by:
        return "logs"
    tags = "CASE WHEN len(coalesce(tags, [])) = 0 THEN [NULL] ELSE tags END"
    return f"(SELECT *, unnest({tags}) AS tag FROM logs)"  # noqa: S608


def _where(filters: ReportFilters) -> str:
    conditions = ["true"]
    for column, value in (
        ("key_id", filters.key),
        ("team_id", filters.team),
        ("organisation_id", filters.organisation),
        ("model", filters.model),
        ("provider", filters.provider),
        ('"user"', filters.user),
    ):
        if value is not None:
            conditions.append(f"{column} = {duck.quoted(value)}")
    if filters.tag is not None:
        conditions.append(f"list_contains(tags, {duck.quoted(filters.tag)})")
    if filters.owned is not None:
        owned = ", ".join(map(duck.quoted, filters.owned)) or "NULL"
        places = ("key_id", "team_id", "organisation_id")
        conditions.append("(" + " OR ".join(f"{place} IN ({owned})" for place in places) + ")")
    return " AND ".join(conditions)


def _row(values: Sequence[Any], groups: int) -> ReportRow:
    return ReportRow(tuple(values[:groups]), *values[groups:])
