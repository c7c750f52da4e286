"""Usage reports as columns of time: which reports the pages ask for, and how their rows become a chart."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tollkeeper.admin.dashboard.charts import Series
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.reports import ROWS_MAX, ReportFilters, ReportQuery
from tollkeeper.domain.words import Words, instant

HOUR_US: Final = 3600 * US_PER_S
DAY_US: Final = 24 * HOUR_US
EVERYTHING: Final = ReportFilters()
SUMMED: Final = ("requests", "refused", "errors", "input_tokens", "cached_tokens", "output_tokens", "cost_nano")


class Range(msgspec.Struct, frozen=True):
    """Some columns of equal length, the last one running."""

    title: str
    step: str
    step_us: int
    columns: int

    def since_us(self, now_us: int) -> int:
        """Where the first column begins."""
        return self.until_us(now_us) - self.columns * self.step_us

    def until_us(self, now_us: int) -> int:
        """Where the last column ends: the same until then, so that reports asked for meanwhile are one."""
        return (now_us // self.step_us + 1) * self.step_us

    def starts(self, now_us: int) -> list[int]:
        """Where each column begins."""
        return [self.since_us(now_us) + number * self.step_us for number in range(self.columns)]

    def labels(self, now_us: int) -> list[str]:
        """What is written below each column."""
        form = "%H:%M" if self.step == "hour" else "%d %b"
        return [datetime.fromtimestamp(at / US_PER_S, UTC).strftime(form) for at in self.starts(now_us)]

    def names(self, now_us: int) -> list[str]:
        """What reports call each column."""
        words = [instant(at) or "" for at in self.starts(now_us)]
        return words if self.step == "hour" else [word[:10] for word in words]

    def query(
        self, now_us: int, *groups: str, filters: ReportFilters = EVERYTHING, limit: int = ROWS_MAX
    ) -> ReportQuery:
        """A report over all columns."""
        return ReportQuery(
            since_us=self.since_us(now_us),
            until_us=self.until_us(now_us),
            group_by=groups,
            filters=filters,
            limit=limit,
        )


RANGES: Final = {
    "24h": Range("Last 24 hours", "hour", HOUR_US, 24),
    "7d": Range("Last 7 days", "day", DAY_US, 7),
    "30d": Range("Last 30 days", "day", DAY_US, 30),
    "90d": Range("Last 90 days", "day", DAY_US, 90),
}


def range_named(name: str) -> Range:
    """Raises InvalidInput."""
    if name not in RANGES:
        raise InvalidInput(f"range: {name!r} is none; known are {', '.join(RANGES)}")
    return RANGES[name]


def by_column(rows: Iterable[Words], names: Sequence[str], step: str, field: str) -> tuple[float, ...]:
    """One measure of rows that are grouped by time alone, for each column."""
    found = {row[step]: row[field] for row in rows}
    return tuple(found.get(name, 0) for name in names)


def stacked(
    rows: Iterable[Words], names: Sequence[str], step: str, group: str, label: str, field: str
) -> list[Series]:
    """One measure of rows that are grouped by time and something else: a series for each of those."""
    found: dict[Any, dict[str, float]] = {}
    titles: dict[Any, str] = {}
    for row in rows:
        titles[row[group]] = str(row[label] or row[group] or "–")
        found.setdefault(row[group], {})[row[step]] = row[field]
    return [Series(titles[key], tuple(values.get(name, 0) for name in names)) for key, values in found.items()]


def by_group(rows: Iterable[Words], group: str, label: str) -> list[Words]:
    """Rows that are grouped by time and something else, summed over time; the dearest first."""
    found: dict[Any, Words] = {}
    for row in rows:
        whole = found.setdefault(row[group], dict.fromkeys(SUMMED, 0) | {group: row[group], "label": row[label]})
        for name in SUMMED:
            whole[name] += row[name]
    return sorted(found.values(), key=lambda row: (-row["cost_nano"], -row["requests"]))
