"""Budget periods, in UTC. The period is part of a counter's name, so nothing ever needs a reset job."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

US_PER_S: Final = 1_000_000
RETENTION_US: Final = 60 * 86_400 * US_PER_S
"""A counter outlives the end of its period by 60 days."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Period(StrEnum):
    """How often a budget starts anew: at 00:00 UTC of each day, Monday or first of the month; or never."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Span(msgspec.Struct, frozen=True):
    """One concrete period: `label` names it in keys and tables; it holds `starts_us <= t < ends_us` (Unix µs).

    `ends_us` is None for a total.
    """

    period: Period
    label: str
    starts_us: int
    ends_us: int | None

    @property
    def expires_us(self) -> int | None:
        """When its counter may leave the fast store; None for a total."""
        return None if self.ends_us is None else self.ends_us + RETENTION_US


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def span_at(period: Period, now_us: int) -> Span:
    """The period that holds `now_us` (Unix µs). Labels: `2026:11:23`, `2026:W48`, `2026:11`, `total`."""
    if period is Period.TOTAL:
        return Span(period, "total", 0, None)
    day = (_EPOCH + timedelta(microseconds=now_us)).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return Span(period, f"{day.year}:{day.month:02d}:{day.day:02d}", _us(day), _us(day + timedelta(days=1)))
    if period is Period.WEEK:
        monday = day - timedelta(days=day.weekday())
        year, week, _ = day.isocalendar()
        return Span(period, f"{year}:W{week:02d}", _us(monday), _us(monday + timedelta(days=7)))
    first = day.replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return Span(period, f"{first.year}:{first.month:02d}", _us(first), _us(following))


def month_start_us(year: int, month: int) -> int:
    """The first moment of a month (Unix µs)."""
    return _us(datetime(year, month, 1, tzinfo=UTC))


def month_of_label(label: str) -> tuple[int, int] | None:
    """`2026:11` → (2026, 11); None for the label of any other period."""
    parts = label.split(":")
    if len(parts) != 2 or not parts[1].isdigit():
        return None
    return int(parts[0]), int(parts[1])


def expiry_of_label(label: str) -> int:
    """When a counter of the period named `label` may leave the fast store (Unix µs); 0 for a total."""
    if label == "total":
        return 0
    parts = label.split(":")
    if len(parts) == 3:
        start, period = datetime(int(parts[0]), int(parts[1]), int(parts[2]), tzinfo=UTC), Period.DAY
    elif parts[1].startswith("W"):
        start = datetime.fromisocalendar(int(parts[0]), int(parts[1][1:]), 1).replace(tzinfo=UTC)
        period = Period.WEEK
    else:
        start, period = datetime(int(parts[0]), int(parts[1]), 1, tzinfo=UTC), Period.MONTH
    span = span_at(period, _us(start))
    assert span.expires_us is not None and span.label == label
    return span.expires_us
